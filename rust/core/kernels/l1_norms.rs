//! L1 norms of a difference before and after a drop.

use super::dispatch::Level;
use super::masked::{Masked, BITS, BOTH, MANY};
use super::real::{Real, LANES};
use super::stats::fold;

/// L1 norms in lanes, of all elements and of those that are kept: of an eighth of each, so that neither a difference
/// nor the sum of four overflows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Norms {
    all: [f64; LANES],
    kept: [f64; LANES],
}

impl Norms {
    /// Of nothing.
    pub(crate) const NONE: Norms = Norms { all: [0.0; LANES], kept: [0.0; LANES] };

    /// Of all elements, and of those kept.
    pub fn sums(&self) -> (f64, f64) {
        (8.0 * fold(&self.all), 8.0 * fold(&self.kept))
    }

    /// Adds the norm of what is left where that is a tile of its own.
    pub(crate) fn keep<R: Real>(&mut self, level: Level, left: &Masked<'_, R>) {
        let mut norms = Norms::default();
        add_norms(level, left, &mut norms);
        self.kept.iter_mut().zip(norms.all).for_each(|(sum, more)| *sum += more);
    }
}

kernel! {
    /// Adds the L1 norms of a tile. Four elements are added up in the compute type first, each two of them with one
    /// rounding; everything else in f64.
    pub fn add_norms<R>(term: &Masked<'_, R>, sums: &mut Norms) {
        if term.by() == BITS {
            norms::<R, BITS>(term, sums);
        } else {
            norms::<R, BOTH>(term, sums);
        }
    }
}

kernel! {
    /// The same of all elements and of those whose bit is set, from a model and what is subtracted as they are stored in
    /// bf16. False if something of them, or of what was added before, may not be finite: then the sum is not either.
    pub(crate) fn add_stored_norms(model: &[u8], reference: Option<&[u8]>, words: &[u64], sums: &mut Norms) -> bool {
        let zeros = [[0u8; 2]; MANY];
        let (models, model_rest) = model.as_chunks::<2>().0.as_chunks::<MANY>();
        let (references, reference_rest) = reference.unwrap_or(&[]).as_chunks::<2>().0.as_chunks::<MANY>();
        for (at, model) in models.iter().enumerate() {
            stored((model, references.get(at).unwrap_or(&zeros)), words[at], sums);
        }
        if !model_rest.is_empty() {
            let (mut model, mut reference) = (zeros, zeros);
            model[..model_rest.len()].copy_from_slice(model_rest);
            reference[..reference_rest.len()].copy_from_slice(reference_rest);
            stored((&model, &reference), words[models.len()], sums);
        }
        sums.all.iter().all(|sum| sum.is_finite())
    }
}

type Pairs = [[u8; 2]; MANY];

#[inline(always)]
fn stored((model, reference): (&Pairs, &Pairs), word: u64, sums: &mut Norms) {
    let (mut sum, mut sum_kept) = ([0f32; LANES], [0f32; LANES]);
    for lane in 0..LANES {
        let (mut all, mut kept) = ([0f32; 4], [0f32; 4]);
        for i in 0..4 {
            let x = u32::from(u16::from_le_bytes(model[i * LANES + lane]));
            let y = u32::from(u16::from_le_bytes(reference[i * LANES + lane]));
            all[i] = (0.125 * f32::from_bits(x << 16) - 0.125 * f32::from_bits(y << 16)).abs();
            kept[i] = if (word >> (i * LANES)) as u32 & 1 << lane != 0 { all[i] } else { 0.0 };
        }
        sum[lane] = (all[0] + all[1]) + (all[2] + all[3]);
        sum_kept[lane] = (kept[0] + kept[1]) + (kept[2] + kept[3]);
    }
    for lane in 0..LANES {
        sums.all[lane] += f64::from(sum[lane]);
        sums.kept[lane] += f64::from(sum_kept[lane]);
    }
}

#[inline(always)]
fn norms<R: Real, const BY: u8>(term: &Masked<'_, R>, sums: &mut Norms) {
    let zeros = [R::ZERO; MANY];
    let (models, model_rest) = term.model.as_chunks::<MANY>();
    let (references, reference_rest) = term.reference.unwrap_or(&[]).as_chunks::<MANY>();
    for (at, model) in models.iter().enumerate() {
        let reference = references.get(at).unwrap_or(&zeros);
        many::<R, BY>(term, (model, reference), term.words[at], sums);
    }
    if !model_rest.is_empty() {
        let (mut model, mut reference) = (zeros, zeros);
        model[..model_rest.len()].copy_from_slice(model_rest);
        reference[..reference_rest.len()].copy_from_slice(reference_rest);
        many::<R, BY>(term, (&model, &reference), term.words[models.len()], sums);
    }
}

#[inline(always)]
fn many<R: Real, const BY: u8>(
    term: &Masked<'_, R>,
    (model, reference): (&[R; MANY], &[R; MANY]),
    word: u64,
    sums: &mut Norms,
) {
    // In the compute type first, with as many lanes to a vector as it has.
    let eighth = R::from_f64(0.125);
    let (mut sum, mut sum_kept) = ([R::ZERO; LANES], [R::ZERO; LANES]);
    for lane in 0..LANES {
        let (mut all, mut kept) = ([R::ZERO; 4], [R::ZERO; 4]);
        for i in 0..4 {
            let (x, y) = (model[i * LANES + lane], reference[i * LANES + lane]);
            all[i] = (eighth * x - eighth * y).abs();
            let keeps = term.keep::<BY>(x - y, (word >> (i * LANES)) as u32, lane) != R::ZERO;
            kept[i] = if keeps { all[i] } else { R::ZERO };
        }
        sum[lane] = (all[0] + all[1]) + (all[2] + all[3]);
        sum_kept[lane] = (kept[0] + kept[1]) + (kept[2] + kept[3]);
    }
    for lane in 0..LANES {
        sums.all[lane] += sum[lane].to_f64();
        sums.kept[lane] += sum_kept[lane].to_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_numbers_have_a_norm_and_infinity_is_told() {
        let stored = |bits: u16| [bits.to_le_bytes(); 100].concat();
        let (large, words) = (f32::from_bits(0x7F7F_0000), [u64::MAX; 2]);
        for level in Level::available() {
            let (mut plain, mut short) = (Norms::default(), Norms::default());
            add_norms(level, &Masked::whole(&[large; 100], None, &words), &mut plain);
            assert!(add_stored_norms(level, &stored(0x7F7F), None, &words, &mut short));
            let want = 100.0 * f64::from(large);
            assert_eq!((plain.sums(), short.sums()), ((want, want), (want, want)));
            // A difference of finite numbers that is not itself.
            let (mut plain, mut short) = (Norms::default(), Norms::default());
            add_norms(level, &Masked::whole(&[large; 100], Some(&[-large; 100]), &words), &mut plain);
            assert!(add_stored_norms(level, &stored(0x7F7F), Some(&stored(0xFF7F)), &words, &mut short));
            assert_eq!((plain.sums(), short.sums()), ((2.0 * want, 2.0 * want), (2.0 * want, 2.0 * want)));
            assert!(!add_stored_norms(level, &stored(0x7F80), None, &words, &mut short));
            assert!(!add_stored_norms(level, &stored(0), Some(&stored(0x7FC0)), &words, &mut Norms::default()));
        }
    }
}
