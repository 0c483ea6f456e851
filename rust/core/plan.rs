//! The plan: what to compute, from which stored tensors, into which files. Plain data, checked here against nothing
//! but itself; the run checks it against the sources.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::names::{is_inside, prefix};
use crate::error::{printable, shown, shown_path, Error, Kind, Result};
use crate::methods::operation::Operation;
use crate::storage::source::Source;

pub(crate) mod encoding;
pub(crate) mod job;
pub(crate) mod layout;
mod rows;

use encoding::Encoding;
use job::Job;
use layout::Layout;

/// The plan format that this engine reads.
pub(crate) const FORMAT: u32 = 1;
/// Raised whenever the same plan would give other bytes.
pub(crate) const ARITHMETIC: u32 = 3;

/// Bytes that the tensors of a plan may have together: far more than any model's, far less than a sum of offsets may.
const MOST: u64 = 1 << 60;

/// A parsed plan.
#[derive(Debug)]
pub(crate) struct Plan {
    /// BLAKE3 of the plan's bytes, in hexadecimal.
    pub digest: String,
    /// Where inputs are read from.
    pub sources: Vec<Source>,
    /// One output folder per α, all from one pass over the inputs.
    pub outputs: Vec<Output>,
    /// Names of the output shards.
    pub shards: Vec<String>,
    /// Operations that tensors refer to.
    pub operations: Vec<Operation>,
    /// Output tensors in file order.
    pub jobs: Vec<Job>,
    /// Formats that tensors are written in.
    pub encodings: Vec<Encoding>,
    /// Of tensors of which only a part is taken, by their name: the input that the rest is of, and the part.
    pub taken: HashMap<String, (usize, Vec<Part>)>,
    /// Round stochastically instead of to nearest.
    pub stochastic: bool,
    /// Seed of every random draw.
    pub seed: u64,
}

/// A part of a tensor, in elements: the first one, and for each dimension its length and the step.
pub(crate) type Part = (u64, Vec<(u64, u64)>);

/// One output folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Output {
    /// Name below the output folder; empty for that folder itself.
    pub folder: String,
    /// Factor of every step.
    pub alpha: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    arithmetic: u32,
    sources: Vec<Source>,
    outputs: Vec<Output>,
    shards: Vec<String>,
    operations: Vec<Operation>,
    #[serde(deserialize_with = "rows::jobs")]
    tensors: Vec<Job>,
    #[serde(default)]
    encodings: Vec<Encoding>,
    #[serde(default)]
    taken: HashMap<String, (usize, Vec<Part>)>,
    rounding: RoundingName,
    seed: u64,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum RoundingName {
    Nearest,
    Stochastic,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Kind::Plan, format!("unusable plan: {}", printable(&message.into())))
}

impl Plan {
    /// Parses and checks a plan.
    ///
    /// # Errors
    /// `Kind::Plan` for anything that is not a plan of this format, or that contradicts itself.
    pub(crate) fn parse(json: &[u8]) -> Result<Plan> {
        Plan::of(json, ARITHMETIC)
    }

    /// The same of a plan whose results are not kept: nothing of them is resumed, so that one made before a change of
    /// the arithmetic may be computed with that of today.
    ///
    /// # Errors
    /// As [`Plan::parse`].
    pub(crate) fn in_memory(json: &[u8]) -> Result<Plan> {
        Plan::of(json, 1)
    }

