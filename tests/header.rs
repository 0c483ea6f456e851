//! Properties of reading and writing headers. Verdicts on single ones: `corpus.rs`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskvec_core::dtype::Dtype;
use taskvec_core::header::{self, Header, TensorEntry, LIMIT};

const REFERENCE: &[u8] = include_bytes!("data/reference.safetensors");
const ENCODED: &[u8] = include_bytes!("data/encoded.bin");

/// How long something without end is. Miri, an interpreter of programs, has less patience.
const LONG: usize = if cfg!(miri) { 1000 } else { 1_000_000 };

fn parse(json: &[u8], data: u64) -> taskvec_core::error::Result<Header> {
    header::parse(json, json.len() as u64 + 8 + data)
}

#[test]
fn invalid_utf8_is_found_wherever_it_is() {
    let error = parse(b"{\"a\xff\":{}}", 0).unwrap_err();
    assert!(error.message.contains("not UTF-8 at byte 3"), "{error}");
    let overlong = parse(b"{}\xc0\xa0", 0).unwrap_err();
    assert!(overlong.message.contains("not UTF-8 at byte 2"), "{overlong}");
}

#[test]
fn the_length_is_held_against_limit_and_file() {
    assert_eq!(header::length(&LIMIT.to_le_bytes(), None).unwrap(), LIMIT);
    assert_eq!(header::length(&2u64.to_le_bytes(), Some(10)).unwrap(), 2);
    for (length, file, expected) in [
        (LIMIT + 1, None, "100000001 bytes, the format's limit is 100000000"),
        (u64::MAX, Some(u64::MAX), "the format's limit is"),
        (3, Some(10), "given as 3 bytes, the file has 10"),
        (0, Some(7), "given as 0 bytes, the file has 7"),
    ] {
        let error = header::length(&u64::to_le_bytes(length), file).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    }
    let short = header::parse(b"{}", 9).unwrap_err();
    assert!(short.message.contains("given as 2 bytes, the file has 9"), "{short}");
}

