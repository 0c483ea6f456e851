//! The plan: what to compute, from which stored tensors, into which files. Plain data, checked here against nothing
//! but itself; the run checks it against the sources.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::header;
use crate::op::Operation;

mod rows;

/// The plan format that this engine reads.
pub const FORMAT: u32 = 1;
/// Raised whenever the same plan would give other bytes.
pub const ARITHMETIC: u32 = 2;
/// Data of every output shard starts at a multiple of this many bytes.
const ALIGN: usize = 4096;

/// A parsed plan.
#[derive(Debug)]
pub struct Plan {
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
    /// Round stochastically instead of to nearest.
    pub stochastic: bool,
    /// Seed of every random draw.
    pub seed: u64,
}

/// A checkpoint, a saved vector or an adapter.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// The folder, or a single file.
    pub path: String,
    /// Weight files and their sizes, in order.
    pub files: Vec<(String, u64)>,
    /// BLAKE3 over the headers of those files.
    pub fingerprint: String,
    /// Of an adapter: the source that it is added to; without one its tensors are its changes alone.
    #[serde(default)]
    pub base: Option<usize>,
    /// Of an adapter: the factors of each weight that it changes.
    #[serde(default)]
    pub factors: BTreeMap<String, Factors>,
}

/// Where the factors of one weight are stored: A, B, the scale of their product, whether the weight is transposed.
#[derive(Clone, Debug, Deserialize)]
pub struct Factors(pub String, pub String, pub f64, pub bool);

/// How the tensors of a source are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// One stored tensor per logical tensor.
    Checkpoint,
    /// A saved task vector: dense, index or mask.
    Vector,
    /// A LoRA adapter: A and B factors.
    Lora,
    /// Tensors that the embedding process holds and hands over with the plan.
    Memory,
}

/// One output folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name below the output folder; empty for that folder itself.
    pub folder: String,
    /// Factor of every step.
    pub alpha: f64,
}

/// One output tensor.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name.
    pub name: Arc<str>,
    /// Its type in the output.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Arc<[u64]>,
    /// Index of its shard.
    pub shard: usize,
    /// Index of its operation.
    pub operation: usize,
    /// (source, stored name) of each input.
    pub inputs: Box<[(usize, Arc<str>)]>,
    /// Elements.
    pub elements: u64,
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
    Error::new(Kind::Plan, format!("unusable plan: {}", message.into()))
}

impl Plan {
    /// Parses and checks a plan.
    ///
    /// # Errors
    /// `Kind::Plan` for anything that is not a plan of this format, or that contradicts itself.
    pub fn parse(json: &[u8]) -> Result<Plan> {
        let document: Document = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
        if document.format != FORMAT || document.arithmetic != ARITHMETIC {
            return Err(bad(format!(
                "format {} and arithmetic {}, expected {FORMAT} and {ARITHMETIC}",
                document.format, document.arithmetic
            ))
            .hint("make the plan anew with this version"));
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
                return Err(bad(format!("output folder `{}`", folder.escape_debug())));
            }
        }
        let mut names = HashSet::new();
        for shard in &document.shards {
            if !is_bare(shard) || !shard.ends_with(".safetensors") || !names.insert(shard.as_str()) {
                return Err(bad(format!("shard name `{}`", shard.escape_debug())));
            }
        }
        let jobs = document.tensors;
        for Job { name, shard, operation, inputs, .. } in &jobs {
            let known = *shard < document.shards.len()
                && *operation < document.operations.len()
                && inputs.iter().all(|(source, _)| *source < document.sources.len());
            if !known {
                return Err(bad(format!("`{}` refers to something that is not there", name.escape_debug())));
            }
            document.operations[*operation]
                .check(inputs.len())
                .map_err(|e| bad(format!("`{}`: {e}", name.escape_debug())))?;
        }
        if jobs.windows(2).any(|pair| pair[0].shard > pair[1].shard) {
            return Err(bad("tensors are not in the order of their shards"));
        }
        let mut seen = HashSet::with_capacity(jobs.len());
        if let Some(twice) = jobs.iter().find(|job| !seen.insert(&*job.name)) {
            return Err(bad(format!("`{}` is written twice", twice.name.escape_debug())));
        }
        Ok(Plan {
            digest: blake3::hash(json).to_hex().to_string(),
            sources: document.sources,
            outputs: document.outputs,
            shards: document.shards,
            operations: document.operations,
            jobs,
            stochastic: document.rounding == RoundingName::Stochastic,
            seed: document.seed,
        })
    }

    /// Where every byte of every shard goes.
    pub fn layout(&self) -> Layout {
        let mut offsets = vec![0u64; self.jobs.len()];
        let mut shards = Vec::with_capacity(self.shards.len());
        let mut next = 0;
        for (index, name) in self.shards.iter().enumerate() {
            let first = next;
            while next < self.jobs.len() && self.jobs[next].shard == index {
                next += 1;
            }
            let jobs = first..next;
            let rows = self.jobs[jobs.clone()].iter().map(|job| (&*job.name, job.dtype, &*job.shape));
            let header = header::encode(rows, &[("format", "pt")], ALIGN);
            let mut at = header.len() as u64;
            for job in jobs.clone() {
                offsets[job] = at;
                at += self.jobs[job].elements * self.jobs[job].dtype.size() as u64;
            }
            shards.push(Shard { name: name.clone(), header, size: at, jobs });
        }
        Layout { shards, offsets }
    }
}

/// A name that stays in its folder.
fn is_bare(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// The byte layout of the output.
#[derive(Debug)]
pub struct Layout {
    /// Shards in order.
    pub shards: Vec<Shard>,
    /// Offset in its file of each job's first byte.
    pub offsets: Vec<u64>,
}

/// One output file.
#[derive(Debug)]
pub struct Shard {
    /// File name.
    pub name: String,
    /// Length prefix, JSON and padding.
    pub header: Vec<u8>,
    /// File size.
    pub size: u64,
    /// The jobs that it holds.
    pub jobs: std::ops::Range<usize>,
}
