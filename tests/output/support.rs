//! A small run into an output folder, as the run loop does it, and what must be true of the folder at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use taskvec_core::error::{Error, Result};
use taskvec_core::output::digest::{FileDigest, BLOCK};
use taskvec_core::output::folder::{Options, OutputFolder};
use taskvec_core::output::publish::{finish, replace, write_atomic};
use taskvec_core::output::shard::ShardFile;

pub(crate) const PLAN: &[u8] = br#"{"format":1}"#;
pub(crate) const INDEX: &str = "model.safetensors.index.json";
pub(crate) const MANIFEST: &str = "taskvec.json";

/// What a run leaves in the folder at the end.
#[derive(Clone)]
pub(crate) struct Job {
    pub weights: BTreeMap<String, Vec<u8>>,
    pub small: Vec<(String, Vec<u8>)>,
    pub threads: usize,
}

impl Job {
    pub(crate) fn new(lengths: &[u64]) -> Job {
        let weights: BTreeMap<String, Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(i, length)| (format!("model-{i}.safetensors"), bytes(*length, i as u64)))
            .collect();
        let listed: Vec<_> = weights.keys().map(String::as_str).chain(["config.json", "README.md", INDEX]).collect();
        let files: Vec<_> = listed.iter().map(|name| serde_json::json!({"name": name})).collect();
        let small = vec![
            ("config.json".to_string(), b"{}".to_vec()),
            ("README.md".to_string(), b"# card".to_vec()),
            (INDEX.to_string(), b"{\"weight_map\": {}}".to_vec()),
            (MANIFEST.to_string(), serde_json::json!({ "files": files }).to_string().into_bytes()),
        ];
        Job { weights, small, threads: 1 }
    }

    pub(crate) fn sizes(&self) -> Vec<(String, u64)> {
        self.weights.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect()
    }

    /// From admission to the end; `Ok` is how many shards an earlier run had left complete.
    pub(crate) fn run(&self, out: &Path, options: &Options) -> Result<usize> {
        let folder = OutputFolder::admit(out, &[], PLAN, &self.sizes(), options)?;
        let kept = folder.done().len();
        for name in self.weights.keys().filter(|name| !folder.done().contains_key(*name)) {
            self.shard(&folder, name)?;
        }
        let (place, replaces) = (folder.path().to_path_buf(), folder.replaces());
        folder.close()?;
        for (name, bytes) in &self.small {
            write_atomic(&place.join(name), bytes)?;
        }
        if replaces {
            replace(out)?;
        }
        finish(out)?;
        Ok(kept)
    }

    pub(crate) fn shard(&self, folder: &OutputFolder, name: &str) -> Result<()> {
        let bytes = &self.weights[name];
        let shard = ShardFile::create(folder, name, bytes.len() as u64)?;
        shard.allocate(0..shard.size())?;
        let digest = FileDigest::new(shard.size());
        let (next, failed) = (AtomicU64::new(0), OnceLock::<Error>::new());
        let block = |index: u64| {
            let range = (index * BLOCK) as usize..bytes.len().min(((index + 1) * BLOCK) as usize);
            digest.leaf(index, &bytes[range.clone()]);
            shard.write_at(range.start as u64, &bytes[range.clone()])?;
            shard.write_behind(range.start as u64..range.end as u64)
        };
        let work = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= digest.blocks() || failed.get().is_some() {
                return;
            }
            if let Err(error) = block(index) {
                failed.get_or_init(|| error);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner() {
            Some(error) => Err(error),
            None => shard.publish(&digest.finish()?, &serde_json::json!({"norm": 0.1, "name": name})),
        }
    }

    /// The folder holds the result, the whole result and nothing else.
    pub(crate) fn assert_complete(&self, out: &Path) {
        let mut expected: Vec<&str> = self.weights.keys().map(String::as_str).collect();
        expected.extend(self.small.iter().map(|(name, _)| name.as_str()));
        expected.sort_unstable();
        assert_eq!(names(out), expected);
        for (name, bytes) in self.weights.iter().chain(self.small.iter().map(|(name, bytes)| (name, bytes))) {
            assert!(fs::read(out.join(name)).unwrap() == *bytes, "{name} differs");
        }
    }

    /// Of each of the two outputs all files are there while it is not certain that the other is in place.
    pub(crate) fn assert_nothing_lost(&self, out: &Path, before: &Job) {
        let is_whole = |job: &Job, places: &[&str]| {
            job.weights.iter().chain(job.small.iter().map(|(name, bytes)| (name, bytes))).all(|(name, bytes)| {
                places.iter().any(|place| fs::read(out.join(place).join(name)).is_ok_and(|found| found == *bytes))
            })
        };
        let manifest = fs::read(out.join(MANIFEST)).ok();
        let is_in_place = manifest.as_ref() == self.small.last().map(|(_, bytes)| bytes);
        if is_in_place {
            assert!(is_whole(self, &["."]));
        } else if !is_whole(before, &["."]) {
            assert!(out.join(".taskvec/swap.json").exists());
            assert!(is_whole(before, &[".", ".taskvec/old"]), "of the old output something is missing");
            assert!(is_whole(self, &[".", ".taskvec/new"]), "of the new output something is missing");
        }
    }

    /// Whatever happened: what looks complete is complete, whether as this job or as the one before it, and what the
    /// journal lists is in place.
    pub(crate) fn assert_honest(&self, out: &Path, before: Option<&Job>) {
        let manifest = fs::read(out.join(MANIFEST)).ok();
        let jobs = [Some(self), before].into_iter().flatten();
        for job in jobs.filter(|job| manifest.as_ref() == job.small.last().map(|(_, bytes)| bytes)) {
            for (name, bytes) in job.weights.iter().chain(job.small.iter().map(|(name, bytes)| (name, bytes))) {
                assert!(fs::read(out.join(name)).unwrap() == *bytes, "{name} differs in what looks complete");
            }
        }
        let journal = fs::read_to_string(out.join(".taskvec/journal.jsonl")).unwrap_or_default();
        for line in journal.split_inclusive('\n').skip(1).filter(|line| line.ends_with('\n')) {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let name = record["shard"].as_str().unwrap();
            let found = fs::read(out.join(name)).unwrap();
            assert!(found == self.weights[name], "{name} differs from what the journal says");
        }
    }
}

pub(crate) fn bytes(length: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length as usize);
    bytes
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A new folder for a test, with the path of an output in it that does not exist yet.
pub(crate) fn place() -> (tempfile::TempDir, PathBuf) {
    place_in(&std::env::temp_dir())
}

/// The same in memory, where there is such a place: for tests of many runs, each of which flushes many times.
pub(crate) fn fast_place() -> (tempfile::TempDir, PathBuf) {
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(_) => place_in(memory),
        Err(_) => place(),
    }
}

fn place_in(folder: &Path) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir_in(folder).unwrap();
    let out = place.path().canonicalize().unwrap().join("out");
    (place, out)
}