#[test]
fn messages_stay_short_and_printable_whatever_the_file_holds() {
    let long = "\u{7}x".repeat(LONG / 10);
    let escaped = serde_json::to_string(&long).unwrap();
    for json in [
        format!(r#"{{{escaped}:{{"dtype":{escaped}}}}}"#),
        format!(r#"{{{escaped}:{{{escaped}:1}}}}"#),
        format!(r#"{{{escaped}:{{"shape":{escaped}}}}}"#),
        format!(r#"{{"__metadata__":{escaped}}}"#),
        format!(r#"{{"__metadata__":{{{escaped}:"","a":"",{escaped}:""}}}}"#),
        format!(r#"{{"a":{{"dtype":"U8","data_offsets":[0,7],"shape":[{}1]}}}}"#, "1,".repeat(LONG / 20)),
    ] {
        let message = parse(json.as_bytes(), 7).unwrap_err().message;
        assert!(message.len() < 2000, "{} bytes", message.len());
        assert!(message.chars().all(|c| !c.is_control()), "{message:?}");
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let json = format!(r#"{{"a":{{"shape":{}"#, "[".repeat(LONG));
    assert!(parse(json.as_bytes(), 0).is_err());
    let json = format!(r#"{{"a":{{"dtype":"U8","shape":[],"data_offsets":[0,1,{}"#, "[".repeat(LONG));
    assert!(parse(json.as_bytes(), 0).is_err());
}

/// `reference.safetensors` was written by the format's own library (safetensors 0.8.0 for Python).
#[test]
fn a_file_of_the_reference_library_is_read() {
    let length = header::length(REFERENCE[..8].try_into().unwrap(), Some(REFERENCE.len() as u64)).unwrap();
    let header = header::parse(&REFERENCE[8..8 + length as usize], REFERENCE.len() as u64).unwrap();
    let found: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice())).collect();
    assert_eq!(
        found,
        [
            ("ids", Dtype::I64, &[2u64][..]),
            ("scalar", Dtype::F64, &[]),
            ("embed.weight", Dtype::BF16, &[2, 3]),
            ("empty", Dtype::F16, &[0, 4]),
            ("f8", Dtype::F8E4M3, &[2]),
            ("nämé \"quoted\"\n", Dtype::U8, &[1]),
            ("flag", Dtype::Bool, &[3]),
        ]
    );
    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("über".into(), "\u{7}".into())]);
    assert_eq!(header.metadata, metadata);
    let scalar = header.tensors.iter().find(|tensor| tensor.name == "scalar").unwrap();
    let at = (header.data_start + scalar.begin) as usize;
    assert_eq!(REFERENCE[at..at + 8], 2.5f64.to_le_bytes());
}

#[test]
fn what_is_written_does_not_change_from_release_to_release() {
    let tensors = [
        ("model.embed_tokens.weight", Dtype::BF16, &[4u64, 2][..]),
        ("strange \"\\\u{1}é", Dtype::F8E4M3, &[3]),
        ("scalar", Dtype::F32, &[]),
        ("empty", Dtype::I64, &[0, 7]),
    ];
    let written = header::encode(tensors.into_iter(), &[("format", "pt"), ("a", "\"")], 64);
    assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(ENCODED));
    assert_eq!(written, ENCODED);
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    let names = ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64"];
    let more = ["I64", "F64", "C64", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"];
    let all: Vec<&str> = names.into_iter().chain(more).collect();
    prop::sample::select(all).prop_map(|name| Dtype::from_name(name).unwrap())
}

type Tensors = Vec<(String, Dtype, Vec<u64>)>;

fn tensors() -> impl Strategy<Value = Tensors> {
    let shape = prop::collection::vec(0u64..5000, 0..4);
    prop::collection::btree_map(any::<String>(), (dtypes(), shape), 0..12).prop_map(|map| {
        let rows = map.into_iter().filter(|(name, _)| name != "__metadata__");
        rows.map(|(name, (dtype, shape))| (name, dtype, shape)).collect()
    })
}

fn encode(tensors: &Tensors, metadata: &BTreeMap<String, String>, align: usize) -> Vec<u8> {
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let rows = tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
    header::encode(rows, &metadata, align)
}

fn data_bytes(tensors: &Tensors) -> u64 {
    tensors.iter().map(|(_, dtype, shape)| dtype.bytes(shape).unwrap()).sum()
}

/// What every accepted header promises.
fn check_promises(header: &Header, file_len: u64) {
    let mut at = 0;
    for TensorEntry { dtype, shape, begin, end, .. } in &header.tensors {
        assert_eq!(*begin, at);
        assert_eq!(Some(end - begin), dtype.bytes(shape));
        at = *end;
    }
    assert_eq!(header.data_start + at, file_len);
    let names: std::collections::HashSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), header.tensors.len());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        tensors in tensors(),
        metadata in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
        align in prop::sample::select(vec![1usize, 8, 64, 4096]),
    ) {
        let bytes = encode(&tensors, &metadata, align);
        prop_assert_eq!(bytes.len() % align, 0);
        let length = header::length(bytes[..8].try_into().unwrap(), None).unwrap();
        prop_assert_eq!(length as usize, bytes.len() - 8);
        let file_len = bytes.len() as u64 + data_bytes(&tensors);
        let header = header::parse(&bytes[8..], file_len).unwrap();
        check_promises(&header, file_len);
        prop_assert_eq!(header.metadata, metadata);
        // Empty tensors move within their offset; everything else keeps its place.
        let mut found: Tensors = header.tensors.into_iter().map(|t| (t.name, t.dtype, t.shape)).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(found, tensors);
    }

    #[test]
    fn a_damaged_header_is_refused_or_still_keeps_its_promises(
        tensors in tensors(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..4),
    ) {
        let mut json = encode(&tensors, &BTreeMap::new(), 1).split_off(8);
        let file_len = json.len() as u64 + 8 + data_bytes(&tensors);
        for (place, byte, what) in damage {
            let at = place.index(json.len().max(1)).min(json.len().saturating_sub(1));
            match what {
                _ if json.is_empty() => {}
                0 => json[at] = byte,
                1 => json[at] ^= 1 << (byte % 8),
                2 => json.insert(at, byte),
                _ => drop(json.remove(at)),
            }
        }
        if let Ok(header) = header::parse(&json, file_len) {
            check_promises(&header, file_len);
        }
    }

    #[test]
    fn any_bytes_at_all_are_refused_or_read(json in prop::collection::vec(any::<u8>(), 0..200), file_len: u64) {
        let _ = header::parse(&json, file_len);
        let text = [b"{", json.as_slice()].concat();
        let _ = header::parse(&text, file_len);
    }
}
