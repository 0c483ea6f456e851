//! Admission: may this run write into this folder, and where does it start? Everything that can be refused is refused
//! before anything in the folder is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use super::journal::{Journal, Records};
use super::lock::Claim;
use super::overlap::{Inputs, Sameness, Stamp};
use super::shared::{Options, Shared};
use super::system::Directory;
use super::whole::write_in;
use super::{contents, space, swap, LOCK, MANIFEST, PARTS, PLAN, STATE};
use crate::checkpoint::names::is_inside;
use crate::error::{shown_path, Error, Result};

const INPUTS: &str = "inputs.json";
/// Present while an old checkpoint is being removed; lists what is to go.
const REPLACING: &str = "replacing.json";

/// How a run begins in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// There is nothing yet.
    Fresh,
    /// After the shards that are in place.
    Resume,
    /// By removing what is there.
    Replace,
    /// In the state folder: what is there stays until the new output is whole.
    Beside,
}

/// A folder that is locked but unchanged.
pub(super) struct Candidate {
    claim: Claim,
    /// That of the folder whose output is replaced by the one in this, once it is whole.
    outer: Option<Claim>,
    start: Start,
    sizes: BTreeMap<String, u64>,
    resumed: Option<(Journal, Records)>,
    /// What a user should know before it begins.
    notice: Option<Notice>,
}

/// Why more is removed, or done again, than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notice {
    /// There is no room for the new output besides the old one.
    NoRoom,
    /// The inputs of the unfinished run may be others than those that are there now.
    InputsNotKnown,
}

/// Decides by what is in a folder how the run begins there, or refuses.
pub(super) fn start_in(directory: Option<&Directory>, plan: &[u8], options: &Options) -> Result<Start> {
    let Some(directory) = directory else { return Ok(Start::Fresh) };
    let path = directory.path();
    let (mut saved, mut replacing, mut swapping, mut in_parts) = (None, false, None, false);
    if let Some(state) = directory.subfolder(OsStr::new(STATE))? {
        saved = state.read(OsStr::new(PLAN))?;
        replacing = state.file_size(OsStr::new(REPLACING))?.is_some();
        swapping = swap::pending(&state)?;
        in_parts = state.file_size(OsStr::new(PARTS))?.is_some();
    }
    if let Some(swapping) = swapping {
        return match swapping.plan == hex(plan) || options.overwrite {
            true => Ok(Start::Beside),
            false => Err(Error::unfinished_other(path)),
        };
    }
    if saved.is_none() && in_parts {
        return Err(Error::in_parts(path));
    }
    if let Some(saved) = saved {
        return match saved == plan {
            true if options.resume => Ok(Start::Resume),
            true => Ok(Start::Replace),
            false if options.overwrite => Ok(Start::Replace),
            false => Err(Error::unfinished_other(path)),
        };
    }
    let entries = contents::entries(directory)?;
    match () {
        () if contents::are_empty(directory, &entries)? => Ok(Start::Fresh),
        () if !options.overwrite => Err(Error::not_empty(path, entries.iter().any(|name| name == MANIFEST))),
        () if replacing => Ok(Start::Replace),
        () if contents::is_checkpoint(&entries) => Ok(Start::Beside),
        () => Err(Error::no_checkpoint_to_overwrite(path)),
    }
}

impl Candidate {
    pub(super) fn lock(
        path: &Path,
        shards: &[(String, u64)],
        inputs: &Inputs,
        plan: &[u8],
        options: &Options,
    ) -> Result<Candidate> {
        let claim = Claim::take(path)?;
        inputs.refuse_overlap(path)?;
        let sizes = sizes(&claim.directory, shards)?;
        match start_in(Some(&claim.directory), plan, options)? {
            Start::Beside => Candidate::beside(claim, sizes, inputs, plan, options),
            start => Candidate::inside(claim, None, start, sizes, inputs, plan, options),
        }
    }

    /// In the state folder of an output that stays until this one is whole.
    fn beside(
        outer: Claim,
        sizes: BTreeMap<String, u64>,
        inputs: &Inputs,
        plan: &[u8],
        options: &Options,
    ) -> Result<Candidate> {
        let pending = swap::pending(&outer.state)?;
        if pending.is_some() {
            swap::swap(&outer.directory)?;
        }
        let found = if options.resume { unfinished(&outer.state, inputs, plan)? } else { None };
        swap::clear(&outer.state, found == Some(Sameness::Same))?;
        let claim = outer.within(OsStr::new(swap::NEW))?;
        let start = start_in(Some(&claim.directory), plan, options)?;
        let mut made = Candidate::inside(claim, Some(outer), start, sizes, inputs, plan, options)?;
        if found == Some(Sameness::NotKnown) {
            made.notice = Some(Notice::InputsNotKnown);
        }
        Ok(made)
    }

