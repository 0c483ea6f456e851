//! A file of a saved vector: applied to a model it is refused, or gives the same whatever the number of threads, and
//! its tensors are those that a decoder of a few lines finds.

use std::cell::OnceCell;

use serde_json::json;
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::evaluate::evaluate;
use taskvec_core::monitor::Monitor;

use super::plans;

thread_local! {
    static PLACE: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

pub(crate) fn check(input: &[u8]) {
    PLACE.with(|place| {
        let folder = place.get_or_init(|| {
            let place = super::place();
            plans::model(&place.path().join("target"), 0);
            place
        });
        let path = folder.path().join("vector.safetensors");
        super::put(&path, input);
        let opened = match Checkpoint::open_file(&path) {
            Ok(opened) => opened,
            Err(error) => return super::assert_told(&error),
        };
        let target = plans::source("checkpoint", &folder.path().join("target"));
        let vector = json!({"kind": "vector", "path": path, "files": [], "fingerprint": opened.fingerprint});
        let mut plan = plans::plan(&[target, vector], &[1.0], &plans::addition(), &[0, 1]);
        plan["shards"] = json!([plans::SHARDS[0]]);
        for at in 0..2 {
            let mut plan = plan.clone();
            plan["tensors"] = json!([plan["tensors"][at]]);
            let plan = plan.to_string();
            let computed = |threads| evaluate(plan.as_bytes(), &[], threads, true, &Monitor::default());
            match computed(1) {
                Ok(data) => {
                    assert!(computed(2).is_ok_and(|again| again == data));
                    let name = plans::TENSORS[at].0;
                    assert_zeros_stay(&opened, name, &folder.path().join("target"), &data);
                }
                Err(error) => super::assert_told(&error),
            }
        }
    });
}

/// Where the mask or the indices have no value the target is as it was.
fn assert_zeros_stay(vector: &Checkpoint, name: &str, target: &std::path::Path, data: &[u8]) {
    let part = |suffix: &str| vector.read(&format!("{name}.{suffix}")).ok();
    let target = Checkpoint::open(target).and_then(|target| target.read(name)).expect("the target");
    let size = data.len() / if name == "a" { 192 } else { 33 };
    let exact: Vec<u64> =
        part("exact.indices").map_or(Vec::new(), |bytes| integers(vector, name, "exact.indices", &bytes));
    let stored: Vec<u64> = match (part("mask"), part("indices")) {
        (Some(mask), _) => (0..mask.len() as u64 * 8).filter(|i| mask[*i as usize / 8] >> (i % 8) & 1 == 1).collect(),
        (None, Some(bytes)) => integers(vector, name, "indices", &bytes),
        (None, None) => return,
    };
    for element in 0..data.len() / size {
        if !stored.contains(&(element as u64)) && !exact.contains(&(element as u64)) {
            let range = element * size..(element + 1) * size;
            assert_eq!(data[range.clone()], target[range], "element {element} of {name}");
        }
    }
}

fn integers(vector: &Checkpoint, name: &str, part: &str, bytes: &[u8]) -> Vec<u64> {
    let size = vector.get(&format!("{name}.{part}")).expect("it was read").dtype.size();
    let wide = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    bytes.chunks_exact(size).map(wide).collect()
}
