//! The byte layout of the output: which tensor begins where in which file.

use super::job::Job;
use crate::checkpoint::names::prefix;
use crate::header;
use crate::storage::Storage;

/// Data of every output shard starts at a multiple of this many bytes.
pub(crate) const ALIGN: usize = 4096;

/// The byte layout of the output.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Shards in order.
    pub shards: Vec<Shard>,
    /// Offset in its file of each job's first byte.
    pub offsets: Vec<u64>,
}

/// One output file.
#[derive(Debug)]
pub(crate) struct Shard {
    /// File name.
    pub name: String,
    /// Length prefix, JSON and padding.
    pub header: Vec<u8>,
    /// File size.
    pub size: u64,
    /// The jobs that it holds.
    pub jobs: std::ops::Range<usize>,
}

impl Layout {
    /// Where every byte of every shard goes; `jobs` are in the order of their shards.
    pub(crate) fn new(names: &[String], jobs: &[Job]) -> Layout {
        let mut offsets = vec![0u64; jobs.len()];
        let mut shards = Vec::with_capacity(names.len());
        let mut next = 0;
        for (index, name) in names.iter().enumerate() {
            let first = next;
            while next < jobs.len() && jobs[next].shard == index {
                next += 1;
            }
            let folder = prefix(name).map_or(0, str::len);
            let rows = jobs[first..next].iter().map(|job| (&job.name[folder..], job.dtype, &*job.shape));
            let header = header::encode(rows, &[("format", "pt")], ALIGN);
            let mut at = header.len() as u64;
            for job in first..next {
                offsets[job] = at;
                at += jobs[job].target().bytes(&(0..jobs[job].elements));
            }
            shards.push(Shard { name: name.clone(), header, size: at, jobs: first..next });
        }
        Layout { shards, offsets }
    }
}
