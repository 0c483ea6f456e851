//! Reading and writing the header of a file of 100 000 tensors, and opening a checkpoint of as many in 100 shards.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::header;

const TENSORS: usize = 100_000;

fn names() -> Vec<String> {
    let part = |i| ["gate_proj", "up_proj", "down_proj"][i % 3];
    (0..TENSORS).map(|i| format!("model.layers.{}.mlp.experts.{i}.{}.weight", i / 1500, part(i))).collect()
}

fn encode(names: &[String]) -> Vec<u8> {
    let rows = names.iter().map(|name| (name.as_str(), Dtype::BF16, &[2u64, 2][..]));
    header::encode(rows, &[("format", "pt")], 4096)
}

fn headers(criterion: &mut Criterion) {
    let names = names();
    let bytes = encode(&names);
    let file_len = bytes.len() as u64 + 8 * TENSORS as u64;
    let mut group = criterion.benchmark_group("header");
    group.sample_size(20).throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("parse 100k", |b| b.iter(|| header::parse(black_box(&bytes[8..]), file_len).unwrap()));
    group.bench_function("encode 100k", |b| b.iter(|| encode(black_box(&names))));
    group.finish();
}

fn checkpoints(criterion: &mut Criterion) {
    let names = names();
    let folder = tempfile::tempdir().unwrap();
    let mut index = serde_json::Map::new();
    for (number, names) in names.chunks(TENSORS / 100).enumerate() {
        let file = format!("model-{:05}-of-00100.safetensors", number + 1);
        let mut bytes = encode(names);
        bytes.resize(bytes.len() + 8 * names.len(), 0);
        std::fs::write(folder.path().join(&file), bytes).unwrap();
        index.extend(names.iter().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let mut group = criterion.benchmark_group("checkpoint");
    group.sample_size(20);
    group.bench_function("open 100k in 100 shards", |b| b.iter(|| Checkpoint::open(folder.path()).unwrap()));
    group.finish();
}

criterion_group!(benches, headers, checkpoints);
criterion_main!(benches);
