//! The run loop: the same bytes for any number of threads and any layout, right against float64, and nothing lost.

use std::path::{Path, PathBuf};

use half::bf16;
use proptest::prelude::*;
use serde_json::{json, Value};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::Kind;
use taskvec_core::header::encode;
use taskvec_core::monitor::Monitor;
use taskvec_core::output::folder::Options as FolderOptions;
use taskvec_core::run::{run, Options};

/// Name, type, shape and bytes.
type Row = (String, Dtype, Vec<u64>, Vec<u8>);

fn write(folder: &Path, rows: &[Row]) {
    std::fs::create_dir_all(folder).unwrap();
    let header = encode(rows.iter().map(|(n, d, s, _)| (n.as_str(), *d, s.as_slice())), &[("format", "pt")], 8);
    let mut bytes = header;
    rows.iter().for_each(|(_, _, _, data)| bytes.extend(data));
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// A small deterministic generator: values of trained weights' size.
struct Random(u64);
impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as f64 / f64::from(1u32 << 31) - 0.5) * 0.1
    }
}

fn bytes(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    let one = |x: &f64| match dtype {
        Dtype::BF16 => bf16::from_f64(*x).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(*x as f32).to_le_bytes().to_vec(),
        Dtype::F32 => (*x as f32).to_le_bytes().to_vec(),
        Dtype::F64 => x.to_le_bytes().to_vec(),
        Dtype::F8E5M2 => vec![(half::f16::from_f32(*x as f32).to_bits() >> 8) as u8],
        _ => vec![*x as i64 as u8; dtype.size()],
    };
    values.iter().flat_map(one).collect()
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut out = vec![0.0; bytes.len() / dtype.size()];
    taskvec_core::kernels::widen::widen(taskvec_core::kernels::Level::SCALAR, dtype, bytes, &mut out);
    out
}

/// Three models of tensors of all kinds; sizes chosen so that blocks cut tensors, elements and headers.
fn models(root: &Path, shapes: &[(Dtype, u64)]) -> [PathBuf; 3] {
    ["target", "donor", "reference"].map(|role| {
        let mut random = Random(role.len() as u64);
        let rows: Vec<Row> = shapes
            .iter()
            .enumerate()
            .map(|(i, (dtype, n))| {
                let data: Vec<f64> = (0..*n).map(|_| random.next()).collect();
                (format!("t{i}"), *dtype, vec![*n], bytes(*dtype, &data))
            })
            .collect();
        write(&root.join(role), &rows);
        root.join(role)
    })
}

fn plan(folders: &[PathBuf; 3], alphas: &[f64], shards: usize, change: impl Fn(&mut Value)) -> Vec<u8> {
    let opened = folders.each_ref().map(|folder| Checkpoint::open(folder).unwrap());
    let names: Vec<&str> = opened[0].names().collect();
    let tensors: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let tensor = opened[0].get(name).unwrap();
            let float = tensor.dtype.is_float();
            let inputs: Vec<Value> = (0..if float { 3 } else { 1 }).map(|s| json!([s, name])).collect();
            let shard = i * shards / names.len();
            json!([name, tensor.dtype.name(), tensor.shape, shard, usize::from(!float), inputs])
        })
        .collect();
    let folder = |a: &f64| if alphas.len() == 1 { String::new() } else { format!("alpha={a}") };
    let mut plan = json!({
        "format": 1, "arithmetic": 3,
        "sources": opened.iter().map(|c| json!({"kind": "checkpoint", "path": c.folder,
            "files": c.files.iter().map(|f| json!([f.name, f.size])).collect::<Vec<_>>(),
            "fingerprint": c.fingerprint})).collect::<Vec<_>>(),
        "outputs": alphas.iter().map(|a| json!({"folder": folder(a), "alpha": a})).collect::<Vec<_>>(),
        "shards": (0..shards).map(|i| format!("model-{:05}-of-{shards:05}.safetensors", i + 1)).collect::<Vec<_>>(),
        "operations": [{"kind": "task_arithmetic", "terms": [{"model": 1, "reference": 2, "weight": 1.0}]},
                       {"kind": "copy"}],
        "tensors": tensors, "rounding": "nearest", "seed": 0,
    });
    change(&mut plan);
    serde_json::to_vec(&plan).unwrap()
}

