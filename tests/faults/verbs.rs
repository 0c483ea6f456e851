//! What the engine is asked for by each verb, on small models.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{json, Value};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::compare::compare;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::Result;
use taskvec_core::evaluate::evaluate;
use taskvec_core::extract::extract;
use taskvec_core::extract::join::join;
use taskvec_core::in_place::{in_place, InPlace};
use taskvec_core::monitor::Monitor;
use taskvec_core::output::assembly::assemble;
use taskvec_core::output::digest::digest_file;
use taskvec_core::output::folder::Options as Folder;
use taskvec_core::output::hold::Hold;
use taskvec_core::output::publish::{finish, replace, write_atomic};
use taskvec_core::run::{run, Options};

use crate::plans::{adapter, addition, comparison, difference, extraction, file, model, plan, source, SHARDS};

/// A folder with the inputs of all verbs.
pub(crate) struct World {
    _place: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) out: PathBuf,
    /// From one call that is tried to the next.
    pub(crate) step: usize,
}

/// Work of the engine: what it computes, as far as that is not in files.
pub(crate) type Work = Arc<dyn Fn() -> Result<Vec<u8>> + Send + Sync>;

impl World {
    /// In memory, where there is such a place: the runs flush many times.
    pub(crate) fn new() -> World {
        let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        World::at(place, 1)
    }

    /// On a disk, where space is reserved and written behind, and flushing takes its time.
    pub(crate) fn on_disk() -> World {
        World::at(tempfile::tempdir().unwrap(), 3)
    }

    fn at(place: tempfile::TempDir, step: usize) -> World {
        let root = place.path().canonicalize().unwrap();
        for (seed, name) in ["target", "donor", "reference"].iter().enumerate() {
            model(&root.join(name), seed as u64);
        }
        adapter(&root.join("adapter"));
        let world = World { out: root.join("output/model"), root, step, _place: place };
        let plan = extraction([&world.checkpoint("donor"), &world.checkpoint("reference")]);
        let vector = world.root.join("vector");
        extract(plan.to_string().as_bytes(), &[], &vector, &Options::default(), &Monitor::default()).unwrap();
        fs::remove_dir_all(vector.join(".taskvec")).unwrap();
        world
    }

    fn checkpoint(&self, name: &str) -> Value {
        source("checkpoint", &self.root.join(name))
    }

    fn checkpoints(&self) -> [Value; 3] {
        ["target", "donor", "reference"].map(|name| self.checkpoint(name))
    }

    /// Target and vector.
    fn with_vector(&self) -> [Value; 2] {
        let vector = self.root.join("vector/vector.safetensors");
        [self.checkpoint("target"), source("vector", &vector)]
    }

    /// Target, and a base with an adapter on top.
    fn with_adapter(&self) -> [Value; 3] {
        let path = self.root.join("adapter/adapter_model.safetensors");
        let opened = Checkpoint::open_file(&path).unwrap();
        let adapter = json!({"kind": "lora", "path": path, "files": [], "fingerprint": opened.fingerprint, "base": 1,
                             "factors": {"a": ["a.A", "a.B", 0.5, false]}});
        [self.checkpoint("target"), self.checkpoint("donor"), adapter]
    }

    fn transfer(&self, alphas: &[f64]) -> Value {
        plan(&self.checkpoints(), alphas, &difference(), &[0, 1, 2])
    }

    fn ties(&self) -> Value {
        let term = |model: usize| json!({"model": model, "reference": 0, "weight": 1.0, "density": 0.5});
        let operation = json!({"kind": "ties", "terms": [term(1), term(2)], "normalize": true});
        plan(&self.checkpoints(), &[1.0], &operation, &[0, 1, 2])
    }

    /// The verbs that write, by name, from the folder's lock to the end of the run.
    pub(crate) fn writer(&self, verb: &str) -> Work {
        let plan = match verb {
            "transfer" | "overwrite" | "resume" => self.transfer(&[0.5]),
            "alphas" => self.transfer(&[0.5, 1.0]),
            "merge" => self.ties(),
            "apply" => plan(&self.with_vector(), &[1.0], &addition(), &[0, 1]),
            "adapter" => plan(&self.with_adapter(), &[1.0], &difference(), &[0, 2, 1]),
            "extract" => {
                let [_, donor, reference] = self.checkpoints();
                return self.published(extraction([&donor, &reference]), false, |plan, out, options| {
                    extract(plan, &[], out, options, &Monitor::default())
                });
            }
            "join" => {
                let [_, donor, reference] = self.checkpoints();
                let (pieces, inputs) = (self.pieces(), ["donor", "reference"].map(|name| self.root.join(name)));
                return self.published(extraction([&donor, &reference]), false, move |plan, out, options| {
                    assemble(out, &inputs.each_ref().map(PathBuf::as_path), plan, &[])?;
                    join(plan, &pieces, out, options, &Monitor::default())
                });
            }
            _ => panic!("no verb `{verb}`"),
        };
        self.published(plan, verb == "overwrite", |plan, out, options| run(plan, out, options, &Monitor::default()))
    }

