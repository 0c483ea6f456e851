//! Small models, adapters and the plans that the Python layer would make of them. Each test that uses it needs a part.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::header;

/// Name, type and shape of the tensors of a model, the first two in one file and the third in another.
pub(crate) const TENSORS: [(&str, Dtype, &[u64]); 3] =
    [("a", Dtype::BF16, &[24, 8]), ("b", Dtype::F32, &[33]), ("c", Dtype::I64, &[3])];
pub(crate) const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Bytes of a tensor: values between one and two, of which `changed` in a hundred depend on `seed`.
fn values(dtype: Dtype, elements: u64, seed: u64, changed: u64) -> Vec<u8> {
    let value = |i: u64| {
        let own = if i * 37 % 100 < changed { seed + 1 } else { 0 };
        1.0 + ((i * 7 + own * 13) % 64) as f32 / 64.0
    };
    let bytes = |i: u64| match dtype {
        Dtype::BF16 => half::bf16::from_f32(value(i)).to_le_bytes().to_vec(),
        Dtype::F32 => (value(i) + (i + seed) as f32 / 8_388_608.0).to_le_bytes().to_vec(),
        _ => i.to_le_bytes().to_vec(),
    };
    (0..elements).flat_map(bytes).collect()
}

/// A safetensors file of these tensors.
pub(crate) fn file(rows: &[(&str, Dtype, &[u64])], seed: u64, changed: u64) -> Vec<u8> {
    let mut bytes = header::encode(rows.iter().copied(), &[("format", "pt")], 8);
    for (_, dtype, shape) in rows {
        bytes.extend(values(*dtype, shape.iter().product(), seed, changed));
    }
    bytes
}

/// A model of two shards.
pub(crate) fn model(folder: &Path, seed: u64) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(SHARDS[0]), file(&TENSORS[..2], seed, 20)).unwrap();
    fs::write(folder.join(SHARDS[1]), file(&TENSORS[2..], seed, 20)).unwrap();
    let index = json!({"weight_map": {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// The factors of an adapter of `a`, of rank 2.
pub(crate) fn adapter(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let rows: [(&str, Dtype, &[u64]); 2] = [("a.A", Dtype::F32, &[2, 8]), ("a.B", Dtype::F32, &[24, 2])];
    fs::write(folder.join("adapter_model.safetensors"), file(&rows, 1, 100)).unwrap();
}

/// A source of a plan.
pub(crate) fn source(kind: &str, path: &Path) -> Value {
    let opened = Checkpoint::open(path).unwrap();
    let files: Vec<Value> = opened.files.iter().map(|file| json!([file.name, file.size])).collect();
    json!({"kind": kind, "path": path, "files": files, "fingerprint": opened.fingerprint})
}

/// A plan that computes `a` and `b` of the first source by an operation on the inputs that `inputs` names, and copies
/// `c`.
pub(crate) fn plan(sources: &[Value], alphas: &[f64], operation: &Value, inputs: &[usize]) -> Value {
    let folder = |alpha: &f64| if alphas.len() == 1 { String::new() } else { format!("alpha={alpha}") };
    let row = |(index, (name, dtype, shape)): (usize, &(&str, Dtype, &[u64]))| {
        let copied = *dtype == Dtype::I64;
        let inputs = if copied { &[0][..] } else { inputs };
        let inputs: Vec<Value> = inputs.iter().map(|source| json!([source, name])).collect();
        json!([name, dtype.name(), shape, index / 2, usize::from(copied), inputs])
    };
    json!({
        "format": 1, "arithmetic": 3, "sources": sources,
        "outputs": alphas.iter().map(|alpha| json!({"folder": folder(alpha), "alpha": alpha})).collect::<Vec<_>>(),
        "shards": SHARDS, "operations": [operation, {"kind": "copy"}],
        "tensors": TENSORS.iter().enumerate().map(row).collect::<Vec<_>>(), "rounding": "nearest", "seed": 0,
    })
}

/// donor − reference, added to input 0.
pub(crate) fn difference() -> Value {
    json!({"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]})
}

/// Input 1, a vector, added to input 0.
pub(crate) fn addition() -> Value {
    json!({"kind": "task_arithmetic", "terms": [{"model": 1, "reference": null, "weight": 1.0}]})
}

/// A plan of an extraction: the first source less the second.
pub(crate) fn extraction(sources: [&Value; 2]) -> Value {
    let rows: Vec<Value> = TENSORS[..2].iter().map(|(name, _, shape)| json!([name, shape, name, name])).collect();
    json!({"format": 1, "sources": sources, "tensors": rows, "max_shard_size": 1 << 20, "dtype": null})
}

/// A plan of a comparison of two sources.
pub(crate) fn comparison(sources: [&Value; 2]) -> Value {
    let rows: Vec<Value> =
        TENSORS[..2].iter().map(|(name, _, shape)| json!([name, shape, [[0, name], [1, name]]])).collect();
    let side = |model: usize| json!([{"model": model, "reference": null, "weight": 1.0}]);
    json!({"format": 1, "sources": sources, "tensors": rows, "left": side(0), "right": side(1)})
}

/// The bytes of the tensors of a model, one after the other.
pub(crate) fn data(seed: u64) -> Vec<u8> {
    TENSORS.iter().flat_map(|(_, dtype, shape)| values(*dtype, shape.iter().product(), seed, 20)).collect()
}