    fn inside(
        claim: Claim,
        outer: Option<Claim>,
        mut start: Start,
        sizes: BTreeMap<String, u64>,
        inputs: &Inputs,
        plan: &[u8],
        options: &Options,
    ) -> Result<Candidate> {
        let (mut resumed, mut notice) = (None, None);
        if start == Start::Resume {
            match resume(&claim, &sizes, inputs, plan) {
                Ok(Some(found)) => resumed = Some(found),
                Ok(None) => (start, notice) = (Start::Replace, Some(Notice::InputsNotKnown)),
                Err(error) if options.overwrite && is_settled_by_overwriting(&error) => start = Start::Replace,
                Err(error) => return Err(error),
            }
        }
        Ok(Candidate { claim, outer, start, sizes, resumed, notice })
    }

    /// What of these can begin: where there is no room for an output besides the one that it replaces, that one is to
    /// go first.
    ///
    /// # Errors
    /// There is no room, or one of the files that have to go cannot be removed.
    pub(super) fn all(candidates: Vec<Candidate>) -> Result<Vec<Candidate>> {
        let candidates = match Candidate::lacks_space(&candidates)? {
            None => candidates,
            Some(_) => {
                let instead: Vec<Candidate> = candidates.into_iter().map(Candidate::in_place).collect();
                if let Some(error) = Candidate::lacks_space(&instead)? {
                    return Err(error);
                }
                instead
            }
        };
        candidates.iter().try_for_each(Candidate::hold_removable)?;
        Ok(candidates)
    }

    /// The same without keeping what is replaced, unless there is something to go on with.
    fn in_place(self) -> Candidate {
        let Candidate { claim, outer, start, sizes, resumed, notice } = self;
        match outer {
            Some(outer) if resumed.as_ref().is_none_or(|(_, done)| done.is_empty()) => {
                drop(claim);
                let notice = Some(Notice::NoRoom);
                Candidate { claim: outer, outer: None, start: Start::Replace, sizes, resumed: None, notice }
            }
            outer => Candidate { claim, outer, start, sizes, resumed, notice },
        }
    }

    /// What a user should know before it begins, in words.
    pub(super) fn notice(&self) -> Option<String> {
        let folder = shown_path(self.outer.as_ref().unwrap_or(&self.claim).directory.path());
        Some(match self.notice? {
            Notice::NoRoom => format!(
                "there is no room for the new output besides the old one: the output in `{folder}` is removed before \
                 the new one is written"
            ),
            Notice::InputsNotKnown => format!(
                "the run in `{folder}` begins again: files of its inputs were moved or changed since it was begun, and \
                 it cannot be told whether their contents are the same"
            ),
        })
    }

    fn hold_removable(&self) -> Result<()> {
        let directory = &self.outer.as_ref().unwrap_or(&self.claim).directory;
        match (self.start, &self.outer) {
            (Start::Replace, _) | (_, Some(_)) => {
                let going = contents::of_checkpoint(directory, &contents::entries(directory)?)?;
                contents::hold_removable(directory, &going)
            }
            _ => Ok(()),
        }
    }

    fn lacks_space(candidates: &[Candidate]) -> Result<Option<Error>> {
        let mut needs = Vec::new();
        for candidate in candidates {
            let done = candidate.resumed.as_ref().map(|(_, done)| done);
            let pending = |shard: &str| done.is_none_or(|done| !done.contains_key(shard));
            let pending = candidate.sizes.iter().filter(|(shard, _)| pending(shard));
            let going = candidate.going()?;
            needs.push(space::Need {
                folder: candidate.claim.directory.path(),
                bytes: pending.map(|(_, size)| size).sum(),
                released: contents::bytes_released(&candidate.claim.directory, &going)?,
            });
        }
        space::lacking(&needs)
    }

    /// The files that are removed before the run begins.
    fn going(&self) -> Result<BTreeSet<String>> {
        let directory = &self.claim.directory;
        let entries = contents::entries(directory)?;
        let mut going = match self.start {
            Start::Fresh | Start::Beside => Default::default(),
            Start::Replace => contents::of_checkpoint(directory, &entries)?,
            Start::Resume => contents::parts_of(directory, self.sizes.keys())?,
        };
        match (self.start, &self.resumed) {
            (Start::Resume, Some((_, done))) => {
                // In place but not in the journal: the run was killed between the two. It is written again.
                let pending = self.sizes.keys().filter(|shard| !done.contains_key(*shard));
                going.extend(pending.cloned());
            }
            (Start::Replace, _) => {
                let saved = self.claim.state.read(OsStr::new(REPLACING))?.unwrap_or_default();
                let saved: Vec<String> = serde_json::from_slice(&saved).unwrap_or_default();
                going.extend(saved.into_iter().filter(|name| contents::is_inside(name)));
            }
            _ => {}
        }
        Ok(going)
    }

