//! Every method over every form of storage gives the same bytes on every machine: the hashes here were made on x86-64.
//! Whoever changes one on purpose raises the plan's number of the arithmetic.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::evaluate::evaluate;
use taskvec_core::header::encode;
use taskvec_core::in_place::{in_place, InPlace};
use taskvec_core::kernels::narrow::{narrow, Rounding};
use taskvec_core::kernels::Level;
use taskvec_core::monitor::Monitor;
use taskvec_core::storage::source::{Buffer, Buffers};

/// Name, type and shape of the tensors of every model: rows that no vector register divides.
const TENSORS: [(&str, Dtype, [u64; 2]); 5] = [
    ("bf16", Dtype::BF16, [17, 37]),
    ("f16", Dtype::F16, [5, 61]),
    ("f32", Dtype::F32, [3, 67]),
    ("f64", Dtype::F64, [2, 33]),
    ("f8", Dtype::F8E4M3, [9, 9]),
];

/// What was computed, and the first half of the BLAKE3 of its bytes.
const GOLDEN: [(&str, &str); 0] = [];

/// Models in memory: position among the sources. Then a checkpoint, a vector and an adapter in files.
const MODELS: usize = 4;
const CHECKPOINT: usize = 4;
const VECTOR: usize = 5;
const ADAPTER: usize = 6;

/// A tensor's bytes: values of the size of trained weights; no two `stream`s have the same.
fn bytes(dtype: Dtype, count: usize, stream: u64) -> Vec<u8> {
    let mut state = stream.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 / f64::from(1u32 << 31) - 0.5) * 0.25
    };
    let mut values: Vec<f64> = (0..count).map(|_| next()).collect();
    let mut out = vec![0; count * dtype.size()];
    narrow(Level::SCALAR, dtype, &mut values, Rounding::Nearest, &mut out);
    out
}

type Rows = Vec<(String, Dtype, Vec<u64>, Vec<u8>)>;

fn model(stream: u64) -> Rows {
    let row = |(index, (name, dtype, shape)): (usize, &(&str, Dtype, [u64; 2]))| {
        let count = shape.iter().product::<u64>() as usize;
        ((*name).to_owned(), *dtype, shape.to_vec(), bytes(*dtype, count, stream * 16 + index as u64))
    };
    TENSORS.iter().enumerate().map(row).collect()
}

/// A saved vector: a mask, indices, and indices with elements that are not given back, of rounded values.
fn vector() -> Rows {
    let mask: Vec<u8> = (0..79).map(|i| if i == 78 { 0b0000_0101 } else { (i * 37 % 256) as u8 }).collect();
    let ones = mask.iter().map(|byte| byte.count_ones()).sum::<u32>() as usize;
    let index = |list: &[i32]| list.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>();
    let values = |name: &str, dtype, count: usize, stream| {
        (name.to_owned(), dtype, vec![count as u64], bytes(dtype, count, stream))
    };
    let [many, few, exact] = [&[0, 1, 60, 61, 62, 200, 304][..], &[3, 64, 65, 200], &[0, 62, 304]];
    vec![
        ("bf16.mask".into(), Dtype::U8, vec![79], mask),
        values("bf16.values", Dtype::BF16, ones, 101),
        ("f16.indices".into(), Dtype::I32, vec![7], index(many)),
        values("f16.values", Dtype::F8E5M2, 7, 102),
        ("f16.exact.indices".into(), Dtype::I32, vec![3], index(exact)),
        values("f16.exact.donor", Dtype::F16, 3, 103),
        values("f16.exact.reference", Dtype::F16, 3, 104),
        ("f32.indices".into(), Dtype::I32, vec![4], index(few)),
        values("f32.values", Dtype::F32, 4, 105),
    ]
}

fn adapter() -> Rows {
    let factor = |name: &str, shape: [u64; 2], stream| {
        let count = shape.iter().product::<u64>() as usize;
        (name.to_owned(), Dtype::BF16, shape.to_vec(), bytes(Dtype::BF16, count, stream))
    };
    vec![
        factor("bf16.A", [3, 37], 201),
        factor("bf16.B", [17, 3], 202),
        factor("f16.A", [2, 5], 203),
        factor("f16.B", [61, 2], 204),
    ]
}

fn write(file: &Path, rows: &Rows, metadata: &[(&str, &str)]) {
    let mut contents = encode(rows.iter().map(|(n, d, s, _)| (n.as_str(), *d, s.as_slice())), metadata, 8);
    rows.iter().for_each(|row| contents.extend(&row.3));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, contents).unwrap();
}

