//! An input that is cut short or written to while a run reads it: an error, never a signal, and no output made of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::{Error, Kind, Result};
use taskvec_core::extract::extract;
use taskvec_core::header::encode;
use taskvec_core::monitor::Monitor;
use taskvec_core::run::{run, Options};

const SHARDS: usize = 8;
const ELEMENTS: u64 = 2 << 20;
const OTHER: f32 = 0.5;

/// One tensor per output shard, of one value throughout.
fn model(folder: &Path, value: f32) {
    fs::create_dir_all(folder).unwrap();
    let names: Vec<String> = (0..SHARDS).map(|i| format!("t{i}")).collect();
    let rows = names.iter().map(|name| (name.as_str(), Dtype::BF16, &[ELEMENTS][..]));
    let mut bytes = encode(rows, &[("format", "pt")], 4096);
    let value = half::bf16::from_f32(value).to_le_bytes();
    bytes.extend(value.repeat(SHARDS * ELEMENTS as usize));
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn plan(folders: &[PathBuf]) -> Vec<u8> {
    let sources: Vec<_> = folders
        .iter()
        .map(|folder| {
            let opened = Checkpoint::open(folder).unwrap();
            let files = [json!([opened.files[0].name, opened.files[0].size])];
            json!({"kind": "checkpoint", "path": folder, "files": files, "fingerprint": opened.fingerprint})
        })
        .collect();
    let tensor = |i| {
        let name = format!("t{i}");
        json!([name, "BF16", [ELEMENTS], i, 0, [[0, name], [1, name], [2, name]]])
    };
    let plan = json!({
        "format": 1, "arithmetic": 3, "sources": sources, "outputs": [{"folder": "", "alpha": 1.0}],
        "shards": (1..=SHARDS).map(|i| format!("model-{i:05}-of-{SHARDS:05}.safetensors")).collect::<Vec<_>>(),
        "operations": [{"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]}],
        "tensors": (0..SHARDS).map(tensor).collect::<Vec<_>>(), "rounding": "nearest", "seed": 0,
    });
    serde_json::to_vec(&plan).unwrap()
}

/// Runs a merge during which `disturb` is called once `done` in a hundred bytes have passed; returns how the run ended
/// after checking what it published.
fn disturbed(done: u64, disturb: impl Fn(&Path) + Sync) -> Result<()> {
    let root = tempfile::tempdir().unwrap();
    let folders = ["target", "donor", "reference"].map(|name| root.path().join(name));
    for (folder, value) in folders.iter().zip([1.0, 3.0, 2.0]) {
        model(folder, value);
    }
    let out = root.path().join("out");
    let plan = plan(&folders);
    let monitor = Monitor::default();
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&plan, &out, &Options { threads: 2, ..Options::default() }, &monitor));
        while !running.is_finished() {
            let (passed, total) = monitor.progress();
            if total > 0 && passed * 100 >= total * done {
                disturb(&folders[1].join("model.safetensors"));
                break;
            }
            std::thread::yield_now();
        }
        running.join().unwrap()
    });
    for entry in fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "safetensors") {
            let shard = Checkpoint::open_file(&entry).unwrap();
            let values = shard.sample(shard.names().next().unwrap(), 0, ELEMENTS).unwrap();
            assert!(values.iter().all(|value| *value == 2.0), "{} was published", entry.display());
        }
    }
    result.map(|_| ())
}

/// Disturbs runs at several moments. One that ends before it is disturbed has nothing to complain of, but on no machine
/// are all of them that fast.
fn all_disturbed(moments: &[u64], disturb: impl Fn(&Path) + Sync, expected: &str) {
    let errors: Vec<Error> = moments.iter().filter_map(|done| disturbed(*done, &disturb).err()).collect();
    assert!(!errors.is_empty());
    for error in errors {
        assert_eq!(error.kind, Kind::Format);
        assert!(error.message.contains("donor/model.safetensors"), "{error}");
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn a_file_cut_short_under_a_run_is_an_error_and_nothing_made_of_it_is_kept() {
    for left in [0, 5000, 1 << 20] {
        let cut = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(left).unwrap();
        all_disturbed(&[0, 40, 80], cut, "");
    }
}

#[test]
fn a_file_written_to_under_a_run_is_an_error_and_nothing_made_of_it_is_kept() {
    let write = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let other = half::bf16::from_f32(OTHER).to_le_bytes().repeat(SHARDS * ELEMENTS as usize);
        file.write_all_at(&other, 4096).unwrap();
    };
    all_disturbed(&[0, 30, 70], write, "was written to while it was being read");
}

/// A model of one tensor of ones, in which every `step`th element is another.
fn one_tensor(folder: &Path, step: Option<usize>) {
    fs::create_dir_all(folder).unwrap();
    let mut bytes = encode([("t", Dtype::BF16, &[ELEMENTS][..])].into_iter(), &[("format", "pt")], 4096);
    let value = |i: usize| if step.is_some_and(|step| i.is_multiple_of(step)) { 2.0 + (i % 64) as f32 } else { 1.0 };
    bytes.extend((0..ELEMENTS as usize).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()));
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn source(kind: &str, path: &Path) -> serde_json::Value {
    let opened = Checkpoint::open(path).unwrap();
    let files: Vec<_> = opened.files.iter().map(|file| json!([file.name, file.size])).collect();
    json!({"kind": kind, "path": path, "files": files, "fingerprint": opened.fingerprint})
}

fn extraction(donor: &Path, reference: &Path) -> Vec<u8> {
    let sources = [source("checkpoint", donor), source("checkpoint", reference)];
    let rows = json!([["t", [ELEMENTS], "t", "t"]]);
    let plan = json!({"format": 1, "sources": sources, "tensors": rows, "max_shard_size": 1u64 << 40, "dtype": null});
    plan.to_string().into_bytes()
}

fn extracted(plan: &[u8], out: &Path, monitor: &Monitor) -> Result<()> {
    let options = Options { threads: 1, ..Options::default() };
    extract(plan, &[], out, &options, monitor).map(drop)
}

/// Does some work, and something else once `done` in a hundred of its bytes have passed.
fn while_running(done: u64, disturb: impl FnOnce(), work: impl FnOnce(&Monitor) -> Result<()> + Send) -> Result<()> {
    let monitor = Monitor::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| work(&monitor));
        while !running.is_finished() {
            let (passed, total) = monitor.progress();
            if total > 0 && passed * 100 >= total * done {
                disturb();
                break;
            }
            std::thread::yield_now();
        }
        running.join().expect("it panicked")
    })
}

