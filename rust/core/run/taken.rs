//! The part of a tensor that a selection takes: an output has the result of the operation there, and one input's own
//! elements everywhere else.

use crate::error::{shown, Error, Kind, Result};
use crate::plan::job::Job;
use crate::plan::Plan;
use crate::storage::lines::{Axis, Lines};

/// Which elements of a tensor are taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The input that the others are of.
    pub input: usize,
    boxes: Vec<Lines>,
}

impl Taken {
    /// What a plan says of a job, if it says that only a part is taken.
    ///
    /// # Errors
    /// `Kind::Plan` where that is no part of the tensor.
    pub(crate) fn of(plan: &Plan, job: &Job) -> Result<Option<Taken>> {
        let (name, _, elements) = job.logical();
        let Some((input, rows)) = plan.taken.get(&**name) else { return Ok(None) };
        let bad = |what: &str| {
            Error::new(Kind::Plan, format!("unusable plan: a part that is taken of `{}` {what}", shown(name)))
        };
        if *input >= job.inputs.len() {
            return Err(bad("leaves an input that does not exist"));
        }
        let lines = |(to, axes): &(u64, Vec<(u64, u64)>)| {
            let axes = axes.iter().map(|(n, to)| Axis { n: *n, to: *to, from: [0; 2] }).collect();
            Lines::new(*to, [0; 2], axes, elements, [1; 2]).map_err(bad)
        };
        Ok(Some(Taken { input: *input, boxes: rows.iter().map(lines).collect::<Result<_>>()? }))
    }

    /// Whether each of `n` elements from `first` on is taken.
    pub(crate) fn mask(&self, first: u64, n: usize, out: &mut Vec<bool>) {
        out.clear();
        out.resize(n, false);
        let range = first..first + n as u64;
        for lines in &self.boxes {
            lines.within(&range, &mut |line| {
                let at = (line.to - first) as usize;
                if line.step == 1 {
                    out[at..at + line.n].fill(true);
                } else {
                    (0..line.n).for_each(|i| out[at + i * line.step] = true);
                }
            });
        }
    }

    /// Whether all of `n` elements from `first` on are taken.
    pub(crate) fn has_all(&self, first: u64, n: usize) -> bool {
        let mut mask = Vec::new();
        self.mask(first, n, &mut mask);
        mask.into_iter().all(|taken| taken)
    }
}

/// Puts what is not taken of `from` in the place of what was computed.
pub(crate) fn restore<R: Copy>(mask: &[bool], from: &[R], out: &mut [R]) {
    for ((slot, kept), taken) in out.iter_mut().zip(from).zip(mask) {
        if !taken {
            *slot = *kept;
        }
    }
}

/// The same of elements of `size` bytes.
pub(crate) fn restore_bytes(mask: &[bool], size: usize, from: &[u8], out: &mut [u8]) {
    for ((slot, kept), taken) in out.chunks_exact_mut(size).zip(from.chunks_exact(size)).zip(mask) {
        if !taken {
            slot.copy_from_slice(kept);
        }
    }
}