fn execute(plan: &[u8], out: &Path, threads: usize) -> Value {
    report(run(plan, out, &Options { threads, ..Options::default() }, &Monitor::default()))
}

fn report(text: taskvec_core::error::Result<String>) -> Value {
    serde_json::from_str(&text.unwrap()).unwrap()
}

/// All tensors of an output that is not finished by an index: each shard on its own.
fn tensors(out: &Path) -> Vec<(String, Dtype, Vec<u8>)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(out).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let one = Checkpoint::open_file(&file).unwrap();
        all.extend(one.names().map(|n| (n.to_owned(), one.get(n).unwrap().dtype, one.read(n).unwrap())));
    }
    all
}

const MIXED: [(Dtype, u64); 12] = [
    (Dtype::U8, 3),
    (Dtype::BF16, 700_001),
    (Dtype::F8E5M2, 33),
    (Dtype::F32, 300_007),
    (Dtype::I64, 5),
    (Dtype::BF16, 0),
    (Dtype::Bool, 7),
    (Dtype::F64, 200_001),
    (Dtype::F16, 600_013),
    (Dtype::BF16, 1),
    (Dtype::F8E5M2, 1_100_001),
    (Dtype::BF16, 900_000),
];

#[test]
fn every_element_is_within_one_unit_of_float64_and_nearly_all_are_the_nearest() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &MIXED);
    let out = root.path().join("out");
    execute(&plan(&folders, &[0.8], 1, |_| {}), &out, 2);
    let inputs = folders.each_ref().map(|f| Checkpoint::open(f).unwrap());
    for (name, dtype, got) in tensors(&out) {
        let raw = inputs.each_ref().map(|c| c.read(&name).unwrap());
        if !dtype.is_float() {
            assert_eq!(got, raw[0], "{name}");
            continue;
        }
        let [t, d, r] = raw.each_ref().map(|b| values(dtype, b));
        let want: Vec<f64> = (0..t.len()).map(|i| t[i] + 0.8 * (d[i] - r[i])).collect();
        let nearest = {
            let mut out = vec![0; got.len()];
            let (level, rounding) =
                (taskvec_core::kernels::Level::SCALAR, taskvec_core::kernels::narrow::Rounding::Nearest);
            taskvec_core::kernels::narrow::narrow(level, dtype, &mut want.clone(), rounding, &mut out);
            values(dtype, &out)
        };
        let got = values(dtype, &got);
        let (bits, least) = match dtype {
            Dtype::BF16 => (7, -126),
            Dtype::F16 => (10, -14),
            Dtype::F32 => (23, -126),
            Dtype::F8E5M2 => (2, -14),
            _ => (52, -1022),
        };
        let unit = |x: f64| 2f64.powi((x.abs().log2().floor().max(f64::from(least)) as i32).max(least) - bits);
        let far = got.iter().zip(&want).filter(|(g, w)| (*g - *w).abs() > unit(**w)).count();
        let other = got.iter().zip(&nearest).filter(|(g, n)| g != n).count();
        assert_eq!(far, 0, "{name} {dtype}");
        assert!(other as f64 <= 0.0003 * got.len() as f64, "{name} {dtype}: {other} of {}", got.len());
    }
}

#[test]
fn the_same_bytes_for_any_threads_and_any_shards() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &MIXED);
    let all = |shards: usize, threads: usize| {
        let out = root.path().join(format!("out-{shards}-{threads}"));
        execute(&plan(&folders, &[0.5], shards, |p| p["rounding"] = json!("stochastic")), &out, threads);
        tensors(&out)
    };
    let first = all(1, 1);
    for (shards, threads) in [(1, 2), (1, 7), (3, 1), (3, 7), (12, 2)] {
        assert!(all(shards, threads) == first, "{shards} shards, {threads} threads");
    }
}

