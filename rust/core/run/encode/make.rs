//! The bytes of the parts that are not codes: from scales and codes for zero that are kept until all parts are written.

use std::ops::Range;

use super::chosen::Wholes;
use super::form::Form;
use super::packed::Packed;
use super::patch::Patch;
use crate::kernels::quantise::code::half;
use crate::kernels::quantise::scale::ScaleType;

/// Scales, biases and codes for zero of all groups, by output.
pub(super) struct Kept {
    scales: Vec<Vec<u8>>,
    biases: Vec<Vec<u8>>,
    zeros: Vec<Vec<u8>>,
    known: Vec<bool>,
}

impl Kept {
    /// Of a tensor of which nothing is known.
    pub(super) fn new(packed: &Packed) -> Self {
        let (form, outputs) = (&packed.form, packed.steps.len());
        let biases = if form.code.is_biased() { form.groups() as usize * packed.biases.size() } else { 0 };
        let groups = if form.wholes > 0 && form.global.is_none() { 0 } else { form.groups() as usize };
        Kept {
            scales: vec![vec![0; groups * packed.scales.size()]; outputs],
            biases: vec![vec![0; biases]; outputs],
            zeros: vec![vec![0; if form.zeros { groups } else { 0 }]; outputs],
            known: vec![false; form.patches() as usize],
        }
    }

    /// Whether a patch has been encoded.
    pub(super) fn knows(&self, patch: u64) -> bool {
        self.known[patch as usize]
    }

    /// Takes in the scales of a patch.
    pub(super) fn take(&mut self, packed: &Packed, index: u64, patch: &Patch) {
        let (form, place) = (&packed.form, packed.form.place(index));
        let width = (place.across(form).end - place.across(form).start) as usize;
        self.known[index as usize] = true;
        for (output, encoded) in patch.outputs.iter().enumerate() {
            for (down, row) in place.down(form).enumerate() {
                let (first, here) = (place.group(form, row) as usize, down * width..(down + 1) * width);
                store(packed.scales, first, &encoded.scales[here.clone()], &mut self.scales[output]);
                if form.code.is_biased() {
                    store(packed.biases, first, &encoded.biases[here.clone()], &mut self.biases[output]);
                }
                if form.zeros {
                    let slots = &mut self.zeros[output][first..first + width];
                    let offset = half(form.code.bits()) as f32;
                    slots.iter_mut().zip(&encoded.zeros[here]).for_each(|(slot, zero)| *slot = (zero + offset) as u8);
                }
            }
        }
    }

    /// Bytes of the stored scales.
    pub(super) fn scales(&self, output: usize, bytes: &Range<u64>, out: &mut [u8]) {
        out.copy_from_slice(&self.scales[output][bytes.start as usize..bytes.end as usize]);
    }

    /// Bytes of the stored biases.
    pub(super) fn biases(&self, output: usize, bytes: &Range<u64>, out: &mut [u8]) {
        out.copy_from_slice(&self.biases[output][bytes.start as usize..bytes.end as usize]);
    }

    /// Bytes of the stored codes for zero: words of fields that run down a column.
    pub(super) fn zeros(&self, form: &Form, output: usize, bytes: &Range<u64>, out: &mut [u8]) {
        let (across, bits) = (form.across(), u64::from(form.code.bits()));
        let words = (form.rows * bits).div_ceil(32);
        for (byte, out) in (bytes.start..bytes.end).zip(out) {
            let (word, column) = (byte / 4 / across, byte / 4 % across);
            let (matrix, first) = (word / words, word % words * 32 + byte % 4 * 8);
            // Fields that reach into this byte.
            let rows = first / bits..((first + 8).div_ceil(bits)).min(form.rows);
            let value = rows.fold(0i64, |value, row| {
                let code = i64::from(self.zeros[output][((matrix * form.rows + row) * across + column) as usize]);
                let shift = (row * bits) as i64 - first as i64;
                value | if shift >= 0 { code << shift } else { code >> -shift }
            });
            *out = value as u8;
        }
    }
}

/// Puts the bits of some groups, from the `first` on, where they are kept.
fn store(kind: ScaleType, first: usize, bits: &[u32], kept: &mut [u8]) {
    let size = kind.size();
    let Some(bytes) = kept.get_mut(first * size..(first + bits.len()) * size) else { return };
    bytes.chunks_mut(size).zip(bits).for_each(|(bytes, bits)| kind.store(*bits, bytes));
}

/// Bytes of the scale for a whole.
pub(super) fn wholes(wholes: &Wholes, output: usize, size: usize, bytes: &Range<u64>, out: &mut [u8]) {
    for (byte, out) in (bytes.start..bytes.end).zip(out) {
        let chosen = &wholes[byte as usize / size][output];
        *out = chosen.bits.to_le_bytes()[byte as usize % size];
    }
}

/// Bytes of the shape: rows and columns, as integers of `size` bytes.
pub(super) fn shape(form: &Form, size: usize, bytes: &Range<u64>, out: &mut [u8]) {
    let sides = [form.rows, form.columns];
    for (byte, out) in (bytes.start..bytes.end).zip(out) {
        *out = sides[byte as usize / size].to_le_bytes()[byte as usize % size];
    }
}
