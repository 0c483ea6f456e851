//! The end of an extraction in parts: pieces of the vector, each a file with the tensors of one part, become the files
//! that one process would have written. A tensor's stored bytes do not depend on the others, so that they are copied.

use std::collections::BTreeMap;
use std::fs::File as OpenFile;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::files::{lay_out, File, Stored};
use super::report::{file_of, shards, Shard, WeightMap};
use super::{bad, ExtractPlan};
use crate::dtype::Dtype;
use crate::error::{shown, shown_path, Error, Kind, Result};
use crate::file::regular;
use crate::kernels::Level;
use crate::monitor::Monitor;
use crate::output::digest::{FileDigest, BLOCK};
use crate::output::folder::{OutputFolder, Request};
use crate::output::shard::ShardFile;
use crate::run::report::text;
use crate::run::Options;
use crate::storage::source::place;
use crate::storage::sources::Sources;
use crate::threads::{each, pool};

/// A file with some tensors of the vector.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    path: PathBuf,
    /// Of the file.
    size: u64,
    tensors: Vec<Tensor>,
}

/// A tensor of a piece, as the report of the piece has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    name: String,
    origin: String,
    bytes: u64,
    rounded: bool,
    stored: Vec<(String, String, Vec<u64>)>,
}

/// Where the bytes of a tensor lie: the number of a piece, and the offset in it.
#[derive(Clone, Copy)]
struct Source {
    piece: usize,
    at: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    seconds: f64,
    bytes_read: u64,
    bytes_written: u64,
    threads: usize,
    cpu_level: &'a str,
    resumed_shards: usize,
    replaces: bool,
    shards: Vec<Shard>,
    weight_map: WeightMap<'a>,
    /// The file of each tensor of the plan.
    files: Vec<Option<&'a str>>,
}

/// Joins the pieces of a vector, in the order of the plan's tensors, in a folder that holds an unfinished run of the plan,
/// and returns the report as JSON. `pieces_json` is a list of path, size and tensors of each.
///
/// # Errors
/// `Kind::Plan` where the pieces are not those of the plan, and whatever reading them and the output folder refuse.
pub fn join(plan_json: &[u8], pieces_json: &[u8], out: &Path, options: &Options, monitor: &Monitor) -> Result<String> {
    let started = Instant::now();
    let mut plan = ExtractPlan::parse(plan_json)?;
    place(&mut plan.sources, &options.paths)?;
    let pieces: Vec<Piece> = serde_json::from_slice(pieces_json).map_err(|error| bad(&error.to_string()))?;
    let level = Level::chosen()?;
    let inputs = Sources::of(&plan.sources, &[])?;
    let pool = pool(options.threads)?;
    let (stored, sources) = tensors(&plan, &pieces)?;
    let files = lay_out(&stored, plan.max_shard_size)?;
    let sizes: Vec<(String, u64)> = files.iter().map(|file| (file.name.clone(), file.size)).collect();
    let requests = [Request { path: out, shards: &sizes }];
    let unchanged = || inputs.unchanged();
    let admitted =
        OutputFolder::admit_over(&requests, &inputs.paths(), plan_json, &options.folder, &unchanged, monitor)?;
    let folder = admitted.into_iter().next().ok_or_else(|| Error::engine("an admitted folder is missing"))?;
    let resumed = folder.done().len();
    let pending: Vec<&File> = files.iter().filter(|file| !folder.done().contains_key(&file.name)).collect();
    monitor.expect(pending.iter().map(|file| file.size).sum());
    for file in &pending {
        let shard = ShardFile::create(&folder, &file.name, file.size)?;
        shard.allocate(0..file.size)?;
        let copy = Copy::of(file, &stored, &sources, &pieces)?;
        let digest = FileDigest::new(file.size);
        each(&pool, monitor, digest.blocks() as usize, |index| {
            let (at, mut block) = (index as u64 * BLOCK, vec![0; BLOCK as usize]);
            block.truncate((file.size - at).min(BLOCK) as usize);
            copy.read(at, &mut block)?;
            digest.leaf(index as u64, &block);
            shard.write_at(at, &block)?;
            shard.write_behind(at..at + block.len() as u64)?;
            monitor.advance(block.len() as u64);
            Ok(())
        })?;
        shard.publish(&digest.finish()?, &serde_json::json!({}))?;
    }
    let written = pending.iter().map(|file| file.size).sum();
    let report = Report {
        seconds: started.elapsed().as_secs_f64(),
        bytes_read: written,
        bytes_written: written,
        threads: pool.current_num_threads(),
        cpu_level: level.name(),
        resumed_shards: resumed,
        replaces: folder.replaces(),
        shards: shards(&files, &folder),
        weight_map: WeightMap { stored: &stored, files: &files },
        files: file_of(&files, stored.len()),
    };
    let text = text(&report)?;
    folder.close()?;
    Ok(text)
}

