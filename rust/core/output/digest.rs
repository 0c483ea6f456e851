//! The BLAKE3 digest of a file whose blocks are produced out of order by many threads, and of a file that is already
//! there. BLAKE3 is a binary tree over 1 KiB chunks: an aligned power of two of bytes is a subtree, hashed alone and
//! merged at the end.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use blake3::hazmat::{left_subtree_len, merge_subtrees_non_root, merge_subtrees_root, ChainingValue, HasherExt, Mode};
use blake3::Hasher;

use crate::error::{Error, Result};
use crate::file::regular;
use crate::workers;

/// Bytes per block: one subtree of the digest. The last block of a file may be shorter.
pub const BLOCK: u64 = 1 << 20;

/// The digest of a file of known length, assembled from its blocks.
#[derive(Debug)]
pub struct FileDigest {
    length: u64,
    blocks: Vec<OnceLock<ChainingValue>>,
    repeated: AtomicBool,
}

/// One block, fed piece by piece in order while the pieces are in the processor's cache.
#[derive(Clone, Debug)]
pub struct BlockHasher {
    index: u64,
    hasher: Hasher,
}

impl BlockHasher {
    /// A hasher for block number `index` of a file.
    pub fn new(index: u64) -> Self {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(index * BLOCK);
        BlockHasher { index, hasher }
    }

    /// Starts over with another block.
    pub fn reset(&mut self, index: u64) {
        // `Hasher::reset` keeps the offset of the previous block and miscounts from then on (blake3 1.8).
        *self = BlockHasher::new(index);
    }

    /// The next bytes of the block.
    ///
    /// # Panics
    /// When the block grows longer than [`BLOCK`].
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Bytes fed so far.
    pub fn len(&self) -> u64 {
        self.hasher.count()
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl FileDigest {
    /// A digest to be filled, for a file of `length` bytes.
    pub fn new(length: u64) -> Self {
        let blocks = (0..length.div_ceil(BLOCK)).map(|_| OnceLock::new()).collect();
        FileDigest { length, blocks, repeated: AtomicBool::new(false) }
    }

    /// How many blocks the file has.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Hands in the bytes of one block; from any thread, in any order, each block once.
    ///
    /// # Panics
    /// When `bytes` is not as long as that block.
    pub fn leaf(&self, index: u64, bytes: &[u8]) {
        let mut hasher = BlockHasher::new(index);
        hasher.update(bytes);
        self.block(&hasher);
    }

    /// The same for a block that was fed piece by piece.
    ///
    /// # Panics
    /// When the block was not fed completely.
    pub fn block(&self, block: &BlockHasher) {
        let expected = BLOCK.min(self.length.saturating_sub(block.index * BLOCK));
        assert_eq!(block.len(), expected, "block {} of a file of {} bytes", block.index, self.length);
        let value = match self.blocks.len() {
            1 => *block.hasher.finalize().as_bytes(),
            _ => block.hasher.finalize_non_root(),
        };
        if self.blocks[block.index as usize].set(value).is_err() {
            self.repeated.store(true, Ordering::Relaxed);
        }
    }

    /// The digest of the whole file in hexadecimal, equal to `blake3::hash` of its bytes.
    pub fn finish(&self) -> Result<String> {
        if self.repeated.load(Ordering::Relaxed) {
            return Err(Error::engine("a block of an output file was digested twice"));
        }
        let values: Option<Vec<ChainingValue>> = self.blocks.iter().map(|block| block.get().copied()).collect();
        let values = values.ok_or_else(|| Error::engine("a block of an output file was not digested"))?;
        Ok(match values.as_slice() {
            [] => blake3::hash(&[]),
            [root] => blake3::Hash::from_bytes(*root),
            all => {
                let (left, right) = all.split_at(left_blocks(all.len()));
                merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        }
        .to_hex()
        .to_string())
    }
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [one] => *one,
        _ => {
            let (left, right) = values.split_at(left_blocks(values.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// How many of `count` > 1 neighbouring blocks form the left subtree. The last block holds at least a byte, so the
/// shape of the tree depends on the number of blocks alone.
fn left_blocks(count: usize) -> usize {
    (left_subtree_len(count as u64 * BLOCK) / BLOCK) as usize
}

/// The digest of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Size and digest of a file, read in blocks by `threads` threads (0: one per core), whatever its size in bounded
/// memory. `cancelled` is asked between blocks.
pub fn digest_file(path: &Path, threads: usize, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<(u64, String)> {
    let (file, stamp) = regular::open(path)?;
    let digest = FileDigest::new(stamp.size);
    each_block(&digest, &file, path, threads, cancelled, &|_, _| Ok(()))?;
    Ok((stamp.size, digest.finish()?))
}

/// Reads every block of `file`, digests it and shows it to `then` with its offset.
pub(crate) fn each_block(
    digest: &FileDigest,
    file: &File,
    path: &Path,
    threads: usize,
    cancelled: &(dyn Fn() -> bool + Sync),
    then: &(dyn Fn(u64, &[u8]) -> Result<()> + Sync),
) -> Result<()> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<()> {
        let mut buffer = vec![0; BLOCK.min(digest.length) as usize];
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= digest.blocks() || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if cancelled() {
                return Err(Error::interrupted());
            }
            let offset = index * BLOCK;
            let bytes = &mut buffer[..BLOCK.min(digest.length - offset) as usize];
            regular::read_at(file, path, bytes, offset)?;
            digest.leaf(index, bytes);
            then(offset, bytes)?;
        }
    };
    let first = Mutex::new(None);
    workers::side_by_side(workers::count(threads).min(digest.blocks().max(1) as usize), || {
        if let Err(error) = work() {
            failed.store(true, Ordering::Relaxed);
            first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
