//! An input that is cut short or written to while a run reads it: an error, never a signal, and no output made of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::{Error, Kind, Result};
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
