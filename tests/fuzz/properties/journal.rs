//! The journal of an unfinished run of two shards, `PLAN` being the plan's digest: what is taken over lies there in the
//! size that it says, and the run ends with every shard in place.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use taskvec_core::output::digest::of_bytes;
use taskvec_core::output::folder::{Options, OutputFolder};

const PLAN: &[u8] = b"{}";
const SHARDS: [(&str, &[u8]); 2] = [("a.safetensors", b"0123456789"), ("b.safetensors", b"01234")];

struct Place {
    _folder: tempfile::TempDir,
    out: PathBuf,
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

/// An unfinished run whose two shards are in place.
fn unfinished() -> Place {
    let folder = super::place();
    let out = folder.path().canonicalize().expect("a folder").join("out");
    drop(OutputFolder::admit(&out, &[], PLAN, &sizes(), &Options::default()).expect("a new folder"));
    Place { _folder: folder, out }
}

fn sizes() -> Vec<(String, u64)> {
    SHARDS.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.len() as u64)).collect()
}

pub(crate) fn check(input: &[u8]) {
    PLACE.with(|place| {
        let out = &place.get_or_init(unfinished).out;
        for (name, bytes) in SHARDS {
            super::put(&out.join(name), bytes);
        }
        let digest = of_bytes(PLAN);
        let pieces: Vec<&[u8]> = split(input, b"PLAN");
        super::put(&out.join(".taskvec/journal.jsonl"), &pieces.join(digest.as_bytes()));
        let folder = match OutputFolder::admit(out, &[], PLAN, &sizes(), &Options::default()) {
            Ok(folder) => folder,
            Err(error) => return super::assert_told(&error),
        };
        for (shard, record) in folder.done() {
            let (_, bytes) = SHARDS.iter().find(|(name, _)| name == shard).expect("a shard of this run");
            assert_eq!((&record.shard, record.size), (shard, bytes.len() as u64));
            assert!(out.join(shard).is_file());
        }
        // What the journal does not list is written again: it is not there any more.
        for (name, _) in SHARDS {
            assert_eq!(out.join(name).is_file(), folder.done().contains_key(name), "{name}");
        }
        let kept = fs::read(out.join(".taskvec/journal.jsonl")).expect("a journal");
        assert!(kept.ends_with(b"\n"), "the next line would go on with this one");
    });
}

fn split<'a>(bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    while let Some(at) = bytes[start..].windows(by.len()).position(|window| window == by) {
        pieces.push(&bytes[start..start + at]);
        start += at + by.len();
    }
    pieces.push(&bytes[start..]);
    pieces
}