    fn of(json: &[u8], oldest: u32) -> Result<Plan> {
        let document: Document = serde_json::from_slice(json).map_err(|e| unreadable(&e.to_string()))?;
        if document.format != FORMAT || !(oldest..=ARITHMETIC).contains(&document.arithmetic) {
            return Err(bad(format!(
                "format {} and arithmetic {}, expected {FORMAT} and {ARITHMETIC}",
                document.format, document.arithmetic
            ))
            .hint("make the plan again with this version"));
        }
        if document.outputs.is_empty() {
            return Err(bad("no outputs"));
        }
        let mut folders = HashSet::new();
        for output in &document.outputs {
            if !output.alpha.is_finite() {
                return Err(bad(format!("alpha {}", output.alpha)));
            }
            let folder = output.folder.as_str();
            let plain = folder.is_empty() && document.outputs.len() == 1 || is_bare(folder);
            if !plain || !folders.insert(folder) {
                return Err(bad(format!("output folder `{}`", shown(folder))));
            }
        }
        let mut names = HashSet::new();
        for shard in &document.shards {
            if shard.rsplit('/').next().is_some_and(|name| name.len() > LONGEST_NAME) {
                return Err(long_name(shard));
            }
            if !is_inside(shard) || !shard.ends_with(".safetensors") || !names.insert(shard.as_str()) {
                return Err(bad(format!("shard name `{}`", shown(shard))));
            }
        }
        let jobs = document.tensors;
        for Job { name, shard, operation, inputs, packed, .. } in &jobs {
            let known = *shard < document.shards.len()
                && *operation < document.operations.len()
                && inputs.iter().all(|(source, _)| *source < document.sources.len())
                && packed.as_ref().is_none_or(|part| part.encoding < document.encodings.len());
            if !known {
                return Err(bad(format!("`{}` refers to something that does not exist", shown(name))));
            }
            document.operations[*operation].check(inputs.len()).map_err(|e| bad(format!("`{}`: {e}", shown(name))))?;
        }
        let outside =
            |job: &&Job| prefix(&document.shards[job.shard]).is_some_and(|folder| !job.name.starts_with(folder));
        if let Some(job) = jobs.iter().find(outside) {
            let shard = shown(&document.shards[job.shard]);
            return Err(bad(format!(
                "`{}` has not the folder of its file `{shard}` before its name",
                shown(&job.name)
            )));
        }
        if jobs.windows(2).any(|pair| pair[0].shard > pair[1].shard) {
            return Err(bad("tensors are not in the order of their shards"));
        }
        let mut bytes = jobs.iter().map(|job| job.dtype.bytes(&job.shape));
        let bytes = bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes?));
        if bytes.is_none_or(|bytes| bytes > MOST) {
            return Err(bad(format!("more than {MOST} bytes of tensors")));
        }
        let mut seen = HashSet::with_capacity(jobs.len());
        if let Some(twice) = jobs.iter().find(|job| !seen.insert(&*job.name)) {
            return Err(bad(format!("`{}` is written twice", shown(&twice.name))));
        }
        Ok(Plan {
            digest: blake3::hash(json).to_hex().to_string(),
            sources: document.sources,
            outputs: document.outputs,
            shards: document.shards,
            operations: document.operations,
            jobs,
            encodings: document.encodings,
            taken: document.taken,
            stochastic: document.rounding == RoundingName::Stochastic,
            seed: document.seed,
        })
    }

    /// Where every byte of every shard goes.
    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.shards, &self.jobs)
    }

    /// Input `index` of a job, for a message.
    pub(crate) fn input_name(&self, job: &Job, index: usize) -> String {
        let (source, name) = &job.inputs[index];
        format!("input `{}` of `{}`", shown(name), shown_path(Path::new(&self.sources[*source].path)))
    }
}

/// What a plan holds that this engine does not know is mostly newer than it.
fn unreadable(message: &str) -> Error {
    let error = bad(message);
    match ["unknown variant", "unknown field", "missing field"].iter().any(|part| message.starts_with(part)) {
        true => error.hint(
            "plan and engine are not of one version: where the Python package is newer than the engine, build it again \
             (`pip install -e .`); or make the plan again with this version",
        ),
        false => error,
    }
}

/// Bytes that a file name may have: it is written as `.NAME.part`, for which 255 are allowed.
const LONGEST_NAME: usize = 249;

fn long_name(shard: &str) -> Error {
    let message = format!("shard name `{}` of {} bytes, expected at most {LONGEST_NAME}", shown(shard), shard.len());
    bad(message).hint("rename the file, or lay the output out with `--max-shard-size`")
}

/// A name that stays in its folder.
fn is_bare(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