#[test]
fn several_alphas_are_the_single_runs_and_alpha_zero_is_the_target() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &MIXED);
    let alphas = [-1.0, 0.0, 0.5];
    let many = root.path().join("many");
    execute(&plan(&folders, &alphas, 2, |_| {}), &many, 3);
    for alpha in alphas {
        let one = root.path().join(format!("one{alpha}"));
        execute(&plan(&folders, &[alpha], 2, |_| {}), &one, 2);
        assert!(tensors(&one) == tensors(&many.join(format!("alpha={alpha}"))), "{alpha}");
    }
    let target = Checkpoint::open(&folders[0]).unwrap();
    for (name, _, bytes) in tensors(&many.join("alpha=0")) {
        assert!(bytes == target.read(&name).unwrap(), "{name}");
    }
}

#[test]
fn from_the_reference_alpha_one_gives_the_donor() {
    let root = tempfile::tempdir().unwrap();
    let [_, donor, reference] = models(root.path(), &MIXED);
    let folders = [reference.clone(), donor.clone(), reference];
    let out = root.path().join("out");
    execute(&plan(&folders, &[1.0], 1, |_| {}), &out, 2);
    let donor = Checkpoint::open(&donor).unwrap();
    for (name, dtype, bytes) in tensors(&out) {
        assert!(!dtype.is_float() || bytes == donor.read(&name).unwrap(), "{name}");
    }
}

#[test]
fn survival_counts_what_rounding_took() {
    let root = tempfile::tempdir().unwrap();
    let row = |x: f64| vec![("t0".to_owned(), Dtype::BF16, vec![1000], bytes(Dtype::BF16, &vec![x; 1000]))];
    let folders = ["target", "donor", "reference"].map(|role| root.path().join(role));
    write(&folders[0], &row(1.0));
    write(&folders[1], &row(1.0 + 1.0 / 128.0));
    write(&folders[2], &row(1.0));
    let report = execute(&plan(&folders, &[0.3], 1, |_| {}), &root.path().join("out"), 1);
    let total = &report["outputs"][0]["survival"]["total"];
    assert_eq!((&total["changed"], &total["rounded_away"]), (&json!(1000), &json!(1000)));
    assert_eq!(total["moved_norm"], json!(0.0));
    let report = execute(&plan(&folders, &[1.0], 1, |_| {}), &root.path().join("out1"), 1);
    let total = &report["outputs"][0]["survival"]["total"];
    assert_eq!(
        (&total["rounded_away"], &total["cosine"], &total["relative_error"]),
        (&json!(0), &json!(1.0), &json!(0.0))
    );
}

#[test]
fn values_that_are_not_finite_are_counted_and_refused_or_allowed() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &[(Dtype::BF16, 2_000_000), (Dtype::F32, 900_000)]);
    let mut data = vec![0.01; 900_000];
    for at in [3, 700_000, 899_999] {
        data[at] = f64::NAN;
    }
    let rows = |role: &Path| {
        let old = Checkpoint::open(role).unwrap();
        vec![
            ("t0".to_owned(), Dtype::BF16, vec![2_000_000], old.read("t0").unwrap()),
            ("t1".to_owned(), Dtype::F32, vec![900_000], bytes(Dtype::F32, &data)),
        ]
    };
    let changed = rows(&folders[1]);
    write(&folders[1], &changed);
    let json = plan(&folders, &[0.5], 1, |_| {});
    let out = root.path().join("out");
    let error = run(&json, &out, &Options::default(), &Monitor::default()).unwrap_err();
    assert_eq!(error.kind, Kind::NonFinite);
    assert!(error.message.contains("3 in input `t1`") && error.message.contains("3 in output `t1`"), "{error}");
    assert!(tensors(&out).is_empty(), "nothing is published");
    let allowed = Options { allow_non_finite: true, ..Options::default() };
    let report = report(run(&json, &out, &allowed, &Monitor::default()));
    assert_eq!(report["outputs"][0]["non_finite"][0][2], json!(3));
    // What is there is kept, with figures of which some do not exist.
    let again = self::report(run(&json, &out, &allowed, &Monitor::default()));
    assert_eq!(again["resumed_shards"], 1);
    assert_eq!(again["outputs"], report["outputs"]);
}

