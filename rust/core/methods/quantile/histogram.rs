//! The k-th largest score by histograms over the bit pattern, in whose order scores are: at most two passes for f32, four
//! for f64. For the scores of which a sample says nothing; whatever they are, it comes to an end.

use super::cut::{magnitudes, Scores};
use crate::error::Result;
use crate::kernels::Real;
use crate::tensor::Tensor;
use crate::threads::Threads;

/// Bits that one pass tells apart.
const WIDTH: u32 = 16;

/// The `k`-th largest magnitude of scores of kind `score`.
///
/// # Errors
/// Unreadable input.
pub(super) fn nth_largest<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    (score, k): (usize, u64),
    scores: &Scores<'_, R>,
) -> Result<f64> {
    let (mut prefix, mut unknown) = (0u64, if R::IS_F32 { 31u32 } else { 63 });
    let mut wanted = k;
    while unknown > 0 {
        let shift = unknown.saturating_sub(WIDTH);
        let bins = 1usize << (unknown - shift);
        let tables = tensor.tally::<R, Vec<u64>, _, _>(
            threads,
            || vec![0; bins],
            |table, tile| {
                scores(tile, &mut |kind, x, y| {
                    for x in magnitudes(x, y).filter(|_| kind == score) {
                        let bits = x.magnitude_bits();
                        let inside = bits >> unknown == prefix >> unknown;
                        table[(bits >> shift) as usize & (bins - 1)] += u64::from(inside);
                    }
                });
            },
        )?;
        for bin in (0..bins).rev() {
            let count: u64 = tables.iter().map(|table| table[bin]).sum();
            if wanted <= count {
                prefix |= (bin as u64) << shift;
                break;
            }
            wanted -= count;
        }
        unknown = shift;
    }
    Ok(if R::IS_F32 { f64::from(f32::from_bits(prefix as u32)) } else { f64::from_bits(prefix) })
}
