//! The corpus: every hostile or strange header and folder, with its verdict.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use folders::{index, put, shard, sharded, INDEX, ONE, TWO};
use taskvec_core::checkpoint::Checkpoint;
use taskvec_core::error::Kind;
use taskvec_core::header;

mod folders;

/// The JSON of a file, what data follow it, and what the message must say. Nothing else is in the file.
#[rustfmt::skip]
const HOSTILE: &[(&str, &str, u64, &str)] = &[
    ("nothing", "", 0, "starts with nothing, not with `{`"),
    ("an array", "[]", 0, "starts with `[`"),
    ("a space before the brace", r#" {}"#, 0, "starts with byte 0x20"),
    ("a byte order mark", "\u{feff}{}", 0, "starts with byte 0xef"),
    ("an object left open", r#"{"a":{"dtype":"U8""#, 0, "EOF while parsing an object"),
    ("something behind the object", r#"{} {}"#, 0, "trailing characters"),
    ("zeros as padding", "{}\0\0", 0, "trailing characters"),
    ("a comma at the end", r#"{"__metadata__":{"a":"b"},}"#, 0, "trailing comma"),
    ("a raw newline in a name", "{\"a\nb\":{}}", 0, "control character"),
    ("half a surrogate pair", r#"{"\ud800":{}}"#, 0, "hex escape"),
    ("a key that is no string", r#"{1:{}}"#, 0, "key must be a string"),
    ("the same tensor twice", r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, 0, "has the key `a` twice"),
    ("the same tensor twice, spelt differently", r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#, 0, "has the key `a` twice"),
    ("metadata twice", r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "has the key `__metadata__` twice"),
    ("a metadata key twice", r#"{"__metadata__":{"k":"1","k":"1"}}"#, 0, "metadata have the key `k` twice"),
    ("dtype twice", r#"{"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1, "`a` has the key `dtype` twice"),
    ("shape twice", r#"{"a":{"dtype":"U8","shape":[],"shape":[],"data_offsets":[0,1]}}"#, 1, "`a` has the key `shape` twice"),
    ("offsets twice", r#"{"a":{"data_offsets":[0,1],"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1, "`a` has the key `data_offsets` twice"),
    ("no dtype", r#"{"a":{"shape":[],"data_offsets":[0,1]}}"#, 1, "`a` has no `dtype`"),
    ("no shape", r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, 1, "`a` has no `shape`"),
    ("no offsets", r#"{"a":{"dtype":"U8","shape":[]}}"#, 1, "`a` has no `data_offsets`"),
    ("an unknown key", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"scale":2}}"#, 1, "`a` has the key `scale`, which the format does not know"),
    ("an unknown dtype", r#"{"a":{"dtype":"F128","shape":[],"data_offsets":[0,16]}}"#, 16, "`a` has dtype `F128`, which the format does not know"),
    ("a dtype in lower case", r#"{"a":{"dtype":"bf16","shape":[],"data_offsets":[0,2]}}"#, 2, "`a` has dtype `bf16`, which the format does not know"),
    ("elements smaller than a byte", r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}"#, 3, "`a` has dtype `F6_E2M3`, whose elements are smaller than a byte"),
    ("half of a byte left over", r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2, "`a` is F4 [3], an odd number of elements, of which two share a byte"),
    ("a byte for each half", r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,2]}}"#, 2, "has 1 bytes, its offsets span 2"),
    ("a dtype that is a number", r#"{"a":{"dtype":8,"shape":[],"data_offsets":[0,1]}}"#, 1, "`a` is not described as expected: invalid type: integer `8`, expected the name of a dtype"),
    ("a tensor that is a list", r#"{"a":[]}"#, 0, "`a` is not described as expected: invalid type: sequence"),
    ("a tensor that is null", r#"{"a":null}"#, 0, "`a` is not described as expected: invalid type: null"),
    ("a side that is negative", r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1, "invalid value: integer `-1`"),
    ("a side that is a fraction", r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, 1, "invalid type: floating point `1.5`"),
    ("a side with a decimal point", r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, 1, "invalid type: floating point `1.0`"),
    ("a side with an exponent", r#"{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}"#, 1, "invalid type: floating point"),
    ("a side of minus zero", r#"{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}"#, 0, "invalid type: floating point"),
    ("a side of 2 to the 64", r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#, 1, "invalid type: floating point"),
    ("a side with a leading zero", r#"{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}"#, 1, "invalid number"),
    ("a side in quotes", r#"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#, 1, "invalid type: string \"1\""),
    ("a shape that is a number", r#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#, 1, "invalid type: integer `1`, expected a sequence"),
    ("one offset", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0]}}"#, 1, "invalid length 1, expected two `data_offsets`"),
    ("three offsets", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1,2]}}"#, 1, "invalid length 3, expected two `data_offsets`"),
    ("a negative offset", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[-1,0]}}"#, 1, "invalid value: integer `-1`"),
    ("offsets in reverse", r#"{"a":{"dtype":"U8","shape":[],"data_offsets":[1,0]}}"#, 1, "`a` begins at byte 1 and ends before it, at 0"),
    ("a product that overflows", r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0, "has more bytes than 64 bits can count"),
    ("a product that overflows in bytes", r#"{"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}}"#, 0, "has more bytes than 64 bits can count"),
    ("too few bytes for the shape", r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,23]}}"#, 23, "`a` of shape [2, 3] and dtype F32 has 24 bytes, its offsets span 23"),
    ("bytes for an empty shape", r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,4]}}"#, 4, "has 0 bytes, its offsets span 4"),
    ("none for a scalar", r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,0]}}"#, 0, "has 4 bytes, its offsets span 0"),
    ("a start off zero", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2, "the first tensor, `a`, begins at byte 1 of the data, not at 0"),
    ("an overlap", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#, 3, "`b` begins at byte 1 of the data, inside `a`, which ends at 2"),
    ("the same bytes for two", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, 2, "`b` begins at byte 0 of the data, inside `a`"),
    ("an empty tensor inside another", r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}"#, 2, "`b` begins at byte 1 of the data, inside `a`"),
    ("a hole", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#, 4, "`b` begins at byte 3 of the data, 2 bytes after the one before it ends"),
    ("an empty tensor behind the end", r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[9,9]}}"#, 0, "begins at byte 9 of the data, not at 0"),
    ("an end beyond the file", r#"{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}"#, 4, "end at byte 5 of the data, the file at 4: it is truncated"),
    ("an end far beyond any file", r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#, 4, "it is truncated"),
    ("bytes left over", r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#, 4, "end at byte 3 of the data, the file at 4: bytes are left over"),
    ("bytes and no tensor", "{}", 1, "bytes are left over"),
    ("metadata that are no object", r#"{"__metadata__":"pt"}"#, 0, "expected an object of strings under `__metadata__`"),
    ("metadata that are null", r#"{"__metadata__":null}"#, 0, "expected an object of strings under `__metadata__`"),
    ("a metadata value that is a number", r#"{"__metadata__":{"step":1}}"#, 0, "invalid type: integer `1`, expected a string"),
    ("a metadata value that is an object", r#"{"__metadata__":{"a":{"b":"c"}}}"#, 0, "expected a string"),
    ("a name that would drive a terminal", "{\"\\u001b[31m\":{\"dtype\":\"X\"}}", 0, r"`\u{1b}[31m` has dtype `X`"),
];
/// What is strange and all the same right: name, JSON, bytes of data, tensors in the order expected.
#[rustfmt::skip]
const STRANGE: &[(&str, &str, u64, &[&str])] = &[
    ("no tensors", "{}", 0, &[]),
    ("metadata alone", r#"{"__metadata__":{"format":"pt"}}"#, 0, &[]),
    ("padding", "{}      ", 0, &[]),
    ("white space inside", "{\n\t\"a\" : { \"dtype\" : \"U8\" , \"shape\" : [ ] , \"data_offsets\" : [ 0 , 1 ] } }\n", 1, &["a"]),
    ("listed out of order", r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 2, &["a", "b"]),
    ("empty tensors at one offset", r#"{"z":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"m":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"b":{"dtype":"F64","shape":[3,0],"data_offsets":[1,1]}}"#, 2, &["a", "b", "z", "m"]),
    ("a side of zero before a huge one", r#"{"a":{"dtype":"F64","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#, 0, &["a"]),
    ("wide numbers at odd addresses", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}}"#, 9, &["a", "b"]),
    ("the empty name", r#"{"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1, &[""]),
    ("a name like a path", r#"{"../../etc/passwd":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1, &["../../etc/passwd"]),
    ("a name with a NUL", r#"{"a\u0000b":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#, 1, &["a\0b"]),
    ("names that normalise alike", r#"{"é":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"e\u0301":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}"#, 2, &["é", "e\u{301}"]),
    ("types that are only copied", r#"{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F8_E4M3FNUZ","shape":[1],"data_offsets":[1,2]},"c":{"dtype":"C64","shape":[1],"data_offsets":[2,10]}}"#, 10, &["a", "b", "c"]),
    ("4 GiB and more", r#"{"a":{"dtype":"BF16","shape":[163840,14336],"data_offsets":[0,4697620480]}}"#, 4_697_620_480, &["a"]),
];

#[test]
fn every_lie_is_told_by_its_own_message() {
    for (name, json, data, expected) in HOSTILE {
        let error = header::parse(json.as_bytes(), json.len() as u64 + 8 + data).expect_err(name);
        assert_eq!(error.kind, Kind::Format, "{name}");
        assert!(error.message.contains(expected), "{name}: {}", error.message);
    }
}

#[test]
fn what_is_strange_and_right_is_read() {
    for (name, json, data, expected) in STRANGE {
        let header = header::parse(json.as_bytes(), json.len() as u64 + 8 + data)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let found: Vec<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(found, *expected, "{name}");
        assert_eq!(header.data_start, json.len() as u64 + 8, "{name}");
    }
}

/// One folder: what it is, how it is made, and the tensors found or the error's kind and a part of its message.
type Case = (&'static str, fn(&Path), Result<&'static [&'static str], (Kind, &'static str)>);

/// Two shards of weights in float16 and an index of that name.
fn variant(folder: &Path, index_name: &str) {
    let [one, two] = [1, 2].map(|i| format!("model.fp16-0000{i}-of-00002.safetensors"));
    put(folder, &one, shard(&["a"]));
    put(folder, &two, shard(&["b"]));
    put(folder, index_name, index(&[("a", &one), ("b", &two)]));
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("a single file", |f| put(f, "model.safetensors", shard(&["b", "a"])), Ok(&["b", "a"])),
    ("a single file of another name", |f| put(f, "weights.safetensors", shard(&["a"])), Ok(&["a"])),
    ("shards and index", sharded, Ok(&["a", "b"])),
    ("the standard file beside others", |f| {
        put(f, "model.safetensors", shard(&["a"]));
        put(f, "consolidated.safetensors", shard(&["other"]));
    }, Ok(&["a"])),
    ("a second copy that the index leaves out", |f| {
        sharded(f);
        put(f, "consolidated.safetensors", shard(&["a", "b"]));
    }, Ok(&["a", "b"])),
    ("an index that lists the standard file", |f| {
        put(f, "model.safetensors", shard(&["a"]));
        put(f, INDEX, index(&[("a", "model.safetensors")]));
    }, Ok(&["a"])),
    ("an index of another name", |f| {
        put(f, "diffusion.safetensors", shard(&["a"]));
        put(f, "diffusion.safetensors.index.json", index(&[("a", "diffusion.safetensors")]));
    }, Ok(&["a"])),
    ("an index of another name beside the standard one", |f| {
        sharded(f);
        put(f, "model.fp16.safetensors.index.json", "not even JSON");
    }, Ok(&["a", "b"])),
    ("numbers without zeros in front, from 0", |f| {
        for i in 0..11 {
            put(f, &format!("model-{i}-of-11.safetensors"), shard(&[&format!("t{i}")]));
        }
        let rows: Vec<_> = (0..11).map(|i| (format!("t{i}"), format!("model-{i}-of-11.safetensors"))).collect();
        let rows: Vec<_> = rows.iter().map(|(tensor, file)| (tensor.as_str(), file.as_str())).collect();
        put(f, INDEX, index(&rows));
    }, Ok(&["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10"])),
    ("a shard without tensors is not listed and not missed", |f| {
        sharded(f);
        put(f, "model-00003-of-00003.safetensors", shard(&[]));
    }, Ok(&["a", "b"])),
    ("leftovers of an interrupted download", |f| {
        put(f, "model.safetensors", shard(&["a"]));
        put(f, ".other.safetensors", "not one");
        put(f, ".model.safetensors.part", "not one");
    }, Ok(&["a"])),
    ("an index without metadata and with more keys", |f| {
        put(f, ONE, shard(&["a"]));
        put(f, INDEX, format!(r#"{{"weight_map":{{"a":"{ONE}"}},"tool":{{"x":[1,-1,1.5,null,true,"y",{{}}]}}}}"#));
    }, Ok(&["a"])),
    ("a file linked from elsewhere", |f| {
        let store = f.join("store");
        fs::create_dir(&store).unwrap();
        put(&store, "blob", shard(&["a"]));
        symlink("store/blob", f.join("link")).unwrap();
        symlink("link", f.join("model.safetensors")).unwrap();
    }, Ok(&["a"])),
    ("shards linked from elsewhere", |f| {
        let store = f.join("store");
        fs::create_dir(&store).unwrap();
        sharded(&store);
        for name in [ONE, TWO, INDEX] {
            symlink(store.join(name), f.join(name)).unwrap();
        }
    }, Ok(&["a", "b"])),
    ("a trainer's pickles beside the weights", |f| {
        put(f, "model.safetensors", shard(&["a"]));
        put(f, "training_args.bin", "pickle");
        put(f, "pytorch_model.bin", "pickle");
    }, Ok(&["a"])),
    ("an adapter beside its model", |f| {
        put(f, "model.safetensors", shard(&["a"]));
        put(f, "adapter_model.safetensors", shard(&["lora"]));
        put(f, "adapter_config.json", "{}");
    }, Ok(&["a"])),
    ("an empty folder", |_| {}, Err((Kind::NotFound, "there is no `*.safetensors` file and no `*.safetensors.index.json`"))),
    ("only what a trainer leaves", |f| put(f, "training_args.bin", ""), Err((Kind::NotFound, "there is no `*.safetensors`"))),
    ("only a dot file", |f| put(f, ".model.safetensors", shard(&["a"])), Err((Kind::NotFound, "there is no"))),
    ("several and no index", |f| {
        put(f, ONE, shard(&["a"]));
        put(f, TWO, shard(&["b"]));
    }, Err((Kind::Format, "there are 2 safetensors files and no index: `model-00001-of-00002.safetensors`, `model-0"))),
    ("only a variant", |f| variant(f, "model.safetensors.index.fp16.json"), Err((Kind::Format, "`model.safetensors.index.fp16.json` is the index of a variant"))),
    ("only a variant, with its tag before the word", |f| variant(f, "model.safetensors.fp16.index.json"), Err((Kind::Format, "`model.safetensors.fp16.index.json` is the index of a variant"))),
    ("half a variant", |f| {
        variant(f, "model.safetensors.index.fp16.json");
        fs::remove_file(f.join("model.fp16-00002-of-00002.safetensors")).unwrap();
    }, Err((Kind::Format, "is the index of a variant"))),
    ("a variant beside a single file", |f| {
        variant(f, "diffusion_pytorch_model.safetensors.index.fp16.json");
        put(f, "diffusion_pytorch_model.safetensors", shard(&["a", "b"]));
    }, Ok(&["a", "b"])),
    ("a variant beside shards", |f| {
        variant(f, "model.safetensors.index.fp16.json");
        sharded(f);
    }, Ok(&["a", "b"])),
    ("several indices, none of them the standard one", |f| {
        put(f, "a.safetensors.index.json", "{}");
        put(f, "b.safetensors.index.json", "{}");
    }, Err((Kind::Format, "there are several indices: `a.safetensors.index.json`, `b."))),
    ("a new file beside an old index", |f| {
        sharded(f);
        put(f, "model.safetensors", shard(&["a", "b"]));
    }, Err((Kind::Format, "both `model.safetensors` and `model.safetensors.index.json` are there"))),
    ("pickles only", |f| put(f, "pytorch_model-00001-of-00002.bin", ""), Err((Kind::Format, "in pickle form (`pytorch_model-00001-of-00002.bin`)"))),
    ("a .pth only", |f| put(f, "consolidated.00.pth", ""), Err((Kind::Format, "in pickle form"))),
    ("an adapter", |f| {
        put(f, "adapter_model.safetensors", shard(&["lora"]));
        put(f, "adapter_config.json", "{}");
    }, Err((Kind::Format, "a LoRA adapter, not a model"))),
    ("an adapter without its configuration", |f| put(f, "adapter_model.safetensors", shard(&["lora"])), Err((Kind::Format, "a LoRA adapter"))),
    ("an adapter in pickle form", |f| put(f, "adapter_model.bin", ""), Err((Kind::Format, "a LoRA adapter"))),
    ("an adapter's configuration alone", |f| put(f, "adapter_config.json", "{}"), Err((Kind::Format, "a LoRA adapter"))),
    ("a missing shard", |f| {
        sharded(f);
        fs::remove_file(f.join(TWO)).unwrap();
    }, Err((Kind::NotFound, "1 of 2 files are not found: `model-00002-of-00002.safetensors`"))),
    ("a shard that is a dangling link", |f| {
        sharded(f);
        fs::remove_file(f.join(TWO)).unwrap();
        symlink("nowhere", f.join(TWO)).unwrap();
    }, Err((Kind::NotFound, "1 of 2 files are not found"))),
    ("a listed tensor that is nowhere", |f| {
        sharded(f);
        put(f, INDEX, index(&[("a", ONE), ("b", TWO), ("c", ONE)]));
    }, Err((Kind::Format, "tensor `c` is not in `model-00001-of-00002.safetensors` nor in another file"))),
    ("a tensor that is not listed", |f| {
        sharded(f);
        put(f, TWO, shard(&["b", "c"]));
    }, Err((Kind::Format, "tensor `c` of `model-00002-of-00002.safetensors` is not listed"))),
    ("a tensor in another shard than listed", |f| {
        sharded(f);
        put(f, INDEX, index(&[("a", TWO), ("b", ONE)]));
    }, Err((Kind::Format, "is not in `model-0000"))),
    ("the same tensor in two shards", |f| {
        sharded(f);
        put(f, TWO, shard(&["b", "a"]));
    }, Err(( Kind::Format, "tensor `a` is in both `model-00001-of-00002.safetensors` and `model-00002-of-00002.safetensors`", ))),
    ("an index that climbs out", |f| {
        let outside = f.parent().unwrap();
        put(outside, "model.safetensors", shard(&["a"]));
        put(f, INDEX, index(&[("a", "../model.safetensors")]));
    }, Err((Kind::Format, "`../model.safetensors`, which is not a bare name"))),
    ("an index that names an absolute path", |f| {
        put(f, "a.safetensors", shard(&["a"]));
        let path = f.join("a.safetensors");
        put(f, INDEX, index(&[("a", path.to_str().unwrap())]));
    }, Err((Kind::Format, "is not a bare name"))),
    ("an index that names a folder below", |f| put(f, INDEX, index(&[("a", "sub/a.safetensors")])), Err((Kind::Format, "`sub/a.safetensors`, which is not a bare name"))),
    ("an index with a dot in front", |f| {
        put(f, ONE, shard(&["a"]));
        put(f, TWO, shard(&["b", "c"]));
        put(f, INDEX, index(&[("a", &format!("./{ONE}")), ("b", &format!("././{TWO}")), ("c", TWO)]));
    }, Ok(&["a", "b", "c"])),
    ("an index that climbs out from a dot", |f| {
        put(f.parent().unwrap(), "model.safetensors", shard(&["a"]));
        put(f, INDEX, index(&[("a", "./../model.safetensors")]));
    }, Err((Kind::Format, "`../model.safetensors`, which is not a bare name"))),
    ("an index with a dot before a root", |f| put(f, INDEX, index(&[("a", ".//a.safetensors")])), Err((Kind::Format, "`/a.safetensors`, which is not a bare name"))),
    ("an index in the manner of Windows", |f| put(f, INDEX, index(&[("a", "..\\a.safetensors")])), Err((Kind::Format, "is not a bare name"))),
    ("an index that names a pickle", |f| put(f, INDEX, index(&[("a", "pytorch_model.bin")])), Err((Kind::Format, "`pytorch_model.bin`, which is not a bare name"))),
    ("an index that names nothing", |f| put(f, INDEX, index(&[("a", "")])), Err((Kind::Format, "``, which is not a bare name"))),
    ("an index that names the folder above", |f| put(f, INDEX, index(&[("a", "..")])), Err((Kind::Format, "`..`, which is not a bare name"))),
    ("an index with a NUL", |f| put(f, INDEX, r#"{"weight_map":{"a":"a\u0000.safetensors"}}"#), Err((Kind::Format, r"`a\0.safetensors`, which is not a bare name"))),
    ("an index that lists nothing", |f| put(f, INDEX, r#"{"weight_map":{}}"#), Err((Kind::Format, "the index lists no tensors"))),
    ("an index without a map", |f| put(f, INDEX, r#"{"metadata":{}}"#), Err((Kind::Format, "there is no `weight_map`"))),
    ("an index that is a list", |f| put(f, INDEX, "[]"), Err((Kind::Format, "expected an object with a `weight_map`"))),
    ("an index that is empty", |f| put(f, INDEX, ""), Err((Kind::Format, "EOF"))),
    ("an index cut short", |f| put(f, INDEX, r#"{"weight_map":{"a":"#), Err((Kind::Format, "EOF"))),
    ("an index in latin-1", |f| put(f, INDEX, b"{\"\xe9\":1}"), Err((Kind::Format, "the index is not UTF-8 at byte 2"))),
    ("two values after another", |f| put(f, INDEX, format!("{0}{0}", index(&[("a", ONE)]))), Err((Kind::Format, "trailing characters"))),
    ("a file name that is a number", |f| put(f, INDEX, r#"{"weight_map":{"a":1}}"#), Err((Kind::Format, "invalid type: integer `1`"))),
    ("a tensor listed twice", |f| put(f, INDEX, r#"{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}"#), Err((Kind::Format, "the key `a` comes twice"))),
    ("two maps", |f| put(f, INDEX, r#"{"weight_map":{"a":"x.safetensors"},"weight_map":{}}"#), Err((Kind::Format, "the key `weight_map` comes twice"))),
    ("a key twice, deep in the metadata", |f| put(f, INDEX, r#"{"metadata":{"x":[{"y":1,"y":2}]},"weight_map":{"a":"x.safetensors"}}"#), Err((Kind::Format, "the key `y` comes twice"))),
    ("an index nested without end", |f| put(f, INDEX, format!(r#"{{"x":{}"#, "[".repeat(100_000))), Err((Kind::Format, "recursion limit"))),
    ("an index larger than any", |f| fs::File::create(f.join(INDEX)).unwrap().set_len(100_000_001).unwrap(), Err((Kind::Format, "the index has 100000001 bytes"))),
    ("an index that is a FIFO", |f| fifo(&f.join(INDEX)), Err((Kind::Format, "is a FIFO, not a regular file"))),
    ("an index that is a folder", |f| fs::create_dir(f.join(INDEX)).unwrap(), Err((Kind::Format, "is a folder, not a regular file"))),
    ("weights that are a FIFO", |f| fifo(&f.join("model.safetensors")), Err((Kind::Format, "is a FIFO"))),
    ("weights that are a folder", |f| fs::create_dir(f.join("model.safetensors")).unwrap(), Err((Kind::Format, "is a folder"))),
    ("weights that are a device", |f| symlink("/dev/zero", f.join("model.safetensors")).unwrap(), Err((Kind::Format, "is a device"))),
    ("a shard that is a FIFO", |f| {
        sharded(f);
        fs::remove_file(f.join(TWO)).unwrap();
        fifo(&f.join(TWO));
    }, Err((Kind::Format, "is a FIFO"))),
    ("an empty file", |f| put(f, "model.safetensors", ""), Err((Kind::Format, "the file has 0 bytes, too few"))),
    ("seven bytes", |f| put(f, "model.safetensors", [0; 7]), Err((Kind::Format, "the file has 7 bytes, too few"))),
    ("a length of nothing", |f| put(f, "model.safetensors", [0; 8]), Err((Kind::Format, "starts with nothing"))),
    ("a length beyond the file", |f| put(f, "model.safetensors", 99_999_999u64.to_le_bytes()), Err((Kind::Format, "given as 99999999 bytes, the file has 8"))),
    ("a length beyond reason", |f| put(f, "model.safetensors", [0xff; 16]), Err((Kind::Format, "given as 18446744073709551615 bytes, the format's limit"))),
    ("a pointer that git-lfs left", |f| put(f, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), Err((Kind::Format, "the format's limit"))),
    ("a pickle under a false name", |f| put(f, "model.safetensors", b"PK\x03\x04\x00\x00\x08\x08\x00\x00"), Err((Kind::Format, "the format's limit"))),
    ("a file cut short", |f| {
        let bytes = shard(&["a", "b"]);
        put(f, "model.safetensors", &bytes[..bytes.len() - 1]);
    }, Err((Kind::Format, "it is truncated"))),
    ("a file with more behind it", |f| put(f, "model.safetensors", [shard(&["a"]), vec![0]].concat()), Err((Kind::Format, "bytes are left over"))),
];

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn every_folder_gets_its_verdict() {
    for (name, make, expected) in CASES {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        fs::create_dir(&folder).unwrap();
        make(&folder);
        match (Checkpoint::open(&folder), expected) {
            (Ok(checkpoint), Ok(names)) => {
                assert_eq!(checkpoint.names().collect::<Vec<_>>(), *names, "{name}");
                for (tensor, entry) in checkpoint.iter() {
                    assert_eq!(checkpoint.get(tensor).unwrap(), entry, "{name}");
                    assert_eq!(checkpoint.read(tensor).unwrap().len() as u64, entry.len, "{name}");
                }
            }
            (Err(error), Err((kind, message))) => {
                assert_eq!(error.kind, *kind, "{name}: {error}");
                assert!(error.message.contains(message), "{name}: {error}");
                assert!(error.message.contains(folder.to_str().unwrap()), "{name}: {error} names no path");
            }
            (found, _) => panic!(
                "{name}: {:?}",
                found.map(|checkpoint| checkpoint.names().map(str::to_owned).collect::<Vec<_>>())
            ),
        }
    }
}
