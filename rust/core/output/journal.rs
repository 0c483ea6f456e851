//! The journal of an unfinished run: one JSON line per shard that is completely in place, each flushed before the run
//! goes on. The first line names the plan it belongs to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fault::Operation;
use super::system::{flushed, Directory};
use super::whole::write_in;
use crate::error::{Error, Result};

const NAME: &str = "journal.jsonl";
const FORMAT: u32 = 1;

/// A shard that is in place.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalRecord {
    /// Its file name.
    pub shard: String,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the file in hexadecimal.
    pub digest: String,
    /// What the run wanted to know again when it goes on, such as the statistics of the shard's tensors. None of a
    /// shard of this very run, which knows it: for many tensors it is long.
    pub extra: Option<Box<RawValue>>,
}

/// The line of a record.
#[derive(Serialize)]
struct Line<'a, E> {
    shard: &'a str,
    size: u64,
    digest: &'a str,
    extra: &'a E,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
    plan: String,
}

/// Records by the shard's name.
pub(crate) type Records = BTreeMap<String, Arc<JournalRecord>>;

/// The open journal, at its end.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    state: Directory,
    length: u64,
    broken: bool,
}

impl Journal {
    /// An empty journal for the plan with this digest; replaces one that is there.
    pub(crate) fn create(state: &Directory, plan: &str) -> Result<()> {
        let head = Head { format: FORMAT, plan: plan.to_string() };
        write_in(state, OsStr::new(NAME), &line(&head)?)
    }

    /// A journal with these lines, which others have written; replaces one that is there.
    pub(crate) fn assemble(state: &Directory, plan: &str, lines: &[&str]) -> Result<()> {
        let mut bytes = line(&Head { format: FORMAT, plan: plan.to_string() })?;
        for line in lines {
            bytes.extend_from_slice(line.trim_end().as_bytes());
            bytes.push(b'\n');
        }
        write_in(state, OsStr::new(NAME), &bytes)
    }

    /// Opens the journal and returns the shards it lists. A line that was being written when the run died is cut off;
    /// any other damage is an error. A journal that is not there is begun again: its shards are written again.
    pub(crate) fn open(state: &Directory, plan: &str) -> Result<(Journal, Records)> {
        let path = state.path().join(NAME);
        let bytes = match state.read(OsStr::new(NAME))? {
            Some(bytes) => bytes,
            None => {
                state.remove_all(OsStr::new(NAME))?;
                Journal::create(state, plan)?;
                state.read(OsStr::new(NAME))?.ok_or_else(|| Error::vanished(&path))?
            }
        };
        let (records, length) = parse(&bytes, plan).map_err(|problem| Error::damaged_journal(&path, &problem))?;
        let file = state.open_or_create(OsStr::new(NAME))?;
        if length < bytes.len() as u64 {
            let cut = file.set_len(length).and_then(|()| flushed(file.sync_all()));
            cut.map_err(|error| Error::io("repairing", &path, &error))?;
        }
        Ok((Journal { file, path, state: state.clone(), length, broken: false }, records))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record with what the run wants to know again; it is on the disk when this returns. After a failure that
    /// could not be undone the journal takes no more records in this run: what it holds stays valid, the shards after it
    /// are written again.
    pub(crate) fn append(&mut self, record: &JournalRecord, extra: &impl Serialize) -> Result<()> {
        if self.broken {
            return Err(Error::broken_journal(&self.path));
        }
        let JournalRecord { shard, size, digest, .. } = record;
        let line = line(&Line { shard, size: *size, digest, extra })?;
        let written = self
            .state
            .fault(Operation::Write)
            .and_then(|()| self.file.write_all_at(&line, self.length))
            .and_then(|()| self.state.fault(Operation::Sync))
            .and_then(|()| flushed(self.file.sync_data()));
        match written {
            Ok(()) => self.length += line.len() as u64,
            Err(error) => {
                // The flush is not tried again: the line is taken back instead.
                self.broken = self.file.set_len(self.length).is_err();
                return Err(Error::io("writing", &self.path, &error));
            }
        }
        Ok(())
    }
}

fn line<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|error| Error::engine(format!("a journal record: {error}")))?;
    line.push(b'\n');
    Ok(line)
}

/// The records and the length up to the end of the last whole line.
fn parse(bytes: &[u8], plan: &str) -> std::result::Result<(Records, u64), String> {
    let mut records = BTreeMap::new();
    let mut length = 0;
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let whole = line.ends_with(b"\n");
        if number == 0 {
            let head: Head = serde_json::from_slice(line).map_err(|error| format!("line 1: {error}"))?;
            if head.format != FORMAT {
                return Err(format!("line 1: format {}, expected {FORMAT}", head.format));
            }
            if head.plan != plan || !whole {
                return Err("line 1: it belongs to another plan".to_string());
            }
        } else {
            let last = length + line.len() == bytes.len();
            match serde_json::from_slice::<JournalRecord>(line) {
                Ok(record) if whole => {
                    records.insert(record.shard.clone(), Arc::new(record));
                }
                _ if last => break,
                Err(error) => return Err(format!("line {}: {error}", number + 1)),
                Ok(_) => return Err(format!("line {}: no line end", number + 1)),
            }
        }
        length += line.len();
    }
    match length {
        0 => Err("it is empty".to_string()),
        _ => Ok((records, length as u64)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn journal(shards: &[String]) -> Vec<u8> {
        let mut bytes = line(&Head { format: FORMAT, plan: "p".into() }).unwrap();
        for (size, shard) in (7u64..).zip(shards) {
            bytes.extend(line(&Line { shard, size, digest: "d", extra: &[size] }).unwrap());
        }
        bytes
    }

    proptest! {
        /// Cut anywhere: the whole lines are what it holds, and a first line that is not whole is no journal of this plan.
        #[test]
        fn a_journal_cut_short_holds_its_whole_lines(
            shards in prop::collection::btree_set(any::<String>(), 0..4), at in any::<prop::sample::Index>(),
        ) {
            let shards: Vec<String> = shards.into_iter().collect();
            let whole = journal(&shards);
            let cut = &whole[..at.index(whole.len() + 1)];
            let ends: Vec<usize> = (1..=cut.len()).filter(|end| cut[end - 1] == b'\n').collect();
            match parse(cut, "p") {
                Ok((records, length)) => {
                    prop_assert_eq!(Some(&(length as usize)), ends.last());
                    prop_assert!(records.keys().eq(&shards[..ends.len() - 1]));
                    prop_assert!((7..).zip(records.values()).all(|(size, record)| record.size == size));
                }
                Err(_) => prop_assert!(ends.is_empty()),
            }
            prop_assert!(parse(&whole, "another").is_err());
        }

        #[test]
        fn any_bytes_at_all_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "p");
            if let Ok((_, length)) = parse(&[journal(&[]), bytes.clone()].concat(), "p") {
                prop_assert!(length <= (journal(&[]).len() + bytes.len()) as u64);
            }
        }
    }
}
