//! A checkpoint: a folder's safetensors files as one table of tensors. Opening reads headers only.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::error::{shown, Error, Kind, Result};
use crate::file::heap::filled;
use crate::file::mapped::Mapped;
use crate::file::regular::{self, Stamp};
use crate::header::{self, Header, Lie, PREFIX};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::widen::widen;
use crate::kernels::Level;
use crate::workers;

mod discovery;
mod index;
pub(crate) mod names;
mod table;

use discovery::Found;
use names::prefix;
use table::Table;
pub use table::TensorRef;

/// Headers read at a time: enough to keep a few threads busy, few enough that hostile ones (up to 100 MB each) do not
/// fill the memory.
const BATCH: usize = 16;

/// One safetensors file.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Bare name; of a file in a sub-folder, its path from the checkpoint's folder.
    pub name: String,
    /// Where it was opened.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Bytes of the header's JSON, padding included, without the length before it.
    pub header_len: u64,
    /// The file's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// What the file was when its header was read.
    pub(crate) stamp: Stamp,
}

/// The tensors of a model, wherever they are stored.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder that holds the files.
    pub folder: PathBuf,
    /// In natural order of their names.
    pub files: Vec<SourceFile>,
    /// BLAKE3, in hex, over the files' lengths and headers in order.
    pub fingerprint: String,
    /// All files' metadata; of a key in several, the first file's value.
    pub metadata: BTreeMap<String, String>,
    /// Safetensors files in the folder that are not part of the checkpoint.
    pub unlisted: Vec<String>,
    /// Every tensor, by file, then by offset.
    table: Table,
    mapped: Vec<OnceLock<Mapped>>,
}

