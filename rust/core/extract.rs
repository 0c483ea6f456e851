//! donor − reference as an artifact of its own: without loss, each tensor in the narrowest exact type and the smallest
//! of three encodings.
//!
//! Two passes: the first finds out what each tensor needs, from which the sizes of all files follow; the second writes.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::Mutex;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::header;
use crate::kernels::combine::difference;
use crate::kernels::encode::{compact, facts, lost, lost_places, Facts};
use crate::kernels::narrow::{narrow, Rounding};
use crate::kernels::{Level, TILE};
use crate::measure::NonFinite;
use crate::monitor::Monitor;
use crate::output::folder::OutputFolder;
use crate::output::shard::ShardFile;
use crate::plan::FORMAT;
use crate::run::Options;
use crate::storage::encoding::{Encoding, Form};
use crate::storage::exact_elements;
use crate::storage::input::{Input, Scratch};
use crate::storage::source::Source;
use crate::storage::sources::{Buffers, Sources};
use crate::tensor::{next_id, Tensor, CHUNK};
use crate::threads::{lock, Threads};

mod report;

use report::Report;

/// Data of every file starts at a multiple of this many bytes.
const ALIGN: usize = 4096;

/// What to extract.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractPlan {
    format: u32,
    /// Donor and reference.
    sources: Vec<Source>,
    /// (name, shape, donor's name, reference's name)
    tensors: Vec<(String, Vec<u64>, String, String)>,
    /// Bytes after which a new file begins.
    max_shard_size: u64,
    /// A lossy, named choice of value type; lossless without it.
    dtype: Option<String>,
}

/// One tensor of the vector.
struct Item<'a> {
    name: &'a str,
    shape: &'a [u64],
    elements: u64,
    inputs: [Input<'a>; 2],
    /// Type that decides the compute type when the vector is applied.
    origin: Dtype,
    /// Per chunk, and in all.
    chunks: Vec<Facts>,
    total: Facts,
    encoding: Encoding,
}

/// A stored tensor and where it goes.
struct Place {
    item: usize,
    /// Offset in its file of places and of values.
    places: u64,
    values: u64,
    /// Of what is stored beside them, in the order of [`exact_elements::PARTS`].
    exact: [u64; 3],
}

/// One chunk of one tensor.
struct Piece<'a> {
    place: &'a Place,
    chunk: u64,
    /// Values before it, and elements before it that are stored beside them.
    rank: u64,
    lost: u64,
}

struct File {
    name: String,
    header: Vec<u8>,
    size: u64,
    places: Vec<Place>,
}

