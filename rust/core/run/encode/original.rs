//! The stored bytes of an input that is packed as the output is: what an output equal to it is made of.

use std::ops::Range;

use super::columns::Columns;
use super::form::{Form, Place};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::quantise::code::half;
use crate::kernels::quantise::scale::ScaleType;
use crate::run::program::Program;
use crate::storage::packed::format::Format;
use crate::storage::packed::parts::Stored;

/// Bytes that are compared at once.
const PIECE: u64 = 1 << 18;

/// Buffers for what is not mapped.
pub(super) type Buffers = [Vec<u8>; 4];

/// The parts of such an input, as bytes.
#[derive(Clone)]
pub(super) struct Original<'a> {
    codes: Stored<'a>,
    scales: Stored<'a>,
    zeros: Option<Stored<'a>>,
    biases: Option<Stored<'a>>,
    global: Option<Stored<'a>>,
    /// The group of each column, where those of a group are not neighbours.
    pub order: Option<Stored<'a>>,
}

/// Those of one patch.
pub(super) struct Rows<'s> {
    codes: &'s [u8],
    scales: &'s [u8],
    biases: &'s [u8],
    zeros: Option<&'s [u8]>,
    /// The row whose zeros come first, a multiple of 32, in its matrix.
    first_zero: u64,
}

/// Whether codes and scales of one type have the same bytes in another: exponents, bytes of two codes and words of bytes
/// have several names.
fn is_alike(a: Dtype, b: Dtype) -> bool {
    let is_byte = |dtype| matches!(dtype, Dtype::U8 | Dtype::I8 | Dtype::F8E8M0 | Dtype::F4 | Dtype::U32);
    let is_word = |a, b| a == Dtype::U32 && b == Dtype::F8E4M3;
    a == b || is_byte(a) && is_byte(b) || is_word(a, b) || is_word(b, a)
}

/// Whether the parameters are the same.
pub(super) fn is_same(a: &Format, b: &Format) -> bool {
    match (a, b) {
        (Format::Scaled(a), Format::Scaled(b)) => a.block == b.block && a.factor == b.factor,
        (Format::E2m1(a), Format::E2m1(b)) => a.group == b.group && a.global == b.global,
        (Format::PackedInt(a), Format::PackedInt(b)) => {
            let optional = |a: &Option<Box<str>>, b: &Option<Box<str>>| a.is_some() == b.is_some();
            (a.bits, a.group) == (b.bits, b.group)
                && optional(&a.parts.zeros, &b.parts.zeros)
                && optional(&a.parts.order, &b.parts.order)
        }
        (Format::Mlx(a), Format::Mlx(b)) => (a.bits, a.group) == (b.bits, b.group),
        _ => false,
    }
}

impl<'a> Original<'a> {
    /// Input `index`, where nothing lies over it.
    pub(super) fn of(program: &'a Program<'_>, index: usize, form: &Form) -> Option<Self> {
        let parts = program.inputs.get(index)?.storage().packed();
        let (codes, scales, more) = (parts.first()?, parts.get(1)?, parts.get(2).copied());
        let of = Original { codes: *codes, scales: *scales, zeros: None, biases: None, global: None, order: None };
        let of = Original { order: parts.last().copied().filter(|_| form.strewn), ..of };
        Some(match more {
            _ if form.zeros => Original { zeros: Some(more?), ..of },
            _ if form.code.is_biased() => Original { biases: Some(more?), ..of },
            _ => Original { global: more.filter(|_| form.global.is_some()), ..of },
        })
    }

    /// Whether the bytes of its codes, scales and biases mean what those of parts of these types mean.
    pub(super) fn is_of(&self, codes: Dtype, scales: Dtype, biases: Option<Dtype>) -> bool {
        is_alike(self.codes.dtype, codes)
            && is_alike(self.scales.dtype, scales)
            && self.biases.map(|stored| stored.dtype) == biases
    }

    /// The scale for a whole that a matrix has, as it is stored: of all scales, or of the scales of scales.
    pub(super) fn whole(&self, form: &Form, matrix: u64, buffer: &mut Vec<u8>) -> Result<u32> {
        let stored = if form.global.is_some() { self.global.unwrap_or(self.scales) } else { self.scales };
        let size = stored.dtype.size() as u64;
        let index = form.whole_of(matrix) as u64;
        let bytes = stored.raw().read(index * size..(index + 1) * size, buffer)?;
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        Ok(u32::from_le_bytes(word))
    }