/// The sources of every plan here, those in files below `root`.
fn sources(root: &Path) -> Vec<Value> {
    let origin = [("taskvec.origin.bf16", "BF16"), ("taskvec.origin.f16", "F16"), ("taskvec.origin.f32", "F32")];
    let metadata = [&[("format", "pt"), ("taskvec.rounded.f16", "1")][..], &origin].concat();
    write(&root.join("checkpoint/model.safetensors"), &model(9), &[("format", "pt")]);
    write(&root.join("vector/model.safetensors"), &vector(), &metadata);
    write(&root.join("adapter.safetensors"), &adapter(), &[("format", "pt")]);
    let file = |kind: &str, path: &str| {
        let path = root.join(path);
        let opened = if path.is_dir() { Checkpoint::open(&path) } else { Checkpoint::open_file(&path) };
        json!({"kind": kind, "path": path, "files": [], "fingerprint": opened.unwrap().fingerprint})
    };
    let memory = |i: usize| json!({"kind": "memory", "path": format!("dict {i}"), "files": [], "fingerprint": ""});
    let mut all: Vec<Value> = (0..MODELS).map(memory).collect();
    let mut adapter = file("lora", "adapter.safetensors");
    adapter["base"] = json!(CHECKPOINT);
    adapter["factors"] = json!({"bf16": ["bf16.A", "bf16.B", 0.5, false], "f16": ["f16.A", "f16.B", 2.0, true]});
    all.extend([file("checkpoint", "checkpoint"), file("vector", "vector"), adapter]);
    all
}

/// A plan of one shard: `operation` on the tensors of these names, from these sources.
fn plan(root: &Path, names: &[&str], inputs: &[usize], operation: &Value, (rounding, alpha): (&str, f64)) -> Vec<u8> {
    let row = |name: &&str| {
        let (_, dtype, shape) = TENSORS.iter().find(|row| row.0 == *name).unwrap();
        let inputs: Vec<Value> = inputs.iter().map(|source| json!([source, name])).collect();
        json!([name, dtype.name(), shape, 0, 0, inputs])
    };
    let plan = json!({
        "format": 1, "arithmetic": 2, "sources": sources(root), "outputs": [{"folder": "", "alpha": alpha}],
        "shards": ["model.safetensors"], "operations": [operation],
        "tensors": names.iter().map(row).collect::<Vec<_>>(), "rounding": rounding, "seed": 7,
    });
    serde_json::to_vec(&plan).unwrap()
}

/// The models in memory, as a run is given them.
fn memories(models: &[Rows]) -> Vec<Buffers<'_>> {
    fn named((name, dtype, shape, bytes): &(String, Dtype, Vec<u64>, Vec<u8>)) -> (String, Buffer<'_>) {
        (name.clone(), Buffer { dtype: *dtype, shape: shape.clone(), bytes })
    }
    models.iter().map(|rows| rows.iter().map(named).collect::<HashMap<_, _>>()).collect()
}

/// A term of model `model`, less the first, with further fields.
fn term(model: usize, weight: f64, more: Value) -> Value {
    let mut term = json!({"model": model, "reference": 0, "weight": weight});
    term.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    term
}

fn whole(model: usize, weight: f64) -> Value {
    json!({"model": model, "reference": null, "weight": weight})
}

/// What is computed of models in memory: a name, the operation, how many of them it takes.
fn operations() -> Vec<(&'static str, Value, usize)> {
    let two = |more: Value| [term(1, 0.7, more.clone()), term(2, 0.4, more)];
    let three = || [1, 2, 3].map(|model| term(model, 1.0, json!({})));
    let drawn = |more: Value| {
        let mut terms = two(more);
        terms.iter_mut().enumerate().for_each(|(stream, term)| term["stream"] = json!(stream));
        terms
    };
    let (half, ranked) = (json!({"density": 0.5}), json!({"density": 0.5, "epsilon": 0.2}));
    let outliers = json!({"density": 0.7, "gamma": 0.1});
    let unit = || [0, 1, 2].map(|model| whole(model, 1.0));
    vec![
        ("copy", json!({"kind": "copy"}), 1),
        ("task_arithmetic", json!({"kind": "task_arithmetic", "terms": two(json!({})), "lambda": 0.5}), 3),
        ("linear", json!({"kind": "linear", "terms": [whole(0, 0.3), whole(1, 0.9)], "normalize": true}), 2),
        ("ties", json!({"kind": "ties", "terms": two(half.clone()), "normalize": true, "rescale": "l1"}), 3),
        ("dare_linear", json!({"kind": "dare_linear", "terms": drawn(half.clone()), "rescale": "expectation"}), 3),
        ("dare_ties", json!({"kind": "dare_ties", "terms": drawn(half)}), 3),
        ("della", json!({"kind": "della", "terms": drawn(ranked.clone()), "rescale": "l1"}), 3),
        ("della_linear", json!({"kind": "della_linear", "terms": drawn(ranked)}), 3),
        ("breadcrumbs", json!({"kind": "breadcrumbs", "terms": two(outliers.clone())}), 3),
        ("breadcrumbs_ties", json!({"kind": "breadcrumbs_ties", "terms": two(outliers)}), 3),
        ("localize", json!({"kind": "localize", "terms": two(json!({"s": 0.2}))}), 3),
        ("slerp", json!({"kind": "slerp", "terms": [whole(0, 1.0), whole(1, 1.0)], "t": 0.3}), 2),
        ("nuslerp", json!({"kind": "nuslerp", "terms": two(json!({})), "base": 0, "flatten": false}), 3),
        ("multislerp", json!({"kind": "multislerp", "terms": unit(), "base": null}), 3),
        ("karcher", json!({"kind": "karcher", "terms": unit(), "max_iter": 10, "tol": 1e-5}), 3),
        ("model_stock", json!({"kind": "model_stock", "terms": three(), "filter_wise": true}), 4),
        ("sce", json!({"kind": "sce", "terms": three(), "select_topk": 0.3}), 4),
        ("ram", json!({"kind": "ram", "terms": three(), "epsilon": 0.01}), 4),
        ("ramplus_tl", json!({"kind": "ramplus_tl", "terms": three(), "epsilon": 0.02, "r": 0.1, "alpha": 0.2}), 4),
        ("nearswap", json!({"kind": "nearswap", "terms": [term(1, 1.0, json!({}))], "t": 0.005}), 2),
        ("consensus", json!({"kind": "consensus", "terms": three(), "tall_lambda": 0.6, "k": 2, "lambda": 0.5}), 4),
        ("emr", json!({"kind": "emr", "terms": three()}), 4),
        ("passthrough", json!({"kind": "passthrough", "terms": [whole(1, -0.5)]}), 2),
        ("arcee_fusion", json!({"kind": "arcee_fusion", "terms": [term(1, 1.0, json!({}))]}), 2),
        ("control_random", json!({"kind": "control_random", "terms": [term(1, 1.0, json!({}))]}), 2),
        ("control_permute", json!({"kind": "control_permute", "terms": [term(1, 1.0, json!({}))]}), 2),
    ]
}