    /// The vector as a piece that is yet to be joined.
    fn pieces(&self) -> Vec<u8> {
        let mut plan = extraction([&self.checkpoint("donor"), &self.checkpoint("reference")]);
        plan["piece"] = true.into();
        let place = self.root.join("piece");
        let options = Options::default();
        let report = extract(plan.to_string().as_bytes(), &[], &place, &options, &Monitor::default()).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        let tensors: Vec<Value> = report["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                json!({"name": row["name"], "origin": row["origin"], "bytes": row["bytes"], "stored": row["stored"],
                   "rounded": row["rounded"] == true})
            })
            .collect();
        let path = place.join("vector.safetensors");
        json!([{"path": path, "size": report["shards"][0]["size"], "tensors": tensors}]).to_string().into_bytes()
    }

    fn published(
        &self,
        plan: Value,
        overwrite: bool,
        run: impl Fn(&[u8], &Path, &Options) -> Result<String> + Send + Sync + 'static,
    ) -> Work {
        let out = self.out.clone();
        let outputs: Vec<String> = match plan["outputs"].as_array() {
            Some(outputs) => outputs.iter().map(|output| output["folder"].as_str().unwrap().to_owned()).collect(),
            None => vec![String::new()],
        };
        let shards = if plan["shards"].is_array() { &SHARDS[..] } else { &["vector.safetensors"] };
        let files: Vec<Value> = shards.iter().map(|name| json!({"name": name})).collect();
        let manifest = json!({ "files": files }).to_string();
        let inputs: Vec<PathBuf> = ["target", "donor", "reference"].iter().map(|name| self.root.join(name)).collect();
        let folder = Folder { overwrite, ..Folder::default() };
        let options = Options { threads: 2, folder, ..Options::default() };
        Arc::new(move || {
            let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
            let outputs: Vec<PathBuf> = outputs.iter().map(|name| out.join(name)).collect();
            let held: Result<Vec<Hold>> = outputs.iter().map(|folder| Hold::take(folder, &inputs, None)).collect();
            let _held = held?;
            // As where a run was killed after its last manifest.
            if overwrite || !outputs.iter().all(|folder| folder.join("taskvec.json").exists()) {
                let report: Value = serde_json::from_str(&run(plan.to_string().as_bytes(), &out, &options)?).unwrap();
                for (at, folder) in outputs.iter().enumerate() {
                    // What is to replace another output is made in that one's state folder.
                    let made = folder.join(".taskvec/new");
                    let place = if report["outputs"][at]["replaces"] == true { &made } else { folder };
                    write_atomic(&place.join("config.json"), b"{}")?;
                    write_atomic(&place.join("taskvec.json"), manifest.as_bytes())?;
                    if place != folder {
                        replace(folder)?;
                    }
                }
            }
            outputs.iter().try_for_each(|folder| finish(folder))?;
            Ok(Vec::new())
        })
    }

    /// A merge of models of so many shards, of a tensor each.
    pub(crate) fn of_shards(&self, shards: usize) -> Work {
        let names: Vec<String> = (1..=shards).map(|i| format!("model-{i:05}-of-{shards:05}.safetensors")).collect();
        let tensors: Vec<String> = (0..shards).map(|i| format!("t{i}")).collect();
        let home = self.root.join(format!("of-{shards}"));
        let sources = ["target", "donor", "reference"].map(|name| {
            let folder = home.join(name);
            fs::create_dir_all(&folder).unwrap();
            for (tensor, shard) in tensors.iter().zip(&names) {
                fs::write(folder.join(shard), file(&[(tensor, Dtype::BF16, &[8])], 1, 50)).unwrap();
            }
            let weight_map: BTreeMap<&String, &String> = tensors.iter().zip(&names).collect();
            let index = json!({"weight_map": weight_map}).to_string();
            fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
            source("checkpoint", &folder)
        });
        let row =
            |i: usize| json!([tensors[i], "BF16", [8], i, 0, [[0, tensors[i]], [1, tensors[i]], [2, tensors[i]]]]);
        let plan = json!({
            "format": 1, "arithmetic": 3, "sources": sources, "outputs": [{"folder": "", "alpha": 0.5}],
            "shards": names, "operations": [difference()], "tensors": (0..shards).map(row).collect::<Vec<_>>(),
            "rounding": "nearest", "seed": 0,
        });
        let plan = plan.to_string();
        Arc::new(move || {
            let _ = fs::remove_dir_all(home.join("out"));
            let options = Options { threads: 1, ..Options::default() };
            run(plan.as_bytes(), &home.join("out"), &options, &Monitor::default()).map(String::into_bytes)
        })
    }

    /// The verbs that only read.
    pub(crate) fn reader(&self, verb: &str) -> Work {
        match verb {
            "inspect" => {
                let folder = self.root.join("target");
                Arc::new(move || {
                    let opened = Checkpoint::open(&folder)?;
                    let sample = opened.sample("a", 3, 20)?;
                    let bytes = [opened.read("b")?, opened.read("c")?].concat();
                    opened.unchanged()?;
                    let tensors: Vec<_> = opened.iter().collect();
                    Ok(format!("{tensors:?}{:?}{sample:?}{bytes:?}", opened.unlisted).into())
                })
            }
            "diff" => {
                let [_, donor, reference] = self.checkpoints();
                let plan = comparison([&donor, &reference]).to_string();
                Arc::new(move || {
                    let report: Value =
                        serde_json::from_str(&compare(plan.as_bytes(), &[], 2, &Monitor::default())?).unwrap();
                    Ok(report["tensors"].to_string().into())
                })
            }
            "evaluate" => {
                let mut plan = plan(&self.with_adapter(), &[1.0], &difference(), &[0, 2, 1]);
                plan["tensors"].as_array_mut().unwrap().truncate(2);
                plan["shards"] = json!([SHARDS[0]]);
                let plan = plan.to_string();
                Arc::new(move || evaluate(plan.as_bytes(), &[], 2, false, &Monitor::default()))
            }
            "verify" => {
                let folder = self.root.join("donor");
                Arc::new(move || {
                    let one = |name: &str| digest_file(&folder.join(name), 2, &|| false);
                    Ok(format!("{:?} {:?}", one(SHARDS[0])?, one(SHARDS[1])?).into())
                })
            }
            "in place" => {
                let [_, vector] = self.with_vector();
                let memory = json!({"kind": "memory", "path": "", "files": [], "fingerprint": ""});
                let mut plan = plan(&[memory, vector], &[1.0], &addition(), &[0, 1]);
                plan["tensors"].as_array_mut().unwrap().truncate(2);
                plan["shards"] = json!([SHARDS[0]]);
                let target = Checkpoint::open(&self.root.join("reference")).unwrap();
                let tensors = ["a", "b"].map(|name| target.read(name).unwrap());
                Arc::new(move || {
                    let mut tensors = tensors.clone();
                    let targets = tensors.iter_mut().map(Vec::as_mut_slice).collect();
                    let options = InPlace { threads: 2, write: true, allow_non_finite: false };
                    in_place(plan.to_string().as_bytes(), &[HashMap::new()], targets, &options, &Monitor::default())?;
                    Ok(tensors.concat())
                })
            }
            _ => panic!("no verb `{verb}`"),
        }
    }

    /// What an output folder is like before the verb begins.
    pub(crate) fn prepare(&self, verb: &str) {
        let output = self.out.parent().unwrap();
        if output.exists() {
            fs::remove_dir_all(output).unwrap();
        }
        match verb {
            "overwrite" => {
                self.writer("merge")().unwrap();
                fs::write(self.out.join("tokenizer.json"), b"old").unwrap();
            }
            "resume" => self.half(),
            _ => {}
        }
    }

    /// Turns a finished output into what a kill during the second shard leaves.
    fn half(&self) {
        let plan = self.transfer(&[0.5]).to_string();
        run(plan.as_bytes(), &self.out, &Options::default(), &Monitor::default()).unwrap();
        fs::remove_file(self.out.join(SHARDS[1])).unwrap();
        let journal = self.out.join(".taskvec/journal.jsonl");
        let text = fs::read_to_string(&journal).unwrap();
        let kept = text.split_inclusive('\n').filter(|line| !line.contains(SHARDS[1]));
        fs::write(&journal, kept.collect::<String>()).unwrap();
        fs::write(self.out.join(format!(".{}.part", SHARDS[1])), b"left by a kill").unwrap();
    }
}

/// The output folder, or those of several values of alpha in it.
pub(crate) fn folders(out: &Path) -> Vec<PathBuf> {
    let several: Vec<PathBuf> =
        names(out).iter().filter(|name| name.starts_with("alpha=")).map(|n| out.join(n)).collect();
    if several.is_empty() {
        vec![out.to_owned()]
    } else {
        several
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Files by their path in a folder.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below a folder.
pub(crate) fn contents(folder: &Path) -> Files {
    let mut found = entries(folder);
    found.retain(|path, _| !folder.join(path).is_dir());
    found
}

/// Every file below a folder, and every folder, which has no bytes.
pub(crate) fn entries(folder: &Path) -> Files {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(next) = pending.pop() {
        for name in names(&next) {
            let path = next.join(name);
            let is_folder = path.is_dir();
            let bytes = if is_folder { Vec::new() } else { fs::read(&path).unwrap() };
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            if is_folder {
                pending.push(path);
            }
        }
    }
    found
}
