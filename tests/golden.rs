//! Every method over every form of storage gives the same bytes on every machine: these hashes are those of x86-64 and of
//! aarch64. Whoever changes one on purpose raises the plan's number of the arithmetic.

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
const GOLDEN: [(&str, &str); 59] = [
    ("storage checkpoint", "cfa3c59079e7c19e6ea251cc5cc29744"),
    ("storage vector", "685cfdba8e0523d5b65a81ccf7d19cf5"),
    ("storage adapter", "068aa0848a8e262ec07fe58bf1d4bd10"),
    ("method copy", "c6faf44c28ff50d091654bd6caefe486"),
    ("method copy, stochastic", "c6faf44c28ff50d091654bd6caefe486"),
    ("method task_arithmetic", "9c9fd1972b36b541e07b08619a7d1289"),
    ("method task_arithmetic, stochastic", "02d39d3b3bac3c850324c79e5ca44643"),
    ("method linear", "cd19fed0cd93314ee8899aca08dd94ea"),
    ("method linear, stochastic", "21ea3d23952fa53bbb1a8e6f1f5f1c06"),
    ("method ties", "bc3ce96d65bde9826d70cf720091840e"),
    ("method ties, stochastic", "ad8c00e57b7d5863b271a021cab9c7f1"),
    ("method dare_linear", "efbff122887b10cd7f7d46f3dba98bd3"),
    ("method dare_linear, stochastic", "b1cde371dc1fbca5fa0ed99c2b0d1df4"),
    ("method dare_ties", "ea25c351429bafb3990a5924c536187e"),
    ("method dare_ties, stochastic", "30221c6894b9a73db9b12a834df4b4c0"),
    ("method della", "e426c2470cd80805c5c6f46a8e2447bf"),
    ("method della, stochastic", "8165cace23d4f9de0a96bb76ee89c811"),
    ("method della_linear", "117a92de9d6000c0bc157904b3ec3d49"),
    ("method della_linear, stochastic", "ccbf97b4a46e45b8eb55128e295aad5e"),
    ("method breadcrumbs", "6bba985056ed679eb4b3da5bd5bb2548"),
    ("method breadcrumbs, stochastic", "09052d0c9fc417fbc36d3c395146d587"),
    ("method breadcrumbs_ties", "cbf6ca1ef7b8da3f6390780a9eb6b975"),
    ("method breadcrumbs_ties, stochastic", "c5874d292cf71ee85385c36ce5a1a785"),
    ("method localize", "2d37130d3a6959c1d87c9642b7ab986d"),
    ("method localize, stochastic", "50ba56a5658a0e5f58a2dfc1d8516757"),
    ("method slerp", "ab38abe8053d38dd61a2ca128f661985"),
    ("method slerp, stochastic", "25183c5009a4b78bac5d5e5564ca84a5"),
    ("method nuslerp", "81e494e77b831a8f99e48d0108a2ff4c"),
    ("method nuslerp, stochastic", "5b45b42430ad1444728049a2d75253de"),
    ("method multislerp", "064de4ae94073d52921dd11b2b8543c2"),
    ("method multislerp, stochastic", "78d24dea9df2991609aed72b1ea08860"),
    ("method karcher", "a29022c4da70f6ee148501ef61cc3739"),
    ("method karcher, stochastic", "9767d3efa31e03d4f3dd43dd966c5909"),
    ("method model_stock", "b3a9e6e475cbfa5cbd90cdc902717975"),
    ("method model_stock, stochastic", "cb8c7a44049f424c2bcacfc3fc16f909"),
    ("method sce", "627a44e654e2890baf0af997247d60c0"),
    ("method sce, stochastic", "4e02f9acd1d877307857eaac260c93b9"),
    ("method fisher", "a476f11b305f4f7b2260962875eacd1e"),
    ("method fisher, stochastic", "ff5c41bfe23a2e601cbfae41eb5175f4"),
    ("method sar", "d5ecdf1af1b8bed2edcc53d418de4514"),
    ("method sar, stochastic", "ba9392e747befe226bb59e849650231b"),
    ("method ram", "f7fa7000d989254706ee3820ff5d6698"),
    ("method ram, stochastic", "8ed323c5915e999c800bcfc08d6274b8"),
    ("method ramplus_tl", "737ed11abdf903c9641f99629f6fb13f"),
    ("method ramplus_tl, stochastic", "ce73ae8d2148a1114cf6aa3066da96c6"),
    ("method nearswap", "9751c0dc1deea64171648f63427e2fa6"),
    ("method nearswap, stochastic", "3691503af517baa4178df8885f6cd50e"),
    ("method consensus", "b2b48b104919eacf8df59489f77366b9"),
    ("method consensus, stochastic", "2be17d18a24cae5f241528dfe4a20eed"),
    ("method emr", "95b372646dda9ca4a2039eeca66e1dc9"),
    ("method emr, stochastic", "410e565b9088ddf4a640f9358ab75249"),
    ("method passthrough", "f14b3d676fcbebe98a5837f5c68694a4"),
    ("method passthrough, stochastic", "90530340662023578770df4b663a2d24"),
    ("method arcee_fusion", "86091adfdff4483de005545e08e8a55a"),
    ("method arcee_fusion, stochastic", "7872752aec71c46e17be196c4b8527ea"),
    ("method control_random", "d3fe227a6a88d0f63e61061cba7a1c20"),
    ("method control_random, stochastic", "cabf39f37185df902da9d40b33d159ec"),
    ("method control_permute", "622a6639469b7a799d3600d1ba9ce42c"),
    ("method control_permute, stochastic", "95b70dd14b9681fb82615e9ae8442d9e"),
];

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
    fs::write(file, contents).unwrap();
}