/// The first half of the BLAKE3 of some bytes, in hexadecimal.
fn short_hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

/// All names and hashes are those of `GOLDEN` that begin with `group`.
fn compare(group: &str, found: &[(String, String)]) {
    let want: Vec<(String, String)> = GOLDEN
        .iter()
        .filter(|(name, _)| name.starts_with(group))
        .map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned()))
        .collect();
    let rows: String = found.iter().map(|(name, hash)| format!("    ({name:?}, {hash:?}),\n")).collect();
    assert!(found == want, "found:\n{rows}");
}

#[test]
fn every_method_on_every_type() {
    let root = tempfile::tempdir().unwrap();
    let models: Vec<Rows> = (0..MODELS as u64).map(model).collect();
    let memories = memories(&models);
    let names = TENSORS.map(|row| row.0);
    let mut found = Vec::new();
    for (name, operation, count) in operations() {
        let inputs: Vec<usize> = (0..count).collect();
        let bytes = |how| {
            let plan = plan(root.path(), &names, &inputs, &operation, how);
            evaluate(&plan, &memories, 2, false, &Monitor::default()).unwrap()
        };
        found.push((format!("method {name}"), short_hash(&bytes(("nearest", 0.8)))));
        found.push((format!("method {name}, stochastic"), short_hash(&bytes(("stochastic", 1.0)))));
    }
    compare("method", &found);
}

#[test]
fn every_form_of_storage() {
    let root = tempfile::tempdir().unwrap();
    let models: Vec<Rows> = (0..MODELS as u64).map(model).collect();
    let memories = memories(&models);
    let step = |more: Value| json!({"kind": "task_arithmetic", "terms": [more]});
    let mut found = Vec::new();
    for (name, tensors, source, operation) in [
        ("checkpoint", &TENSORS.map(|row| row.0)[..], CHECKPOINT, step(term(1, 0.7, json!({})))),
        ("vector", &["bf16", "f16", "f32"], VECTOR, step(whole(1, 0.7))),
        ("adapter", &["bf16", "f16", "f64"], ADAPTER, step(term(1, 0.7, json!({})))),
    ] {
        let plan = plan(root.path(), tensors, &[0, source], &operation, ("nearest", 1.0));
        let bytes = evaluate(&plan, &memories, 2, false, &Monitor::default()).unwrap();
        found.push((format!("storage {name}"), short_hash(&bytes)));
    }
    compare("storage", &found);
}

#[test]
fn in_place_the_same_bytes_as_in_a_run() {
    let root = tempfile::tempdir().unwrap();
    let models: Vec<Rows> = (0..MODELS as u64).map(model).collect();
    let memories = memories(&models);
    let names = TENSORS.map(|row| row.0);
    let operation = json!({"kind": "task_arithmetic", "terms": [term(1, 0.7, json!({}))]});
    let plan = plan(root.path(), &names, &[0, 1], &operation, ("nearest", 0.8));
    let want = evaluate(&plan, &memories, 1, false, &Monitor::default()).unwrap();
    let mut targets: Vec<Vec<u8>> = models[0].iter().map(|row| row.3.clone()).collect();
    for write in [false, true] {
        let slices = targets.iter_mut().map(Vec::as_mut_slice).collect();
        let options = InPlace { threads: 2, write, ..InPlace::default() };
        in_place(&plan, &memories, slices, &options, &Monitor::default()).unwrap();
        let unchanged = targets.iter().zip(&models[0]).all(|(target, row)| *target == row.3);
        assert_eq!(unchanged, !write);
    }
    assert_eq!(targets.concat(), want);
}
