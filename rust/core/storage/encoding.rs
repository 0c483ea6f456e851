//! The three ways to store a difference: dense, bit mask and values, sorted flat indices and values.

use crate::dtype::Dtype;
use crate::kernels::encode::{Facts, TYPES};
use crate::kernels::marks::{gather, not_zero, places, Places, WORD};
use crate::kernels::narrow::{narrow, Rounding};
use crate::kernels::{Level, TILE};

/// Which elements are kept, and how their places are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing differs: nothing is stored.
    Zero,
    /// Every element.
    Dense,
    /// Elements that are not zero, and a bit per element.
    Mask,
    /// Elements that are not zero, and their indices.
    Index,
}

impl Form {
    /// As the manifest names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Form::Zero => "zero",
            Form::Dense => "dense",
            Form::Mask => "mask",
            Form::Index => "index",
        }
    }
}

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    /// What is kept.
    pub form: Form,
    /// Type of the values.
    pub dtype: Dtype,
    /// Type of the indices.
    pub index: Dtype,
}

impl Encoding {
    /// Of a tensor without differences.
    pub(crate) fn zero() -> Self {
        Encoding { form: Form::Zero, dtype: Dtype::BF16, index: Dtype::I32 }
    }

    /// What takes the fewest bytes together with the elements that have to be stored by themselves, of which each takes
    /// `each` bytes ([`crate::storage::exact_elements`]): a type and a form. A difference may only be beyond the type
    /// if it can be told from those elements (`told`). A type that was asked for is taken. A tensor without differences
    /// that has such elements is an empty list and them.
    pub(crate) fn smallest(elements: u64, facts: &Facts, asked: Option<Dtype>, each: u64, told: bool) -> Self {
        let index = if elements <= 1 << 31 { Dtype::I32 } else { Dtype::I64 };
        if facts.changed == 0 && facts.apart(Dtype::F64) == 0 {
            return Encoding::zero();
        }
        let types = TYPES.into_iter().filter(|dtype| told || !facts.is_beyond(*dtype));
        let types: Vec<Dtype> = asked.map_or_else(|| types.collect(), |dtype| vec![dtype]);
        // In this order where sizes are equal.
        let forms = [Form::Dense, Form::Mask, Form::Index];
        types
            .into_iter()
            .flat_map(|dtype| forms.map(|form| Encoding { form, dtype, index }))
            .min_by_key(|encoding| {
                let apart = facts.apart(encoding.dtype);
                (encoding.bytes(elements, facts.changed) + apart * each, apart)
            })
            .unwrap_or_else(Encoding::zero)
    }

    /// The nearest to `x` that does not round to an infinity in this type; what is infinite stays.
    pub(crate) fn within(&self, x: f64) -> f64 {
        let largest = match self.dtype {
            Dtype::BF16 => f64::from(f32::from_bits(0x7F7F_0000)),
            Dtype::F16 => 65504.0,
            Dtype::F32 => f64::from(f32::MAX),
            _ => f64::MAX,
        };
        if x.is_finite() {
            x.clamp(-largest, largest)
        } else {
            x
        }
    }

    /// Bytes of the places.
    pub(crate) fn places_bytes(&self, elements: u64, changed: u64) -> u64 {
        match self.form {
            Form::Zero | Form::Dense => 0,
            Form::Mask => elements.div_ceil(8),
            Form::Index => changed * self.index.size() as u64,
        }
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self, elements: u64, changed: u64) -> u64 {
        let values = match self.form {
            Form::Zero => 0,
            Form::Dense => elements,
            Form::Mask | Form::Index => changed,
        };
        self.places_bytes(elements, changed) + values * self.dtype.size() as u64
    }

