//! Where a plan reads from: what the plan says of it, and what the embedding process holds.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::Deserialize;

use super::packed::table::Table;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

/// A checkpoint, a saved vector or an adapter.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// The folder, or a single file.
    pub path: String,
    /// Weight files and their sizes, in order: for who reads a plan; here the fingerprint stands for them, unless they
    /// are `listed`.
    files: Vec<(String, u64)>,
    /// Whether these very files are the source, and not what is found in the folder: some lie in sub-folders, or are
    /// those of a variant.
    #[serde(default)]
    listed: bool,
    /// BLAKE3 over the headers of those files.
    pub fingerprint: String,
    /// Of an adapter: the source that it is added to; without one its tensors are its changes alone.
    #[serde(default)]
    pub base: Option<usize>,
    /// Of an adapter: the factors of each weight that it changes.
    #[serde(default)]
    pub factors: BTreeMap<String, Factors>,
    /// Of an adapter: the factors of weights that are parts of a tensor, by its name.
    #[serde(default)]
    pub parts: BTreeMap<String, Vec<FactorsPart>>,
    /// Of an adapter: where whole weights are stored that take the place of the base's, by the names of these.
    #[serde(default)]
    pub whole: BTreeMap<String, String>,
    /// Tensors that it stores in another layout, by the names that the plan has for them.
    #[serde(default)]
    pub assembled: HashMap<String, Assembled>,
    /// The logical tensors that are stored as codes with scales.
    #[serde(default)]
    pub packed: Table,
    /// Embeddings and heads whose rows are in the order of another vocabulary, by the names that the plan has for them.
    #[serde(default)]
    pub rows: HashMap<String, Rows>,
}

/// A matrix whose rows are rows of stored ones, of this source or of others: its shape, those tables, which rows are rows
/// of a table, and which are the mean of several; all others are zero.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rows(pub Vec<u64>, pub Vec<RowTable>, pub Vec<RowRun>, pub Vec<RowMean>);

/// A stored matrix: the source, its name there, its shape.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RowTable(pub usize, pub String, pub Vec<u64>);

/// Rows that follow each other here and there: the first one here, how many, the table, the first one there.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct RowRun(pub u64, pub u64, pub usize, pub u64);

/// A row that is the mean of rows: which, and for each of those its table and its number.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RowMean(pub u64, pub Vec<(usize, u64)>);

impl Source {
    /// The files to open where they are listed.
    pub(crate) fn listed(&self) -> Option<Vec<String>> {
        self.listed.then(|| self.files.iter().map(|(name, _)| name.clone()).collect())
    }

    /// The folder or file, and the files that lie in sub-folders.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let path = PathBuf::from(&self.path);
        let below = self.files.iter().filter(|(name, _)| self.listed && name.contains('/'));
        let below: Vec<PathBuf> = below.map(|(name, _)| path.join(name)).collect();
        std::iter::once(path).chain(below)
    }
}

/// Says where the sources of a plan lie on this machine, where that is not under the paths that the plan has for them; a
/// path that is empty leaves that of the plan.
///
/// # Errors
/// `Kind::Plan` where there are more or fewer paths than sources.
pub(crate) fn place(sources: &mut [Source], paths: &[PathBuf]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    if paths.len() != sources.len() {
        let message = format!("{} paths of sources are given, the plan has {}", paths.len(), sources.len());
        return Err(Error::new(Kind::Plan, message));
    }
    for (source, path) in sources.iter_mut().zip(paths).filter(|(_, path)| !path.as_os_str().is_empty()) {
        source.path = path.to_string_lossy().into_owned();
    }
    Ok(())
}

/// A tensor made of pieces of stored ones: its shape, the pieces, which together have each of its elements once, and the
/// shapes of the stored tensors where their files do not say them.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Assembled(pub Vec<u64>, pub Vec<PieceRow>, #[serde(default)] pub HashMap<String, Vec<u64>>);

/// A box of elements: the stored tensor (none, where they are zero), its sizes, the first element in the assembled tensor
/// and the strides there, the first element in the stored tensor and the strides there.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PieceRow(pub String, pub Vec<u64>, pub u64, pub Vec<u64>, pub u64, pub Vec<u64>);

/// Where the factors of one weight are stored: A, B, the scale of their product, whether the weight is transposed.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Factors(pub String, pub String, pub f64, pub bool);

/// Where the factors of a part of a tensor are stored, all in elements: A, B, the scale of their product, its rank, where
/// A and B begin, the steps between ranks in A and B, the first element in the tensor, and the dimensions of the part:
/// length, step in the tensor, steps in A and B.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct FactorsPart(
    pub String,
    pub String,
    pub f64,
    pub u64,
    pub [u64; 2],
    pub [u64; 2],
    pub u64,
    pub Vec<(u64, u64, [u64; 2])>,
);

/// How the tensors of a source are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceKind {
    /// One stored tensor per logical tensor.
    Checkpoint,
    /// A saved task vector: dense, index or mask.
    Vector,
    /// A LoRA adapter: A and B factors.
    Lora,
    /// Tensors that the embedding process holds and hands over with the plan.
    Memory,
}

/// A tensor that the embedding process holds.
#[derive(Clone, Debug)]
pub struct Buffer<'a> {
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements in row-major order, little-endian.
    pub bytes: &'a [u8],
}

/// The tensors of a source of kind [`SourceKind::Memory`], by name.
pub type Buffers<'a> = HashMap<String, Buffer<'a>>;