/// What is stored of every tensor of the plan, and where it lies.
fn tensors(plan: &ExtractPlan, pieces: &[Piece]) -> Result<(Vec<Stored>, Vec<Source>)> {
    let (mut stored, mut sources) = (Vec::new(), Vec::new());
    for (number, piece) in pieces.iter().enumerate() {
        let data = piece.tensors.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.bytes));
        let mut at = data
            .and_then(|data| piece.size.checked_sub(data))
            .ok_or_else(|| bad(&format!("the tensors of `{}` are longer than it is", shown_path(&piece.path))))?;
        for tensor in &piece.tensors {
            stored.push(tensor.stored()?);
            sources.push(Source { piece: number, at });
            at += tensor.bytes;
        }
    }
    let names = stored.iter().map(|stored| &stored.name);
    if !names.eq(plan.tensors.iter().map(|(name, ..)| name)) {
        return Err(bad("the pieces have other tensors than the vector"));
    }
    Ok((stored, sources))
}

impl Tensor {
    fn stored(&self) -> Result<Stored> {
        let row = |(name, dtype, shape): &(String, String, Vec<u64>)| Ok((name.clone(), of(dtype)?, shape.clone()));
        Ok(Stored {
            name: self.name.clone(),
            rows: self.stored.iter().map(row).collect::<Result<_>>()?,
            bytes: self.bytes,
            origin: of(&self.origin)?,
            rounded: self.rounded,
        })
    }
}

fn of(dtype: &str) -> Result<Dtype> {
    Dtype::from_name(dtype).ok_or_else(|| bad(&format!("type `{}`", shown(dtype))))
}

/// The bytes of one file of the vector.
struct Copy<'a> {
    header: &'a [u8],
    /// Offset in the file, bytes, and where they lie.
    runs: Vec<(u64, u64, Source)>,
    open: BTreeMap<usize, (OpenFile, &'a Path)>,
}

impl<'a> Copy<'a> {
    fn of(file: &'a File, stored: &[Stored], sources: &[Source], pieces: &'a [Piece]) -> Result<Self> {
        let (mut runs, mut open) = (Vec::new(), BTreeMap::new());
        for (index, at) in &file.members {
            let source = sources[*index];
            runs.push((*at, stored[*index].bytes, source));
            if open.contains_key(&source.piece) {
                continue;
            }
            let piece = &pieces[source.piece];
            let (opened, stamp) = regular::open(&piece.path)?;
            if stamp.size != piece.size {
                let message =
                    format!("`{}` has {} bytes, expected {}", shown_path(&piece.path), stamp.size, piece.size);
                return Err(Error::new(Kind::Output, message).hint("run the parts again: what is missing is written"));
            }
            open.insert(source.piece, (opened, piece.path.as_path()));
        }
        Ok(Copy { header: &file.header, runs, open })
    }

    /// Fills `block` with the bytes of the file from `at` on.
    fn read(&self, at: u64, block: &mut [u8]) -> Result<()> {
        let end = at + block.len() as u64;
        if let Some(left) = self.header.get(at as usize..) {
            let count = left.len().min(block.len());
            block[..count].copy_from_slice(&left[..count]);
        }
        let first = self.runs.partition_point(|(start, length, _)| start + length <= at);
        for (start, length, source) in self.runs[first..].iter().take_while(|(start, ..)| *start < end) {
            let (from, to) = (at.max(*start), end.min(start + length));
            if let (true, Some((file, path))) = (from < to, self.open.get(&source.piece)) {
                let part = &mut block[(from - at) as usize..(to - at) as usize];
                regular::read_at(file, path, part, source.at + (from - start))?;
            }
        }
        Ok(())
    }
}