    /// Whether all that has one scale for a whole has the same bytes in another.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    pub(super) fn equals(&self, other: &Original<'_>, whole: u64, wholes: u64) -> Result<bool> {
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let pairs = [(Some(self.codes), Some(other.codes)), (Some(self.scales), Some(other.scales))];
        for (a, b) in pairs.into_iter().chain([(self.global, other.global)]) {
            let (Some(a), Some(b)) = (a, b) else { continue };
            let share = |whole: u64| (u128::from(a.bytes()) * u128::from(whole) / u128::from(wholes.max(1))) as u64;
            for at in (share(whole)..share(whole + 1)).step_by(PIECE as usize) {
                let range = at..(at + PIECE).min(share(whole + 1));
                if a.raw().read(range.clone(), &mut left)? != b.raw().read(range, &mut right)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// What a patch is made of.
    ///
    /// # Errors
    /// Where a file was truncated or cannot be read.
    pub(super) fn read<'s>(&self, form: &Form, place: &Place, buffers: &'s mut Buffers) -> Result<Rows<'s>>
    where
        'a: 's,
    {
        let [codes, scales, zeros, biases] = buffers;
        let first = place.first_row(form) * form.row_bytes;
        let codes = self.codes.raw().read(first..first + place.rows * form.row_bytes, codes)?;
        let down = place.down(form);
        let (size, per_matrix) = (self.scales.dtype.size() as u64, form.down());
        let scales = if form.wholes > 0 && form.global.is_none() {
            &[]
        } else {
            let group = |down: u64| (place.matrix * per_matrix + down) * form.across() * size;
            self.scales.raw().read(group(down.start)..group(down.end), scales)?
        };
        let biases = match &self.biases {
            None => &[],
            Some(stored) => {
                let group = |down: u64| (place.matrix * per_matrix + down) * form.across();
                stored.read(group(down.start)..group(down.end), biases)?
            }
        };
        let (bits, across) = (u64::from(form.code.bits()), form.across());
        let first_zero = place.row / 32 * 32;
        let zeros = match &self.zeros {
            None => None,
            Some(stored) => {
                let words = (form.rows * bits).div_ceil(32);
                let word = |row: u64| (place.matrix * words + row) * across * 4;
                let end = ((place.row + place.rows) * bits).div_ceil(32);
                Some(stored.raw().read(word(first_zero * bits / 32)..word(end), zeros)?)
            }
        };
        Ok(Rows { codes, scales, biases, zeros, first_zero })
    }
}

/// [`Original::read`], where there is one.
///
/// # Errors
/// As that.
pub(super) fn read<'s>(
    original: Option<&Original<'s>>,
    form: &Form,
    place: &Place,
    buffers: &'s mut Buffers,
) -> Result<Option<Rows<'s>>> {
    original.map(|original| original.read(form, place, buffers)).transpose()
}

impl Rows<'_> {
    /// Packed codes of row `row` of the patch: from one column to another.
    pub(super) fn codes(&self, form: &Form, row: u64, columns: &Range<u64>) -> &[u8] {
        let start = row as usize * form.row_bytes as usize;
        &self.codes[start + form.bytes_before(columns.start)..start + form.bytes_before(columns.end)]
    }

    /// The codes of a group in row `row` of the patch.
    pub(super) fn strewn<'c>(
        &'c self,
        form: &'c Form,
        row: u64,
        group: &'c Group,
        columns: &'c Columns,
    ) -> impl Iterator<Item = u8> + 'c {
        let start = (row * form.row_bytes) as usize;
        let (bytes, bits) = (&self.codes[start..start + form.row_bytes as usize], form.code.bits());
        group.columns.clone().map(move |place| {
            let bit = columns.at(place) as usize * bits as usize;
            let next = bytes.get(bit / 8 + 1).copied().unwrap_or(0);
            ((u16::from_le_bytes([bytes[bit / 8], next]) >> (bit % 8)) & ((1 << bits) - 1)) as u8
        })
    }

    /// The stored scale of a group: its row of groups in the patch, its column in the matrix.
    pub(super) fn scale(&self, form: &Form, kind: ScaleType, (down, across): (u64, u64)) -> u32 {
        loaded(self.scales, form, kind, (down, across))
    }

    /// The stored bias of a group, as [`Rows::scale`].
    pub(super) fn bias(&self, form: &Form, kind: ScaleType, place: (u64, u64)) -> u32 {
        loaded(self.biases, form, kind, place)
    }

    /// The code for zero of a group, as a number: its row in the matrix, its column of groups.
    pub(super) fn zero(&self, form: &Form, row: u64, across: u64) -> f32 {
        let Some(words) = self.zeros else { return 0.0 };
        let (bits, stride) = (form.code.bits(), form.across() as usize * 4);
        let first = (row - self.first_zero) as usize * bits as usize;
        // Fields run down a column of words.
        let word = first / 32;
        let mut bytes = [0; 8];
        for (half, bytes) in bytes.chunks_mut(4).enumerate() {
            let at = (word + half) * stride + across as usize * 4;
            if let Some(stored) = words.get(at..at + 4) {
                bytes.copy_from_slice(stored);
            }
        }
        let code = (u64::from_le_bytes(bytes) >> (first % 32)) & ((1 << bits) - 1);
        (code as i32 - half(bits)) as f32
    }

    /// Whether a group has the same bytes in another.
    pub(super) fn is_same(
        &self,
        other: &Rows<'_>,
        (form, place): (&Form, &Place),
        group: &Group,
        columns: Option<&Columns>,
    ) -> bool {
        let rows = group.rows.clone();
        let down = place.down(form);
        let groups = ((down.end - down.start) * form.across()) as usize;
        let at = (group.down * form.across() + group.across) as usize;
        let alike = |a: &[u8], b: &[u8]| {
            let size = a.len() / groups;
            a.get(at * size..(at + 1) * size) == b.get(at * size..(at + 1) * size)
        };
        let same_codes = |row| match columns {
            Some(columns) => self.strewn(form, row, group, columns).eq(other.strewn(form, row, group, columns)),
            None => self.codes(form, row, &group.columns) == other.codes(form, row, &group.columns),
        };
        rows.clone().all(same_codes)
            && alike(self.scales, other.scales)
            && alike(self.biases, other.biases)
            && rows.clone().all(|row| {
                self.zero(form, place.row + row, group.across) == other.zero(form, place.row + row, group.across)
            })
    }
}

fn loaded(bytes: &[u8], form: &Form, kind: ScaleType, (down, across): (u64, u64)) -> u32 {
    if bytes.is_empty() {
        return 0;
    }
    let at = (down * form.across() + across) as usize * kind.size();
    kind.load(&bytes[at..at + kind.size()])
}

/// A group of a patch.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Its row of groups in the patch.
    pub down: u64,
    /// Its column of groups in the matrix.
    pub across: u64,
    /// Its rows in the patch.
    pub rows: Range<u64>,
    /// Its columns in the matrix.
    pub columns: Range<u64>,
}
