//! What an opened checkpoint tells, and how it notices that it is no longer true. Verdicts on folders: `corpus.rs`.

use std::fs;

use folders::{index, put, shard, sharded, INDEX, ONE};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::dtype::Dtype;
use taskvec_core::error::Kind;
use taskvec_core::header;

mod folders;

#[test]
fn a_file_an_index_or_an_adapter_can_be_given_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    put(folder.path(), "adapter_model.safetensors", shard(&["lora"]));
    put(folder.path(), "odd.name", shard(&["odd"]));
    put(folder.path(), "weights.bin", "");
    let open = |name: &str| Checkpoint::open(&folder.path().join(name));
    assert_eq!(open(ONE).unwrap().names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(open(INDEX).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(open("adapter_model.safetensors").unwrap().names().collect::<Vec<_>>(), ["lora"]);
    assert!(open("weights.bin").unwrap_err().message.contains("in pickle form"));
    assert!(open("odd.name").unwrap_err().message.contains("neither a folder nor a `.safetensors` file"));
    assert_eq!(open("nowhere").unwrap_err().kind, Kind::NotFound);
    assert_eq!(open("nowhere.safetensors").unwrap_err().kind, Kind::NotFound);
    assert_eq!(Checkpoint::open_file(&folder.path().join("odd.name")).unwrap().names().collect::<Vec<_>>(), ["odd"]);
}

#[test]
fn tensors_of_files_in_sub_folders_have_their_path_before_the_names() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "top.safetensors", shard(&["a"]));
    for (place, tensor) in [("unet", "a"), ("vae/deep", "b")] {
        fs::create_dir_all(folder.path().join(place)).unwrap();
        put(&folder.path().join(place), "model.safetensors", shard(&[tensor]));
    }
    let files = ["unet/model.safetensors", "vae/deep/model.safetensors", "top.safetensors"].map(str::to_owned);
    let open = |files: &[String]| Checkpoint::open_files(folder.path(), files);
    let opened = open(&files).unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["unet/a", "vae/deep/b", "a"]);
    assert_eq!(opened.files.iter().map(|file| &file.name).collect::<Vec<_>>(), files.iter().collect::<Vec<_>>());
    assert_eq!(opened.read("unet/a").unwrap(), opened.read("a").unwrap());
    for outside in ["../x.safetensors", "/x.safetensors", "unet//model.safetensors", "./top.safetensors", "notes.txt"] {
        let error = open(&[outside.to_owned()]).unwrap_err();
        assert!(error.kind == Kind::Format && error.message.contains("is not a path below the folder"), "{error}");
    }
    // A name that two files would have.
    put(folder.path(), "clash.safetensors", shard(&["unet/a"]));
    let error = open(&["clash.safetensors".to_owned(), files[0].clone()]).unwrap_err();
    assert!(error.message.contains("is in both"), "{error}");
}

#[test]
fn files_tell_where_everything_is() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [("x", Dtype::BF16, &[2u64, 2][..]), ("empty", Dtype::F32, &[0]), ("y", Dtype::F64, &[])];
    let mut bytes = header::encode(rows.into_iter(), &[("format", "pt"), ("step", "7")], 64);
    let start = bytes.len() as u64;
    bytes.extend([0, 63, 128, 63, 0, 64, 64, 64]);
    bytes.extend(0.1f64.to_le_bytes());
    put(folder.path(), "model.safetensors", &bytes);
    put(folder.path(), "other.safetensors", "");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.folder, folder.path());
    assert_eq!(checkpoint.unlisted, ["other.safetensors"]);
    assert_eq!(checkpoint.metadata["step"], "7");
    let file = &checkpoint.files[0];
    assert_eq!((file.name.as_str(), file.size, file.header_len), ("model.safetensors", bytes.len() as u64, start - 8));
    let y = checkpoint.get("y").unwrap();
    assert_eq!((y.dtype, y.shape, y.file, y.offset, y.len), (Dtype::F64, &[][..], 0, start + 8, 8));
    assert_eq!(checkpoint.fingerprint, blake3::hash(&bytes[..start as usize]).to_hex().as_str());
    assert!(checkpoint.get("z\n").unwrap_err().message.contains(r"there is no tensor `z\n`"));

    assert_eq!(checkpoint.sample("x", 1, 3).unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(checkpoint.sample("y", 0, 1).unwrap(), [0.1]);
    assert!(checkpoint.sample("empty", 0, 0).unwrap().is_empty());
    // As far as it goes.
    assert_eq!(checkpoint.sample("x", 2, u64::MAX).unwrap(), [2.0, 3.0]);
    assert!(checkpoint.sample("x", 5, 1).unwrap().is_empty());
}

#[test]
fn the_fingerprint_covers_all_headers_in_order_and_no_data() {
    let folder = tempfile::tempdir().unwrap();
    sharded(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut one = shard(&["a"]);
    let two = shard(&["b"]);
    let headers = [&one[..one.len() - 1], &two[..two.len() - 1]].concat();
    assert_eq!(checkpoint.fingerprint, blake3::hash(&headers).to_hex().as_str());
    *one.last_mut().unwrap() = 9;
    put(folder.path(), ONE, one);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().fingerprint, checkpoint.fingerprint);
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "model.safetensors", shard(&["a"]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    checkpoint.unchanged().unwrap();
    put(folder.path(), "new", shard(&["b"]));
    fs::rename(folder.path().join("new"), folder.path().join("model.safetensors")).unwrap();
    for error in [
        checkpoint.unchanged().unwrap_err(),
        checkpoint.read("a").unwrap_err(),
        checkpoint.map().unwrap_err(),
        checkpoint.mapped(0).map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind, Kind::Format);
        assert!(error.message.contains("was replaced by another file"), "{error}");
    }
}

#[test]
fn a_hundred_shards_open_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<(String, String)> =
        (0..100).map(|i| (format!("t{i}"), format!("model-{:06}-of-000100.safetensors", i + 1))).collect();
    for (tensor, file) in &names {
        put(folder.path(), file, shard(&[tensor]));
    }
    let rows: Vec<_> = names.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str())).collect();
    put(folder.path(), INDEX, index(&rows));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.names().eq(names.iter().map(|(tensor, _)| tensor)));
    assert!(checkpoint.files.iter().map(|file| &file.name).eq(names.iter().map(|(_, file)| file)));
    // The first error in file order, however the files are shared out.
    put(folder.path(), &names[98].1, "");
    put(folder.path(), &names[17].1, "short");
    assert!(Checkpoint::open(folder.path()).unwrap_err().message.contains("model-000018-of"));
}