/// The sources of every plan here, those in files below `root`.
fn sources(root: &Path) -> Vec<Value> {
    let origin = [("taskvec.origin.bf16", "BF16"), ("taskvec.origin.f16", "F16"), ("taskvec.origin.f32", "F32")];
    let metadata = [&[("format", "pt"), ("taskvec.rounded.f16", "1")][..], &origin].concat();
    write(&root.join("checkpoint.safetensors"), &model(9), &[("format", "pt")]);
    write(&root.join("vector.safetensors"), &vector(), &metadata);
    write(&root.join("adapter.safetensors"), &adapter(), &[("format", "pt")]);
    let file = |kind: &str, path: &str| {
        let path = root.join(path);
        json!({"kind": kind, "path": path, "files": [], "fingerprint": Checkpoint::open_file(&path).unwrap().fingerprint})
    };
    let memory = |i: usize| json!({"kind": "memory", "path": format!("dict {i}"), "files": [], "fingerprint": ""});
    let mut all: Vec<Value> = (0..MODELS).map(memory).collect();
    let mut adapter = file("lora", "adapter.safetensors");
    adapter["base"] = json!(CHECKPOINT);
    adapter["factors"] = json!({"bf16": ["bf16.A", "bf16.B", 0.5, false], "f16": ["f16.A", "f16.B", 2.0, true]});
    all.extend([file("checkpoint", "checkpoint.safetensors"), file("vector", "vector.safetensors"), adapter]);
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
        "format": 1, "arithmetic": 3, "sources": sources(root), "outputs": [{"folder": "", "alpha": alpha}],
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

/// A whole model, each element of which matters as much.
fn important(model: usize, weight: f64, importance: f64) -> Value {
    let mut term = whole(model, weight);
    term["default_importance"] = json!(importance);
    term
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
    let matters = json!({"density": 0.4, "default_importance": 1.0});
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
        ("fisher", json!({"kind": "fisher", "terms": [important(1, 0.7, 2.0), important(2, 0.4, 3e-9)]}), 3),
        ("sar", json!({"kind": "sar", "terms": two(matters), "epsilon": 0.01, "rescale": "l1"}), 3),
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
