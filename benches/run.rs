//! The run loop on a checkpoint of 64 MiB per input, beside reading and writing without arithmetic:
//! cargo bench --bench run. Files are made in the system's temporary folder; set TMPDIR to one in memory.

#![allow(missing_docs)] // of what the macros make

use std::path::{Path, PathBuf};

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use serde_json::json;
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::header::encode;
use taskvec_core::monitor::Monitor;
use taskvec_core::run::{run, Options};

const ROWS: u64 = 4096;
const TENSORS: usize = 4;

fn write(folder: &Path, step: f32) {
    std::fs::create_dir_all(folder).unwrap();
    let shape = [ROWS, ROWS / 2];
    let names: Vec<String> = (0..TENSORS).map(|i| format!("layer.{i}")).collect();
    let mut bytes = encode(names.iter().map(|n| (n.as_str(), Dtype::BF16, &shape[..])), &[("format", "pt")], 8);
    for i in 0..TENSORS as u64 * ROWS * ROWS / 2 {
        let value = ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 0.04 * (1.0 + step * (i % 3) as f32);
        bytes.extend(half::bf16::from_f32(value).to_le_bytes());
    }
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn plan(folders: &[PathBuf], operation: &serde_json::Value) -> Vec<u8> {
    let opened: Vec<Checkpoint> = folders.iter().map(|f| Checkpoint::open(f).unwrap()).collect();
    let source = |c: &Checkpoint| {
        let files: Vec<_> = c.files.iter().map(|f| json!([f.name, f.size])).collect();
        json!({"kind": "checkpoint", "path": c.folder, "files": files, "fingerprint": c.fingerprint})
    };
    let row = |name: &str| {
        let shape = &opened[0].get(name).unwrap().shape;
        json!([name, "BF16", shape, 0, 0, [[0, name], [1, name], [2, name]]])
    };
    let plan = json!({
        "format": 1, "arithmetic": 3, "rounding": "nearest", "seed": 0,
        "sources": opened.iter().map(source).collect::<Vec<_>>(),
        "outputs": [{"folder": "", "alpha": 0.8}], "shards": ["model.safetensors"],
        "operations": [operation], "tensors": opened[0].names().map(row).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&plan).unwrap()
}

fn runs(c: &mut Criterion) {
    let root = tempfile::tempdir().unwrap();
    let folders: Vec<PathBuf> = ["target", "donor", "reference"].map(|role| root.path().join(role)).to_vec();
    for (folder, step) in folders.iter().zip([0.0, 0.01, 0.005]) {
        write(folder, step);
    }
    let out = root.path().join("out");
    let files: Vec<PathBuf> = folders.iter().map(|f| f.join("model.safetensors")).collect();
    let mut group = c.benchmark_group("run");
    group.sample_size(10).throughput(Throughput::Bytes(4 * TENSORS as u64 * ROWS * ROWS));
    group.bench_function("floor", |b| {
        b.iter(|| taskvec_core::throughput::floor(&files, &root.path().join("floor"), 2, &Monitor::default()).unwrap());
    });
    let term = |model: usize, density: f64| json!({"model": model, "reference": 0, "weight": 0.5, "density": density});
    let methods = [
        ("transfer", json!({"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]})),
        ("ties", json!({"kind": "ties", "terms": [term(1, 0.5), term(2, 0.5)], "normalize": true})),
        ("dare_ties", json!({"kind": "dare_ties", "terms": [term(1, 0.5), term(2, 0.5)], "rescale": "l1"})),
    ];
    for (name, operation) in methods {
        let plan = plan(&folders, &operation);
        group.bench_function(name, |b| {
            b.iter(|| {
                let _ = std::fs::remove_dir_all(&out);
                run(&plan, &out, &Options { threads: 2, ..Options::default() }, &Monitor::default()).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, runs);
criterion_main!(benches);