#[test]
fn a_cancelled_run_goes_on_where_it_stopped() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &MIXED);
    let json = plan(&folders, &[0.5], 4, |_| {});
    let whole = root.path().join("whole");
    execute(&json, &whole, 2);
    let out = root.path().join("out");
    for wait in [0u64, 1, 2, 4, 8] {
        let monitor = Monitor::default();
        std::thread::scope(|scope| {
            let stopper = scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(wait));
                monitor.cancel();
            });
            let ended = run(&json, &out, &Options { threads: 1, ..Options::default() }, &monitor);
            assert!(ended.is_ok() || ended.unwrap_err().kind == Kind::Interrupted);
            stopper.join().unwrap();
        });
    }
    let report = execute(&json, &out, 2);
    assert!(tensors(&out) == tensors(&whole));
    assert_eq!(
        report["outputs"][0]["survival"],
        execute_again(&json, &root.path().join("again"))["outputs"][0]["survival"]
    );
}

fn execute_again(json: &[u8], out: &Path) -> Value {
    execute(json, out, 3)
}

#[test]
fn too_little_memory_is_refused_and_less_memory_means_fewer_threads() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &[(Dtype::BF16, 1000)]);
    let json = plan(&folders, &[0.5], 1, |_| {});
    let tight = Options { max_memory: Some(1 << 20), ..Options::default() };
    assert_eq!(run(&json, &root.path().join("a"), &tight, &Monitor::default()).unwrap_err().kind, Kind::Plan);
    let some = Options { max_memory: Some(30 << 20), threads: 64, ..Options::default() };
    let report = report(run(&json, &root.path().join("b"), &some, &Monitor::default()));
    assert!(report["threads"].as_u64().unwrap() < 8);
}

/// Coefficients of whole columns are kept until all are known, so that they count.
#[test]
fn what_is_kept_of_columns_is_within_the_bound_or_refused() {
    let root = tempfile::tempdir().unwrap();
    let folders = ["target", "donor", "reference"].map(|role| root.path().join(role));
    let along = |row_wise: bool, columns: u64| {
        let data: Vec<f64> = (0..17 << 17).map(|i| f64::from(i % 64) - 20.0).collect();
        for folder in &folders {
            let _ = std::fs::remove_dir_all(folder);
            let shape = vec![(17 << 17) / columns, columns];
            write(folder, &[("t".into(), Dtype::BF16, shape, bytes(Dtype::BF16, &data))]);
        }
        let terms: Vec<Value> = [0, 1].map(|model| json!({"model": model, "reference": null, "weight": 1.0})).into();
        let operation = json!({"kind": "nuslerp", "terms": terms, "flatten": false, "row_wise": row_wise});
        plan(&folders, &[1.0], 1, |p| p["operations"][0] = operation.clone())
    };
    let tight = Options { max_memory: Some(24 << 20), ..Options::default() };
    let out = |name: &str| root.path().join(name);
    let error = run(&along(true, 1 << 17), &out("a"), &tight, &Monitor::default()).unwrap_err();
    assert!(error.kind == Kind::Plan && error.message.contains("not enough"), "{error}");
    // Rows of 17 elements are looked at with each tile.
    run(&along(false, 17), &out("b"), &tight, &Monitor::default()).unwrap();
}

