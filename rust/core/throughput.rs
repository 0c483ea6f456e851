//! What the machine can do at best: the same reads and writes as a merge, with no arithmetic between them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::file::mapped::Mapped;
use crate::file::platform::{Here, Platform};
use crate::monitor::Monitor;
use crate::output::digest::BLOCK;
use crate::threads::lock;
use crate::workers;

/// Seconds to read every byte of `inputs` once and write the first of them to `output`.
///
/// # Errors
/// Unreadable inputs, an unwritable output, or the run was cancelled.
pub fn floor(inputs: &[PathBuf], output: &Path, threads: usize, monitor: &Monitor) -> Result<f64> {
    let started = Instant::now();
    let maps = inputs.iter().map(|path| Mapped::open(path)).collect::<Result<Vec<_>>>()?;
    let length = maps.iter().map(Mapped::len).min().unwrap_or(0);
    let failed = |e: &std::io::Error| Error::io("writing", output, e);
    let file = std::fs::File::create(output).map_err(|e| failed(&e))?;
    // Where it cannot be reserved, the writes below find their space themselves.
    Here::reserve(&file, 0..length).map_err(|e| failed(&e))?;
    let (next, sink) = (AtomicU64::new(0), AtomicU64::new(0));
    let error = Mutex::new(None);
    workers::side_by_side(workers::count(threads), || {
        let mut scratch = Vec::new();
        let mut block = || -> Result<bool> {
            let at = next.fetch_add(BLOCK, Relaxed);
            if at >= length {
                return Ok(false);
            }
            monitor.check()?;
            let range = at..(at + BLOCK).min(length);
            for (k, map) in maps.iter().enumerate() {
                let bytes = map.read(range.clone(), &mut scratch)?;
                if k == 0 {
                    std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).map_err(|e| failed(&e))?;
                } else {
                    let (words, _) = bytes.as_chunks::<8>();
                    let sum = words.iter().fold(0u64, |s, word| s.wrapping_add(u64::from_le_bytes(*word)));
                    sink.fetch_add(sum, Relaxed);
                }
            }
            Ok(true)
        };
        loop {
            match block() {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    lock(&error).get_or_insert(e);
                    return;
                }
            }
        }
    });
    std::hint::black_box(sink.into_inner());
    let error = lock(&error).take();
    error.map_or_else(|| Ok(started.elapsed().as_secs_f64()), Err)
}

/// Bytes per second of copying memory, counting each byte once; the median of five rounds after a discarded one.
pub fn memcpy_rate(size: usize, threads: usize) -> f64 {
    let threads = workers::count(threads);
    let each = (size / threads).max(1);
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> = (0..threads).map(|i| (vec![i as u8; each], vec![1; each])).collect();
    let mut rates: Vec<f64> = (0..6)
        .map(|_| {
            let started = Instant::now();
            let waiting = Mutex::new(buffers.iter_mut());
            workers::side_by_side(threads, || loop {
                let Some((from, to)) = lock(&waiting).next() else { return };
                std::hint::black_box(to.as_mut_slice()).copy_from_slice(std::hint::black_box(from));
            });
            (each * threads) as f64 / started.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