/// The weight files in a folder that may not be there.
fn weights(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect());
    let mut found: Vec<PathBuf> = entries.unwrap_or_default();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    found
}

/// The places of a first look and the values of a second one are of two models.
#[test]
fn a_vector_of_a_donor_written_to_under_the_extraction_is_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let [donor, other, reference] = ["donor", "other", "reference"].map(|name| root.path().join(name));
    one_tensor(&reference, None);
    one_tensor(&other, Some(5));
    let changed = fs::read(other.join("model.safetensors")).unwrap();
    extracted(&extraction(&other, &reference), &root.path().join("right"), &Monitor::default()).unwrap();
    let right = fs::read(root.path().join("right/vector.safetensors")).unwrap();
    one_tensor(&donor, Some(4));
    extracted(&extraction(&donor, &reference), &root.path().join("before"), &Monitor::default()).unwrap();
    let before = fs::read(root.path().join("before/vector.safetensors")).unwrap();
    let mut errors = 0;
    for (number, done) in [0, 20, 40, 60, 80].into_iter().enumerate() {
        one_tensor(&donor, Some(4));
        let (plan, out) = (extraction(&donor, &reference), root.path().join(format!("out-{number}")));
        let write = || {
            let file = OpenOptions::new().write(true).open(donor.join("model.safetensors")).unwrap();
            file.write_all_at(&changed, 0).unwrap();
        };
        let Err(error) = while_running(done, write, |monitor| extracted(&plan, &out, monitor)) else { continue };
        errors += 1;
        assert_eq!(error.kind, Kind::Format);
        assert!(error.message.contains("donor/model.safetensors"), "{error}");
        // It may have been written by then, of the donor as it was.
        let written = |found: &[PathBuf]| found.iter().all(|file| fs::read(file).unwrap() == before);
        assert!(written(&weights(&out)));
        // Given again, it begins with the donor as it is, or says that this is another one.
        let again = extracted(&plan, &out, &Monitor::default());
        let found = weights(&out);
        match again {
            Ok(()) => assert!(fs::read(&found[0]).unwrap() == right),
            Err(error) => assert!(written(&found) && error.hint.is_some(), "{error}"),
        }
    }
    assert!(errors > 0);
}

/// Its places were checked when it was opened, and no longer fit when they are read again.
#[test]
fn a_vector_written_to_or_cut_short_under_a_run_is_an_error() {
    for step in [4, 100] {
        let root = tempfile::tempdir().unwrap();
        let [donor, reference, out] = ["donor", "reference", "out"].map(|name| root.path().join(name));
        one_tensor(&reference, None);
        one_tensor(&donor, Some(step));
        extracted(&extraction(&donor, &reference), &root.path().join("vector"), &Monitor::default()).unwrap();
        let vector = root.path().join("vector/vector.safetensors");
        let whole = fs::read(&vector).unwrap();
        let right = fs::read(donor.join("model.safetensors")).unwrap();
        let mut errors = 0;
        for (done, cut) in [(0, false), (30, false), (60, false), (0, true), (30, true), (60, true)] {
            fs::write(&vector, &whole).unwrap();
            let plan = json!({
                "format": 1, "arithmetic": 3, "outputs": [{"folder": "", "alpha": 1.0}],
                "sources": [source("checkpoint", &reference), source("vector", &vector)],
                "shards": ["model.safetensors"], "rounding": "nearest", "seed": 0,
                "operations": [{"kind": "task_arithmetic", "terms": [{"model": 1, "reference": null, "weight": 1.0}]}],
                "tensors": [["t", "BF16", [ELEMENTS], 0, 0, [[0, "t"], [1, "t"]]]],
            });
            let plan = plan.to_string().into_bytes();
            let disturb = || {
                let file = OpenOptions::new().write(true).open(&vector).unwrap();
                match cut {
                    true => file.set_len(8192).unwrap(),
                    // Every place is another one then, of a mask as of indices, in every chunk.
                    false => file.write_all_at(&vec![0xff; whole.len() - 4096], 4096).unwrap(),
                }
            };
            let options = Options { threads: 1, ..Options::default() };
            let work = |monitor: &Monitor| run(&plan, &out, &options, monitor).map(drop);
            let result = while_running(done, disturb, work);
            if let Err(error) = &result {
                errors += 1;
                assert_eq!(error.kind, Kind::Format, "{error}");
                assert!(error.message.contains("vector.safetensors"), "{error}");
            }
            // It may have been written by then.
            for file in weights(&out) {
                let data = fs::read(file).unwrap();
                assert!(data.ends_with(&right[4096..]));
            }
            let _ = fs::remove_dir_all(&out);
        }
        assert!(errors > 0);
    }
}