#[test]
fn a_plan_that_lies_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &[(Dtype::BF16, 10), (Dtype::I64, 4)]);
    type Lie = Box<dyn Fn(&mut Value)>;
    let lies: [(&str, Lie); 13] = [
        ("format", Box::new(|p| p["format"] = json!(2))),
        ("arithmetic", Box::new(|p| p["arithmetic"] = json!(0))),
        ("unknown field", Box::new(|p| p["surprise"] = json!(1))),
        ("fingerprint", Box::new(|p| p["sources"][1]["fingerprint"] = json!("00"))),
        ("shape", Box::new(|p| p["tensors"][0][2] = json!([11]))),
        ("overflow", Box::new(|p| p["tensors"][0][2] = json!([u64::MAX, 3]))),
        ("missing tensor", Box::new(|p| p["tensors"][0][5][1][1] = json!("t9"))),
        ("source out of range", Box::new(|p| p["tensors"][0][5][1][0] = json!(7))),
        (
            "integers in arithmetic",
            Box::new(|p| p["tensors"][1] = json!(["t1", "I64", [4], 0, 0, [[0, "t1"], [1, "t1"], [2, "t1"]]])),
        ),
        ("shard that escapes", Box::new(|p| p["shards"][0] = json!("../model.safetensors"))),
        ("shard in a folder that its tensors have not", Box::new(|p| p["shards"][0] = json!("unet/model.safetensors"))),
        ("written twice", Box::new(|p| p["tensors"][1] = p["tensors"][0].clone())),
        ("alpha", Box::new(|p| p["outputs"][0]["folder"] = json!("../x"))),
    ];
    for (what, change) in lies {
        let out = root.path().join("out");
        let error = run(&plan(&folders, &[0.5], 1, change), &out, &Options::default(), &Monitor::default());
        let error = error.expect_err(what);
        assert!(matches!(error.kind, Kind::Plan | Kind::Format | Kind::NotFound), "{what}: {error}");
        assert!(!out.exists(), "{what}");
    }
}

#[test]
fn figures_that_nobody_has_written_are_a_damaged_journal() {
    let root = tempfile::tempdir().unwrap();
    let folders = models(root.path(), &[(Dtype::BF16, 1000)]);
    let (out, plan) = (root.path().join("out"), plan(&folders, &[0.5], 1, |_| {}));
    let again = || run(&plan, &out, &Options::default(), &Monitor::default());
    again().unwrap();
    let journal = out.join(".taskvec/journal.jsonl");
    let whole = std::fs::read_to_string(&journal).unwrap();
    for (from, to) in [("\"tensors\":[", "\"tensors\":[7,"), ("\"tensors\":[", "\"tensors\":[[\"w\",{}],")] {
        assert!(whole.contains(from));
        std::fs::write(&journal, whole.replacen(from, to, 1)).unwrap();
        let error = again().unwrap_err();
        assert!(error.message.contains("is damaged: the entry of `"), "{error}");
        assert_eq!(error.hint.as_deref(), Some("use --overwrite to begin again"));
    }
    std::fs::write(&journal, whole).unwrap();
    assert_eq!(report(again())["resumed_shards"], 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn tensors_of_any_sizes_come_out_whole(sizes in prop::collection::vec((0usize..6, 0u64..700_000), 1..6)) {
        let types = [Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::F64, Dtype::F8E5M2, Dtype::F16];
        let shapes: Vec<(Dtype, u64)> = sizes.iter().map(|(t, n)| (types[*t], *n)).collect();
        let root = tempfile::tempdir().unwrap();
        let folders = models(root.path(), &shapes);
        let out = root.path().join("out");
        execute(&plan(&folders, &[1.0], 1, |p| p["operations"][0]["terms"][0]["model"] = json!(2)), &out, 2);
        // donor = reference: the target comes out.
        let target = Checkpoint::open(&folders[0]).unwrap();
        for (name, _, bytes) in tensors(&out) {
            prop_assert!(bytes == target.read(&name).unwrap(), "{}", name);
        }
        let options = Options { folder: FolderOptions { rehash: true, ..FolderOptions::default() }, ..Options::default() };
        let again = run(&plan(&folders, &[1.0], 1, |p| p["operations"][0]["terms"][0]["model"] = json!(2)), &out, &options, &Monitor::default());
        prop_assert_eq!(&report(again)["resumed_shards"], 1);
    }
}