/// Extracts a vector into the folder `out` and returns the report as JSON; `memories` as in [`crate::run::run_with`].
///
/// # Errors
/// Whatever the sources or the output folder refuse.
pub fn extract(
    plan_json: &[u8],
    memories: &[Buffers<'_>],
    out: &Path,
    options: &Options,
    monitor: &Monitor,
) -> Result<String> {
    let started = Instant::now();
    let bad = |e: String| Error::new(Kind::Plan, format!("unusable plan: {e}"));
    let plan: ExtractPlan = serde_json::from_slice(plan_json).map_err(|e| bad(e.to_string()))?;
    if plan.format != FORMAT || plan.sources.len() != 2 {
        return Err(bad(format!("format {} with {} sources", plan.format, plan.sources.len())));
    }
    let lossy = match &plan.dtype {
        None => None,
        Some(name) => {
            let dtype = Dtype::from_name(name).filter(|dtype| dtype.is_float());
            Some(dtype.ok_or_else(|| bad(format!("type `{}`", name.escape_debug())))?)
        }
    };
    let level = Level::chosen()?;
    let sources = Sources::of(&plan.sources, memories)?;
    let pool = crate::threads::pool(options.threads)?;
    let non_finite = NonFinite::default();
    let mut items = Vec::with_capacity(plan.tensors.len());
    for (name, shape, donor, reference) in &plan.tensors {
        items.push(Item::new(&sources, name, shape, [donor, reference])?);
    }
    let paths = sources.paths();
    let inputs: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    OutputFolder::foresee(out, &inputs, plan_json, &options.folder)?;
    monitor.expect(2 * items.iter().map(Item::cost).sum::<u64>());

    let work = Work { level, monitor, pool: &pool, lossy };
    work.measure(&mut items, &non_finite)?;
    let counted = |job: usize, place| {
        let name = items[job].name.escape_debug();
        let source = usize::from(place == crate::measure::Place::Input(1));
        format!("`{name}` of `{}`", plan.sources[source].path)
    };
    if let (false, Some(error)) = (options.allow_non_finite, non_finite.error(counted)) {
        return Err(error);
    }
    let beyond = items.iter().find(|item| item.total.largest.is_infinite());
    if let (false, Some(item)) = (options.allow_non_finite, beyond) {
        let (name, dtype) = (item.name.escape_debug(), lossy.unwrap_or(Dtype::F64));
        let message = format!("values that are not finite: a difference in `{name}` is beyond the range of {dtype}");
        return Err(Error::new(Kind::NonFinite, message)
            .hint("exclude the tensor (`--exclude`), choose a wider type, or go on with `--force non-finite`"));
    }
    for item in &mut items {
        item.encoding = Encoding::smallest(item.elements, &item.total, lossy);
    }
    let files = lay_out(&items, plan.max_shard_size)?;
    let sizes: Vec<(String, u64)> = files.iter().map(|file| (file.name.clone(), file.size)).collect();
    let folder = OutputFolder::admit(out, &inputs, plan_json, &sizes, &options.folder)?;
    let resumed = folder.done().len();
    for file in &files {
        if !folder.done().contains_key(&file.name) {
            work.write(file, &items, &folder)?;
        }
    }
    sources.unchanged()?;
    let report = Report {
        seconds: started.elapsed().as_secs_f64(),
        bytes_read: items.iter().map(Item::cost).sum(),
        bytes_written: files.iter().map(|file| file.size).sum(),
        threads: pool.current_num_threads(),
        cpu_level: level.name(),
        resumed_shards: resumed,
        shards: report::shards(&files, &folder),
        weight_map: report::WeightMap { items: &items, files: &files },
        tensors: report::tensors(&items, &files),
    };
    let text = crate::run::report::text(&report)?;
    folder.close()?;
    Ok(text)
}

impl<'a> Item<'a> {
    fn new(sources: &'a Sources<'_>, name: &'a str, shape: &'a [u64], from: [&str; 2]) -> Result<Self> {
        let elements: u64 = shape.iter().product();
        let inputs = [sources.stored(0, from[0], shape, elements)?, sources.stored(1, from[1], shape, elements)?];
        let types = [inputs[0].dtype, inputs[1].dtype];
        if let Some(other) = types.iter().find(|dtype| !dtype.is_float()) {
            let message = format!("`{}` is {other}, not of a floating-point type", name.escape_debug());
            return Err(Error::new(Kind::Plan, message));
        }
        let origin = if types.iter().all(|dtype| dtype.is_narrow()) { Dtype::BF16 } else { Dtype::F32 };
        let total = Facts::default();
        Ok(Item { name, shape, elements, inputs, origin, chunks: Vec::new(), total, encoding: Encoding::zero() })
    }

    fn cost(&self) -> u64 {
        self.inputs.iter().map(|input| input.cost(self.elements)).sum()
    }

    /// Whether a run may add it in f32.
    fn is_narrow(&self) -> bool {
        self.origin == Dtype::BF16
    }

    /// Types of what is stored beside the differences, in the order of [`exact_elements::PARTS`].
    fn exact_types(&self) -> [Dtype; 3] {
        [self.encoding.index, self.inputs[0].dtype, self.inputs[1].dtype]
    }

    /// The stored tensors.
    fn rows(&self) -> Vec<(String, Dtype, Vec<u64>)> {
        let mut rows = self.encoding.rows(self.name, self.shape, self.elements, self.total.changed);
        rows.extend(exact_elements::rows(self.name, self.exact_types(), self.total.lost));
        rows
    }

    /// Bytes stored.
    fn bytes(&self) -> u64 {
        let each: u64 = self.exact_types().iter().map(|dtype| dtype.size() as u64).sum();
        self.encoding.bytes(self.elements, self.total.changed) + self.total.lost * each
    }

    /// Where it goes in a file from `at` on.
    fn place(&self, item: usize, at: u64) -> Place {
        let values = at + self.encoding.places_bytes(self.elements, self.total.changed);
        let mut next = at + self.encoding.bytes(self.elements, self.total.changed);
        let exact = self.exact_types().map(|dtype| {
            let offset = next;
            next += self.total.lost * dtype.size() as u64;
            offset
        });
        Place { item, places: at, values, exact }
    }
}

/// Stored tensors in files of at most `limit` bytes of data, in the order of the items.
fn lay_out(items: &[Item<'_>], limit: u64) -> Result<Vec<File>> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut size = 0;
    for (index, item) in items.iter().enumerate().filter(|(_, item)| item.encoding.form != Form::Zero) {
        let more = item.bytes();
        if size > 0 && size + more > limit.max(1) {
            groups.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(group) = groups.last_mut() {
            group.push(index);
        }
    }
    let count = groups.len();
    let mut files = Vec::with_capacity(count);
    let mut names = std::collections::HashSet::new();
    for (number, group) in groups.into_iter().enumerate() {
        let name = match count {
            1 => "vector.safetensors".to_owned(),
            _ => format!("vector-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let mut rows: Vec<(String, Dtype, Vec<u64>)> = Vec::new();
        let mut metadata: Vec<(String, String)> = vec![("format".into(), "pt".into())];
        for &index in &group {
            let item = &items[index];
            rows.extend(item.rows());
            if item.origin != Dtype::BF16 {
                metadata.push((format!("taskvec.origin.{}", item.name), item.origin.name().to_owned()));
            }
        }
        if let Some((twice, _, _)) = rows.iter().find(|(name, _, _)| !names.insert(name.clone())) {
            let message = format!("two tensors of the vector would be stored as `{}`", twice.escape_debug());
            return Err(Error::new(Kind::Plan, message).hint("leave one of them out with `--exclude`"));
        }
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let borrowed = rows.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
        let header = header::encode(borrowed, &metadata, ALIGN);
        let mut at = header.len() as u64;
        let mut places = Vec::with_capacity(group.len());
        for index in group {
            places.push(items[index].place(index, at));
            at += items[index].bytes();
        }
        files.push(File { name, header, size: at, places });
    }
    Ok(files)
}

thread_local! {
    /// The differences of a tile: to set them to zero for every tile takes as long as to compute them.
    static ROOM: RefCell<Vec<f64>> = RefCell::new(vec![0.0; TILE]);
}

/// What both passes share.
struct Work<'a> {
    level: Level,
    monitor: &'a Monitor,
    pool: &'a rayon::ThreadPool,
    lossy: Option<Dtype>,
}

impl Work<'_> {
    /// First pass: facts of every chunk of every tensor.
    fn measure(&self, items: &mut [Item<'_>], non_finite: &NonFinite) -> Result<()> {
        let found: Vec<Mutex<Vec<Facts>>> = items.iter().map(|_| Mutex::new(Vec::new())).collect();
        let (large, small): (Vec<usize>, Vec<usize>) =
            (0..items.len()).partition(|index| items[*index].elements >= 8 * CHUNK);
        let one = |index: usize, threads: Threads<'_>| -> Result<()> {
            let item = &items[index];
            let tensor = Tensor {
                id: next_id(),
                job: index,
                name: item.name,
                shape: item.shape,
                elements: item.elements,
                inputs: &item.inputs,
                seed: 0,
                level: self.level,
                monitor: self.monitor,
                non_finite,
                passes: AtomicUsize::new(0),
            };
            let chunks = tensor.fold::<f64, Facts, _, _>(
                threads,
                |_| Facts::default(),
                |sum, tile| {
                    let (donor, reference) = (tile.input(0), tile.input(1));
                    ROOM.with_borrow_mut(|room| {
                        let delta = &mut room[..donor.len()];
                        difference(self.level, donor, reference, delta);
                        self.round(delta);
                        let lost = if self.lossy.is_some() {
                            0
                        } else {
                            lost(self.level, donor, reference, delta, item.is_narrow())
                        };
                        sum.merge(&Facts { lost, ..facts(self.level, delta) });
                    });
                },
            )?;
            self.monitor.advance(item.cost());
            *lock(&found[index]) = chunks;
            Ok(())
        };
        for index in large {
            one(index, Threads::Pool(self.pool))?;
        }
        crate::threads::each(self.pool, self.monitor, small.len(), |i| one(small[i], Threads::Alone))?;
        for (item, chunks) in items.iter_mut().zip(found) {
            item.chunks = chunks.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            item.chunks.iter().for_each(|chunk| item.total.merge(chunk));
        }
        Ok(())
    }

    /// The named lossy type, if any: what is rounded away is not stored.
    fn round(&self, delta: &mut [f64]) {
        if let Some(dtype) = self.lossy {
            let mut bytes = [0; TILE * 8];
            narrow(self.level, dtype, delta, Rounding::Nearest, &mut bytes[..delta.len() * dtype.size()]);
        }
    }

    /// Second pass for one file.
    fn write(&self, file: &File, items: &[Item<'_>], folder: &OutputFolder) -> Result<()> {
        let shard = ShardFile::create(folder, &file.name, file.size)?;
        shard.allocate(0..file.size)?;
        shard.write_at(0, &file.header)?;
        let pieces: Vec<Piece<'_>> = file
            .places
            .iter()
            .flat_map(|place| {
                let (mut rank, mut lost) = (0, 0);
                items[place.item].chunks.iter().enumerate().map(move |(chunk, facts)| {
                    let piece = Piece { place, chunk: chunk as u64, rank, lost };
                    rank += facts.changed;
                    lost += facts.lost;
                    piece
                })
            })
            .collect();
        crate::threads::each(self.pool, self.monitor, pieces.len(), |i| {
            let piece = &pieces[i];
            self.piece(&shard, piece, &items[piece.place.item])
        })?;
        let threads = self.pool.current_num_threads();
        let digest = shard.digest(threads, &|| self.monitor.is_cancelled())?;
        shard.publish(&digest, &json!({}))
    }

    fn piece(&self, shard: &ShardFile, piece: &Piece<'_>, item: &Item<'_>) -> Result<()> {
        let Piece { place, chunk, rank, .. } = *piece;
        let (encoding, facts) = (&item.encoding, &item.chunks[chunk as usize]);
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(item.elements);
        let n = (range.end - range.start) as usize;
        let (mut donor_scratch, mut reference_scratch) = (Scratch::default(), Scratch::default());
        let donor = item.inputs[0].open(range.clone(), &mut donor_scratch)?;
        let reference = item.inputs[1].open(range.clone(), &mut reference_scratch)?;
        let (is_dense, size) = (encoding.form == Form::Dense, encoding.dtype.size());
        let mut bytes = Vec::with_capacity(if is_dense { n } else { facts.changed as usize } * size);
        let mut places = Vec::with_capacity(if is_dense { 0 } else { facts.changed as usize });
        let mut beside = Vec::new();
        let (mut x, mut y, mut delta, mut here) = ([0.0; TILE], [0.0; TILE], [0.0; TILE], [0; TILE]);
        for at in (0..n).step_by(TILE) {
            let m = (n - at).min(TILE);
            let (x, y, delta) = (&mut x[..m], &mut y[..m], &mut delta[..m]);
            donor.tile(self.level, at, x);
            reference.tile(self.level, at, y);
            difference(self.level, x, y, delta);
            self.round(delta);
            if facts.lost > 0 {
                let index = |i: usize| range.start + (at + i) as u64;
                beside.extend(lost_places(x, y, delta, item.is_narrow()).map(|i| (index(i), x[i], y[i])));
            }
            let count = if is_dense { m } else { compact(delta, &mut here) };
            if !is_dense {
                places.extend(here[..count].iter().map(|place| at as u32 + place));
            }
            let end = bytes.len();
            bytes.resize(end + count * size, 0);
            narrow(self.level, encoding.dtype, &mut delta[..count], Rounding::Nearest, &mut bytes[end..]);
        }
        self.beside(shard, piece, item, &beside)?;
        let at = if is_dense { range.start } else { rank };
        if !is_dense {
            let (bytes, at) = encoding.places(&places, range.start, n, rank);
            shard.write_at(place.places + at, &bytes)?;
        }
        let offset = place.values + at * size as u64;
        shard.write_at(offset, &bytes)?;
        shard.write_behind(offset..offset + bytes.len() as u64)?;
        item.inputs.iter().for_each(|input| input.behind(range.clone()));
        let elements = range.end - range.start;
        self.monitor.advance(item.inputs.iter().map(|input| input.cost(elements)).sum());
        Ok(())
    }

    /// Index, donor and reference of the elements of one chunk that its differences do not give back.
    fn beside(&self, shard: &ShardFile, piece: &Piece<'_>, item: &Item<'_>, rows: &[(u64, f64, f64)]) -> Result<()> {
        let [index, donor, reference] = item.exact_types();
        let narrowed = |dtype: Dtype, values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.collect();
            let mut bytes = vec![0; values.len() * dtype.size()];
            narrow(self.level, dtype, &mut values, Rounding::Nearest, &mut bytes);
            bytes
        };
        let stored = [
            item.encoding.index_bytes(rows.iter().map(|row| row.0)),
            narrowed(donor, &mut rows.iter().map(|row| row.1)),
            narrowed(reference, &mut rows.iter().map(|row| row.2)),
        ];
        for ((bytes, dtype), offset) in stored.iter().zip([index, donor, reference]).zip(piece.place.exact) {
            shard.write_at(offset + piece.lost * dtype.size() as u64, bytes)?;
        }
        Ok(())
    }
}