impl Checkpoint {
    /// Opens a folder, or one `.safetensors` file.
    ///
    /// # Errors
    /// `Kind::NotFound` where there is nothing, `Kind::Format` where what is there is not one sound checkpoint.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_found(discovery::find(path)?)
    }

    /// Opens one file of any name, such as an adapter's, which [`Checkpoint::open`] does not take for a model.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_found(discovery::single(path)?)
    }

    /// Opens these files of a folder as one checkpoint, in their order. The tensors of a file in a sub-folder have the
    /// sub-folder's path before their names: `conv_in.weight` in `unet/model.safetensors` is `unet/conv_in.weight`.
    ///
    /// # Errors
    /// `Kind::Format` for a name that leads out of the folder; else as [`Checkpoint::open`].
    pub fn open_files(folder: &Path, files: &[String]) -> Result<Checkpoint> {
        Checkpoint::from_found(discovery::listed(folder, files)?)
    }

    fn from_found(found: Found) -> Result<Checkpoint> {
        let Found { folder, files: names, index, unlisted } = found;
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        let mut digest = blake3::Hasher::new();
        let mut headers = Vec::with_capacity(names.len());
        for batch in paths.chunks(BATCH) {
            for one in workers::map(batch, |path| read_header(path)) {
                let (bytes, header, stamp) = one?;
                digest.update(&bytes);
                headers.push((header, stamp));
            }
        }
        let mut checkpoint = Checkpoint {
            mapped: names.iter().map(|_| OnceLock::new()).collect(),
            folder,
            files: Vec::with_capacity(names.len()),
            table: Table::default(),
            fingerprint: digest.finalize().to_hex().to_string(),
            metadata: BTreeMap::new(),
            unlisted,
        };
        let tensors = || headers.iter().flat_map(|(header, _)| &header.tensors);
        checkpoint.table.reserve(tensors().count(), tensors().map(|tensor| tensor.name.len()).sum());
        for ((name, path), (header, stamp)) in names.into_iter().zip(paths).zip(headers) {
            checkpoint.add(name, path, header, stamp)?;
        }
        if let Some(index) = index {
            checkpoint.agree(&index)?;
        }
        Ok(checkpoint)
    }

    /// Enters a file and its tensors.
    fn add(&mut self, name: String, path: PathBuf, header: Header, stamp: Stamp) -> Result<()> {
        let file = self.files.len();
        for mut tensor in header.tensors {
            if let Some(prefix) = prefix(&name) {
                tensor.name.insert_str(0, prefix);
            }
            let entry = TensorRef {
                dtype: tensor.dtype,
                shape: &tensor.shape,
                file,
                offset: header.data_start + tensor.begin,
                len: tensor.end - tensor.begin,
            };
            if let Err(other) = self.table.insert(&tensor.name, entry) {
                let (tensor, first, second) = (shown(&tensor.name), shown(&self.files[other].name), shown(&name));
                return Err(Error::new(Kind::Format, format!("tensor `{tensor}` is in both `{first}` and `{second}`"))
                    .at(&self.folder));
            }
        }
        for (key, value) in &header.metadata {
            self.metadata.entry(key.clone()).or_insert_with(|| value.clone());
        }
        self.files.push(SourceFile {
            name,
            path,
            size: stamp.size,
            header_len: header.data_start - PREFIX as u64,
            metadata: header.metadata,
            stamp,
        });
        Ok(())
    }

    /// The index names exactly the tensors that are there, each in its file.
    fn agree(&self, index: &index::Index) -> Result<()> {
        let wrong = |message: String| {
            Err(Error::new(Kind::Format, message)
                .at(&self.folder.join(&index.name))
                .hint("index and shards come from different saves: download or save the checkpoint again"))
        };
        let listed = &index.weight_map;
        // Where each of the index's files stands among those opened.
        let opened: HashMap<&str, usize> = self.files.iter().map(|file| &*file.name).zip(0..).collect();
        let positions: Vec<Option<usize>> = listed.files.iter().map(|file| opened.get(&**file).copied()).collect();
        for (name, tensor) in self.iter() {
            let actual = tensor.file;
            let Some(file) = listed.tensors.get(name) else {
                return wrong(format!(
                    "tensor `{}` of `{}` is not listed",
                    shown(name),
                    shown(&self.files[actual].name)
                ));
            };
            if positions[*file] != Some(actual) {
                let (file, actual) = (shown(&listed.files[*file]), shown(&self.files[actual].name));
                return wrong(format!("tensor `{}` is not in `{file}` but in `{actual}`", shown(name)));
            }
        }
        if listed.tensors.len() == self.table.len() {
            return Ok(());
        }
        // The least name: a map has no first one, and a message should not change from run to run.
        let missing = listed.tensors.iter().filter(|(name, _)| self.table.get(name).is_none()).min();
        missing.map_or(Ok(()), |(name, file)| {
            let file = shown(&listed.files[*file]);
            wrong(format!("tensor `{}` is not in `{file}` nor in another file", shown(name)))
        })
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// `Kind::NotFound`.
    pub fn get(&self, name: &str) -> Result<TensorRef<'_>> {
        self.table.get(name).ok_or_else(|| self.missing(name))
    }

    /// The error for a name that no tensor has.
    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::new(Kind::NotFound, format!("there is no tensor `{}`", shown(name))).at(&self.folder)
    }

    /// A tensor by name, if there is one.
    pub fn find(&self, name: &str) -> Option<TensorRef<'_>> {
        self.table.get(name)
    }

    /// A tensor with its name, by its position among all.
    pub fn nth(&self, position: usize) -> Option<(&str, TensorRef<'_>)> {
        (position < self.table.len()).then(|| (self.table.name(position), self.table.at(position)))
    }

    /// Every tensor with its name, by file, then by offset.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, TensorRef<'_>)> {
        (0..self.table.len()).map(|position| (self.table.name(position), self.table.at(position)))
    }

    /// The names in the same order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.table.len()).map(|position| self.table.name(position))
    }

    /// A file, mapped on first use.
    ///
    /// # Errors
    /// As [`Mapped::open`], or the file has changed since its header was read.
    pub fn mapped(&self, file: usize) -> Result<&Mapped> {
        match self.mapped[file].get() {
            Some(mapped) => Ok(mapped),
            None => {
                let opened = self.map_one(&self.files[file])?;
                // Two threads may both get here; the second mapping is dropped.
                Ok(self.mapped[file].get_or_init(|| opened))
            }
        }
    }

    /// All files, mapped for the caller.
    ///
    /// # Errors
    /// As [`Checkpoint::mapped`].
    pub fn map(&self) -> Result<Vec<Mapped>> {
        self.files.iter().map(|file| self.map_one(file)).collect()
    }

    fn map_one(&self, file: &SourceFile) -> Result<Mapped> {
        let mapped = Mapped::open(&file.path)?;
        file.stamp.same(mapped.stamp(), &file.path)?;
        Ok(mapped)
    }

    /// The bytes of a tensor, by ordinary reads.
    ///
    /// # Errors
    /// `Kind::NotFound` where there is no such tensor, `Kind::Format` where the file has changed since its header was
    /// read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.get(name)?;
        let file = &self.files[tensor.file];
        let (opened, stamp) = regular::open(&file.path)?;
        file.stamp.same(&stamp, &file.path)?;
        let mut bytes = regular::buffer(tensor.len, &file.path)?;
        regular::read_at(&opened, &file.path, &mut bytes, tensor.offset)?;
        file.stamp.check(&file.path)?;
        Ok(bytes)
    }

    /// Elements `start .. start + count` of a tensor, as far as it goes, widened (f64: narrowed) to f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; `Kind::Format` where it is not of a floating-point type.
    pub fn sample(&self, name: &str, start: u64, count: u64) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        if !tensor.dtype.is_float() {
            let message = format!("tensor `{}` is {}, not a floating-point type", shown(name), tensor.dtype);
            return Err(Error::new(Kind::Format, message).at(&self.folder));
        }
        let size = tensor.dtype.size() as u64;
        let elements = tensor.len / size;
        let range = start.min(elements)..start.saturating_add(count).min(elements);
        let (mapped, mut scratch) = (self.mapped(tensor.file)?, Vec::new());
        let bytes = mapped.read(tensor.offset + range.start * size..tensor.offset + range.end * size, &mut scratch)?;
        let mut values = filled(range.end - range.start, 0.0)?;
        let _ieee = ControlRegister::ieee();
        widen(Level::chosen()?, tensor.dtype, bytes, &mut values);
        mapped.unchanged()?;
        Ok(values)
    }

    /// No file has changed since its header was read.
    ///
    /// # Errors
    /// `Kind::Format` saying which and how.
    pub fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.stamp.check(&file.path))
    }
}

/// The length and JSON of a file, and what they say.
fn read_header(path: &Path) -> Result<(Vec<u8>, Header, Stamp)> {
    let (file, stamp) = regular::open(path)?;
    if stamp.size < PREFIX as u64 {
        return Err(Error::from(Lie::NoPrefix { file_len: stamp.size }).at(path));
    }
    let mut prefix = [0; PREFIX];
    regular::read_at(&file, path, &mut prefix, 0)?;
    // At most `header::LIMIT` and within the file, so what follows is allocated on good grounds.
    let length = header::length(&prefix, Some(stamp.size)).map_err(|error| error.at(path))?;
    let mut bytes = regular::buffer(PREFIX as u64 + length, path)?;
    regular::read_at(&file, path, &mut bytes, 0)?;
    let header = header::parse(&bytes[PREFIX..], stamp.size).map_err(|error| error.at(path))?;
    Ok((bytes, header, stamp))
}