    /// Changes the folder: from here on it is ours.
    pub(super) fn begin(self, inputs: &Inputs, plan: &[u8]) -> Result<(Shared, Records)> {
        let going = self.going()?;
        let Candidate { mut claim, mut outer, start, sizes, resumed, .. } = self;
        let state = claim.state.clone();
        if let Some(outer) = &mut outer {
            outer.keep();
        }
        if start == Start::Replace {
            // The list is on the disk before the first file goes: a manifest that is gone no longer says what it
            // listed, and a folder without weights no longer says that it held a checkpoint.
            write_in(&state, OsStr::new(REPLACING), &json(&going)?)?;
            state.remove_all(OsStr::new(PLAN))?;
            state.sync()?;
        }
        if resumed.as_ref().is_some_and(|(_, done)| done.len() < sizes.len()) {
            contents::remove_markers(&claim.directory)?;
        }
        contents::remove(&claim.directory, &going)?;
        claim.keep();
        let (journal, done) = match resumed {
            Some(resumed) => resumed,
            None => {
                for name in state.names()?.iter().filter(|name| *name != LOCK && *name != REPLACING) {
                    state.remove_all(name)?;
                }
                write_inputs(&state, inputs)?;
                Journal::create(&state, &hex(plan))?;
                write_in(&state, OsStr::new(PLAN), plan)?;
                claim.directory.sync()?;
                state.remove_all(OsStr::new(REPLACING))?;
                Journal::open(&state, &hex(plan))?
            }
        };
        Ok((Shared::new(claim, outer, sizes, journal, done.clone()), done))
    }
}

/// The journal of an unfinished run with the shards of it that are in place; none where these may be of other inputs than
/// those that are there now, and cannot be told from these.
fn resume(
    claim: &Claim,
    sizes: &BTreeMap<String, u64>,
    inputs: &Inputs,
    plan: &[u8],
) -> Result<Option<(Journal, Records)>> {
    if compare_inputs(&claim.state, inputs)? != Sameness::Same {
        return Ok(None);
    }
    let (journal, mut records) = Journal::open(&claim.state, &hex(plan))?;
    let mut missing = Vec::new();
    for record in records.values() {
        if sizes.get(&record.shard) != Some(&record.size) {
            return Err(Error::foreign_record(claim.directory.path(), &record.shard));
        }
        if !contents::is_below(&claim.directory, Path::new(&record.shard), Some(record.size))? {
            missing.push(record.shard.clone());
        }
    }
    records.retain(|shard, _| !missing.contains(shard));
    Ok(Some((journal, records)))
}

/// Shard names with their sizes: bare names or paths below the folder, each once, not taken by a folder.
fn sizes(directory: &Directory, shards: &[(String, u64)]) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for (name, size) in shards {
        let plain = is_inside(name) && !name.split('/').any(|part| part.starts_with('.'));
        if !plain || sizes.insert(name.clone(), *size).is_some() {
            return Err(Error::bad_shard_name(name));
        }
        if contents::is_folder_below(directory, Path::new(name))? {
            return Err(Error::shard_is_folder(&directory.path().join(name)));
        }
    }
    Ok(sizes)
}

/// Whether the inputs are those of the unfinished run of this plan in a state folder; none where there is none, or it
/// cannot be gone on with.
fn unfinished(outer: &Directory, inputs: &Inputs, plan: &[u8]) -> Result<Option<Sameness>> {
    let Some(made) = outer.subfolder(OsStr::new(swap::NEW))? else { return Ok(None) };
    let Some(state) = made.subfolder(OsStr::new(STATE))? else { return Ok(None) };
    if state.read(OsStr::new(PLAN))?.is_none_or(|saved| saved != plan) {
        return Ok(None);
    }
    match compare_inputs(&state, inputs) {
        Err(error) if !is_settled_by_overwriting(&error) => Err(error),
        found => Ok(found.ok()),
    }
}

/// Whether an error is one of those that `--overwrite` is the way out of.
fn is_settled_by_overwriting(error: &Error) -> bool {
    error.hint.as_deref().is_some_and(|hint| hint.contains("--overwrite"))
}

/// Whether the weight files of the inputs are as they were when the run began; an error where one is certainly not.
fn compare_inputs(state: &Directory, inputs: &Inputs) -> Result<Sameness> {
    let path = state.path().join(INPUTS);
    let saved = state.read(OsStr::new(INPUTS))?.unwrap_or_default();
    let saved: Vec<Stamp> =
        serde_json::from_slice(&saved).map_err(|error| Error::damaged_state(&path, &error.to_string()))?;
    let saved: BTreeMap<&str, &Stamp> = saved.iter().map(|stamp| (&*stamp.path, stamp)).collect();
    let now: BTreeMap<&str, &Stamp> = inputs.stamps.iter().map(|stamp| (&*stamp.path, stamp)).collect();
    let mut worst = Sameness::Same;
    for path in saved.keys().chain(now.keys()) {
        let both = saved.get(path).zip(now.get(path));
        let one = both.map_or(Sameness::Different, |(saved, now)| saved.compare(now));
        if one == Sameness::Different {
            return Err(Error::input_changed(Path::new(path), state.path()));
        }
        worst = worst.max(one);
    }
    Ok(worst)
}

pub(super) fn hex(plan: &[u8]) -> String {
    blake3::hash(plan).to_hex().to_string()
}

/// Notes the states of the inputs of a run that begins.
pub(super) fn write_inputs(state: &Directory, inputs: &Inputs) -> Result<()> {
    write_in(state, OsStr::new(INPUTS), &json(&inputs.stamps)?)
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::engine(format!("the state of a run: {error}")))
}
