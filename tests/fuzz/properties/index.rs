//! The index of a model of two shards: where it is taken, it says of every tensor, and of no other, where it is.

use std::cell::OnceCell;

use serde_json::Value;
use taskvec_core::checkpoint::Checkpoint;

use super::plans;

const NAME: &str = "model.safetensors.index.json";

thread_local! {
    static PLACE: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

pub(crate) fn check(input: &[u8]) {
    PLACE.with(|place| {
        let folder = place.get_or_init(|| {
            let place = super::place();
            plans::model(place.path(), 0);
            place
        });
        super::put(&folder.path().join(NAME), input);
        let opened = match Checkpoint::open(folder.path()) {
            Ok(opened) => opened,
            Err(error) => return super::assert_told(&error),
        };
        let index: Value = serde_json::from_slice(input).expect("JSON, since it was taken");
        let map = index["weight_map"].as_object().expect("a weight map");
        assert_eq!(map.len(), opened.names().count());
        for (name, tensor) in opened.iter() {
            assert_eq!(map[name], *opened.files[tensor.file].name, "{name}");
        }
    });
}
