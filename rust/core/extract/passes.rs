//! The two passes over donor and reference: the first finds out what each tensor needs, the second writes.

use std::cell::RefCell;
use std::sync::atomic::AtomicUsize;
use std::sync::Mutex;

use serde_json::json;

use super::files::File;
use super::item::{Item, Place};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::combine::difference;
use crate::kernels::encode::{counted, facts, flags, places, Facts, Room};
use crate::kernels::narrow::{narrow, Rounding};
use crate::kernels::{Level, TILE};
use crate::measure::{Noise, NonFinite};
use crate::monitor::Monitor;
use crate::output::folder::OutputFolder;
use crate::output::shard::ShardFile;
use crate::run::contents::Contents;
use crate::run::noise::of_pairs;
use crate::run::program::Pair;
use crate::storage::chunk::Scratch;
use crate::storage::input::unchanged;
use crate::tensor::{next_id, Tensor, CHUNK};
use crate::threads::{each, lock, Threads};

/// Chunks whose pages are given back at once: each time all threads stop for it. A thread that still reads one of them
/// gets its pages again.
const BEHIND: u64 = 16;

/// One chunk of one tensor.
struct Piece {
    place: Place,
    chunk: u64,
    /// Values before it, and elements before it that are stored by themselves.
    rank: u64,
    apart: u64,
}

thread_local! {
    /// The differences of a tile, and room to look at some of them: to set it to zero for every tile takes as long as to
    /// compute them.
    static ROOM: RefCell<Box<([f64; TILE], Room)>> = RefCell::new(Box::new(([0.0; TILE], Room::default())));
}

/// What both passes share.
pub(super) struct Work<'a> {
    pub(super) contents: &'a Contents<'a>,
    pub(super) level: Level,
    pub(super) monitor: &'a Monitor,
    pub(super) pool: &'a rayon::ThreadPool,
    pub(super) lossy: Option<Dtype>,
    /// Donor and reference, where it is measured what their difference is like.
    pub(super) pairs: &'a [Pair],
}

/// What the first pass finds out about a chunk.
type Found = (Facts, Option<Noise>);

