//! The packed tensors of a run, found among the rows of its plan.

use std::collections::HashMap;

use super::bands::Banded;
use super::packed::{belong, is_written, Packed, Parts};
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::Level;
use crate::plan::encoding::Role;
use crate::plan::Plan;
use crate::run::program::Program;

/// The packed tensors of a run.
pub(crate) struct Encodings {
    tensors: Vec<Banded>,
    /// By job.
    of: Vec<Option<u32>>,
}

impl Encodings {
    /// Those of a plan; `outputs` are the outputs that a shard is to be written in.
    ///
    /// # Errors
    /// `Kind::Plan` for parts that are missing, or do not fit their format or each other.
    pub(crate) fn of(
        plan: &Plan,
        programs: &[Program<'_>],
        level: Level,
        outputs: &dyn Fn(usize) -> Vec<usize>,
    ) -> Result<Encodings> {
        let mut found: HashMap<&str, Vec<(Role, usize)>> = HashMap::new();
        let mut names = Vec::new();
        for (index, job) in plan.jobs.iter().enumerate() {
            let Some(part) = &job.packed else { continue };
            let parts = found.entry(&part.name).or_insert_with(|| {
                names.push(&*part.name);
                Vec::new()
            });
            let is_new = parts.iter().all(|(role, other)| *role != part.role && belong(plan, &plan.jobs[*other], job));
            if !is_new || !is_written(&plan.encodings[part.encoding].format) {
                let message = format!("unusable plan: the parts of `{}` do not belong together", shown(&part.name));
                return Err(Error::new(Kind::Plan, message));
            }
            parts.push((part.role, index));
        }
        let (mut tensors, mut of) = (Vec::with_capacity(names.len()), vec![None; plan.jobs.len()]);
        for name in names {
            let Some(mut jobs) = found.remove(name) else { continue };
            jobs.sort_by_key(|(role, _)| *role != Role::Codes);
            let mut union: Vec<usize> = jobs.iter().flat_map(|(_, job)| outputs(plan.jobs[*job].shard)).collect();
            union.sort_unstable();
            union.dedup();
            jobs.iter().for_each(|(_, job)| of[*job] = Some(tensors.len() as u32));
            let bytes = |(_, job): &(Role, usize)| {
                let job = &plan.jobs[*job];
                outputs(job.shard).len() as u64 * job.dtype.bytes(&job.shape).unwrap_or(0)
            };
            let left = jobs.iter().map(bytes).sum();
            let writes_codes = jobs.first().is_some_and(|(_, job)| !outputs(plan.jobs[*job].shard).is_empty());
            let packed = Packed::new(Parts { plan, jobs, outputs: union, writes_codes }, programs, level)?;
            tensors.push(Banded::new(packed, left));
        }
        Ok(Encodings { tensors, of })
    }

    /// The tensor that a job writes a part of.
    pub(crate) fn tensor(&self, job: usize) -> Option<&Banded> {
        self.tensors.get((*self.of.get(job)?)? as usize)
    }

    /// The job whose blocks are best written before those of a part: that of its codes.
    pub(crate) fn after(&self, job: usize) -> Option<usize> {
        self.tensor(job).map(|tensor| tensor.packed.job()).filter(|codes| *codes != job)
    }

    /// Bytes that a thread has of the largest patches, and of bands between blocks.
    pub(crate) fn memory(&self) -> u64 {
        self.tensors.iter().map(Banded::memory).max().unwrap_or(0)
    }
}
