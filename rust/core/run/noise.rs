//! What the difference of donor and reference is like in one tile: see [`Noise`].

use crate::kernels::noise::{differing, noise_sums, NoiseSums};
use crate::kernels::{Level, Real, TILE};
use crate::measure::Noise;
use crate::run::program::Pair;
use crate::storage::chunk::{Chunk, Coded, Run};

/// Of each pair in a tile: of the inputs as they are stored, from element `at` of the chunks on, and widened.
pub(crate) fn of_pairs<'p, R: Real>(
    level: Level,
    pairs: &'p [Pair],
    chunks: &'p [Chunk<'_>],
    at: usize,
    inputs: &'p [Vec<R>],
) -> impl Iterator<Item = Noise> + 'p {
    let one = move |(index, pair): (usize, &Pair)| {
        let stored = (&chunks[pair.donor], &chunks[pair.reference]);
        let noise = measured(level, stored, at, &inputs[pair.donor], &inputs[pair.reference])?;
        let (squares, magnitudes) = (noise.squares * pair.weight * pair.weight, noise.magnitudes * pair.weight.abs());
        Some(Noise { pair: index, squares, magnitudes, ..noise })
    };
    pairs.iter().enumerate().filter_map(one)
}

/// Of values whose chunks these are, from element `at` of those on; none where they are not stored alike.
fn measured<R: Real>(
    level: Level,
    chunks: (&Chunk<'_>, &Chunk<'_>),
    at: usize,
    donor: &[R],
    reference: &[R],
) -> Option<Noise> {
    let n = donor.len();
    let mut equal = [R::ONE; TILE];
    let mut noise = Noise { elements: n as u64, equal: n as u64, ..Noise::default() };
    match (chunks.0.coded(), chunks.1.coded()) {
        (Some(a), Some(b)) if a.coding() == b.coding() => {
            noise.packed = true;
            compare(level, (a, b), at, &mut equal[..n], &mut noise);
        }
        (None, None) if chunks.0.is_plain() && chunks.1.is_plain() => {}
        _ => return None,
    }
    let NoiseSums { squares, magnitudes, reference } = noise_sums(level, donor, reference, &equal[..n]);
    Some(Noise { squares, magnitudes, reference, ..noise })
}

/// Counts codes and scales that differ, and marks the elements whose scales are equal.
fn compare<R: Real>(level: Level, (a, b): (&dyn Coded, &dyn Coded), at: usize, equal: &mut [R], noise: &mut Noise) {
    let (n, mut codes) = (equal.len(), [[0u8; TILE]; 2]);
    a.codes(level, at, &mut codes[0][..n]);
    b.codes(level, at, &mut codes[1][..n]);
    noise.codes = differing(level, &codes[0][..n], &codes[1][..n]);
    let mut runs: Vec<Run> = Vec::with_capacity(32);
    a.runs(level, at, n, &mut |run| runs.push(run));
    let (mut index, mut from) = (0, 0);
    b.runs(level, at, n, &mut |run: Run| {
        let same = runs[index].scale == run.scale;
        noise.groups += u64::from(run.begins);
        noise.scales += u64::from(run.begins && runs[index].stored != run.stored);
        if !same {
            equal[from..from + run.n].fill(R::ZERO);
            noise.equal -= run.n as u64;
        }
        (index, from) = (index + 1, from + run.n);
    });
}