    /// The stored tensors: places before values.
    pub(crate) fn rows(
        &self,
        name: &str,
        shape: &[u64],
        elements: u64,
        changed: u64,
    ) -> Vec<(String, Dtype, Vec<u64>)> {
        let values = (format!("{name}.values"), self.dtype, vec![changed]);
        match self.form {
            Form::Zero => vec![],
            Form::Dense => vec![(name.to_owned(), self.dtype, shape.to_vec())],
            Form::Mask => vec![(format!("{name}.mask"), Dtype::U8, vec![elements.div_ceil(8)]), values],
            Form::Index => vec![(format!("{name}.indices"), self.index, vec![changed]), values],
        }
    }

    /// What is stored of one chunk of `n` elements, of which `changed` are not zero; to be filled tile by tile.
    pub(crate) fn chunk(&self, n: usize, changed: u64) -> ChunkWriter<'_> {
        let changed = changed as usize;
        let (values, words, places) = match self.form {
            Form::Dense => (n, 0, 0),
            Form::Mask => (changed, n.div_ceil(WORD), 0),
            Form::Zero | Form::Index => (changed, 0, changed),
        };
        ChunkWriter {
            encoding: self,
            n,
            values: Vec::with_capacity(values * self.dtype.size()),
            mask: vec![0; words],
            places: Vec::with_capacity(places),
            here: [0; 2 * TILE],
        }
    }
}

/// One chunk of differences on its way to the file.
pub(crate) struct ChunkWriter<'e> {
    encoding: &'e Encoding,
    n: usize,
    values: Vec<u8>,
    /// Of a mask: a bit for each element of the chunk.
    mask: Vec<u64>,
    /// Of indices: the places, counted from the chunk's first element.
    places: Vec<u32>,
    /// Those of a tile, counted from its first element.
    here: Places,
}

impl ChunkWriter<'_> {
    /// Takes in the tile of differences that begins with element `at` of the chunk, and leaves anything in it.
    pub(crate) fn tile(&mut self, level: Level, at: usize, delta: &mut [f64]) {
        let Encoding { form, dtype, .. } = *self.encoding;
        let count = if form == Form::Dense {
            delta.len()
        } else {
            let mut marks = [0; TILE / WORD];
            let marks = &mut marks[..delta.len().div_ceil(WORD)];
            not_zero(level, delta, marks);
            let count = places(level, marks, &mut self.here);
            let here = &self.here[..count];
            gather(delta, here);
            match form {
                Form::Mask => self.mask[at / WORD..][..marks.len()].copy_from_slice(marks),
                _ => self.places.extend(here.iter().map(|place| at as u32 + place)),
            }
            count
        };
        let end = self.values.len();
        self.values.resize(end + count * dtype.size(), 0);
        narrow(level, dtype, &mut delta[..count], Rounding::Nearest, &mut self.values[end..]);
    }

    /// The values as stored, and where they go, counted from the first byte of all: the chunk begins with element
    /// `first`, `rank` values come before it.
    pub(crate) fn values(&self, first: u64, rank: u64) -> (&[u8], u64) {
        let before = if self.encoding.form == Form::Dense { first } else { rank };
        (&self.values, before * self.encoding.dtype.size() as u64)
    }

    /// The places in the same way, where there are any; `first` is a multiple of 8.
    pub(crate) fn places(&self, first: u64, rank: u64) -> Option<(Vec<u8>, u64)> {
        match self.encoding.form {
            Form::Zero | Form::Dense => None,
            Form::Mask => {
                let mut mask: Vec<u8> = self.mask.iter().flat_map(|word| word.to_le_bytes()).collect();
                mask.truncate(self.n.div_ceil(8));
                Some((mask, first / 8))
            }
            Form::Index => {
                let (index, places) = (self.encoding.index, self.places.iter());
                let indices = places.map(|place| first + u64::from(*place));
                Some((index_bytes(index, indices), rank * index.size() as u64))
            }
        }
    }
}

/// Indices as stored.
pub(super) fn index_bytes(dtype: Dtype, indices: impl Iterator<Item = u64>) -> Vec<u8> {
    match dtype {
        Dtype::I32 => indices.flat_map(|index| (index as i32).to_le_bytes()).collect(),
        _ => indices.flat_map(|index| index.to_le_bytes()).collect(),
    }
}