impl Work<'_> {
    /// First pass: facts of every chunk of every tensor.
    pub(super) fn measure(&self, items: &mut [Item<'_>], non_finite: &NonFinite) -> Result<()> {
        let found: Vec<Mutex<Vec<Found>>> = items.iter().map(|_| Mutex::new(Vec::new())).collect();
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
            let chunks = tensor.fold_chunks::<f64, Found, _, _>(
                threads,
                |_| Found::default(),
                |(sum, noise), tile, chunks, at| {
                    let measured = of_pairs(self.level, self.pairs, chunks, at, tile.inputs);
                    measured.for_each(|more| noise.get_or_insert_default().merge(&more));
                    let (donor, reference) = (tile.input(0), tile.input(1));
                    ROOM.with_borrow_mut(|room| {
                        let (delta, room) = &mut **room;
                        let delta = &mut delta[..donor.len()];
                        difference(self.level, donor, reference, delta);
                        self.round(delta);
                        sum.merge(&facts(self.level, delta));
                        if self.lossy.is_none() {
                            let three = [donor, reference, &*delta];
                            sum.merge(&counted(self.level, three, item.is_narrow(), room));
                        }
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
        each(self.pool, self.monitor, small.len(), |i| one(small[i], Threads::Alone))?;
        for (item, chunks) in items.iter_mut().zip(found) {
            let chunks = chunks.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (facts, noise) in chunks {
                item.chunks.push(facts);
                noise.iter().for_each(|more| item.noise.get_or_insert_default().merge(more));
            }
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
    pub(super) fn write(&self, file: &File, items: &[Item<'_>], folder: &OutputFolder) -> Result<()> {
        let shard = ShardFile::create(folder, &file.name, file.size)?;
        shard.allocate(0..file.size)?;
        shard.write_at(0, &file.header)?;
        let pieces: Vec<Piece> = file
            .members
            .iter()
            .flat_map(|(item, at)| {
                let (mut rank, mut apart) = (0, 0);
                let (place, dtype) = (items[*item].place(*item, *at), items[*item].encoding.dtype);
                items[*item].chunks.iter().enumerate().map(move |(chunk, facts)| {
                    let piece = Piece { place, chunk: chunk as u64, rank, apart };
                    rank += facts.changed;
                    apart += facts.apart(dtype);
                    piece
                })
            })
            .collect();
        each(self.pool, self.monitor, pieces.len(), |i| {
            let piece = &pieces[i];
            self.piece(&shard, piece, &items[piece.place.item])
        })?;
        let threads = self.pool.current_num_threads();
        let digest = shard.digest(threads, &|| self.monitor.is_cancelled())?;
        // What was read from a file that changed meanwhile must not get a name that a later run would keep.
        unchanged(file.members.iter().flat_map(|(item, _)| &items[*item].inputs))?;
        shard.publish(&digest, &json!({}))
    }

    fn piece(&self, shard: &ShardFile, piece: &Piece, item: &Item<'_>) -> Result<()> {
        let Piece { place, chunk, rank, .. } = *piece;
        let facts = &item.chunks[chunk as usize];
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(item.elements);
        let n = (range.end - range.start) as usize;
        let (mut donor_scratch, mut reference_scratch) = (Scratch::default(), Scratch::default());
        let donor = item.inputs[0].open(range.clone(), &mut donor_scratch)?;
        let reference = item.inputs[1].open(range.clone(), &mut reference_scratch)?;
        let mut stored = item.encoding.chunk(n, facts.changed);
        let mut exact = Vec::new();
        let (mut x, mut y, mut delta) = ([0.0; TILE], [0.0; TILE], [0.0; TILE]);
        for at in (0..n).step_by(TILE) {
            let m = (n - at).min(TILE);
            let (x, y, delta) = (&mut x[..m], &mut y[..m], &mut delta[..m]);
            donor.tile(self.level, at, x);
            reference.tile(self.level, at, y);
            difference(self.level, x, y, delta);
            self.round(delta);
            if facts.apart(item.encoding.dtype) > 0 {
                self.take_apart(item, range.start + at as u64, [x, y], delta, &mut exact);
            }
            stored.tile(self.level, at, delta);
        }
        for (bytes, offset) in item.exact().encode(self.level, &exact, place.exact, piece.apart) {
            shard.write_at(offset, &bytes)?;
        }
        if let Some((bytes, at)) = stored.places(range.start, rank) {
            shard.write_at(place.places + at, &bytes)?;
        }
        let (bytes, at) = stored.values(range.start, rank);
        shard.write_at(place.values + at, bytes)?;
        shard.write_behind(place.values + at..place.values + at + bytes.len() as u64)?;
        let elements = range.end - range.start;
        let mut file = Vec::new();
        for input in &item.inputs {
            self.contents.touch(input, &range, &mut file)?;
            if (chunk + 1) % BEHIND == 0 || range.end == item.elements {
                input.storage().behind(chunk / BEHIND * BEHIND * CHUNK..range.end);
            }
        }
        self.monitor.advance(item.inputs.iter().map(|input| input.cost(elements)).sum());
        Ok(())
    }

    /// Notes index, donor and reference of the elements of a tile that have to be stored by themselves: the tile begins
    /// with element `first`. Their values stay within the type.
    fn take_apart(
        &self,
        item: &Item<'_>,
        first: u64,
        [donor, reference]: [&[f64]; 2],
        delta: &mut [f64],
        exact: &mut Vec<(u64, f64, f64)>,
    ) {
        let (mut found, mut at) = ([0; TILE], [0; TILE]);
        let found = &mut found[..delta.len()];
        flags(self.level, donor, reference, delta, item.is_narrow(), found);
        let count = places(found, item.encoding.dtype, &mut at);
        for place in &at[..count] {
            let i = *place as usize;
            exact.push((first + i as u64, donor[i], reference[i]));
            delta[i] = item.encoding.within(delta[i]);
        }
    }
}
