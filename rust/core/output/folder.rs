//! A folder that a run may write to: admitted as a whole or refused, locked while it is in use, with the record of what
//! is in place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admission::{start_in, Candidate};
use super::journal::{JournalRecord, Records};
use super::overlap::{resolve, Inputs};
use super::publish::finish_in;
pub use super::shared::Options;
use super::shared::Shared;
use super::system::Directory;
use super::{contents, digest, swap};
use crate::error::{Error, Result};
use crate::monitor::Monitor;

/// The resolved path of a folder that a run may begin in; nothing is changed.
pub(super) fn look_at(path: &Path, inputs: &Inputs, plan: &[u8], options: &Options) -> Result<PathBuf> {
    let path = resolve(path)?;
    inputs.refuse_overlap(&path)?;
    start_in(Directory::open(&path)?.as_ref(), plan, options)?;
    Ok(path)
}

/// One output of a run: a folder and the weight files it will hold, with their final sizes.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The folder, which need not exist.
    pub path: &'a Path,
    /// File name and bytes of each shard.
    pub shards: &'a [(String, u64)],
}

/// A folder that was admitted and is locked until this and all [`ShardFile`](super::shard::ShardFile)s in it are dropped.
#[derive(Debug)]
pub struct OutputFolder {
    shared: Arc<Shared>,
    done: Records,
}

impl OutputFolder {
    /// Admits one folder; see [`OutputFolder::admit_all`].
    pub fn admit(
        path: &Path,
        inputs: &[&Path],
        plan: &[u8],
        sizes: &[(String, u64)],
        options: &Options,
    ) -> Result<OutputFolder> {
        let requests = [Request { path, shards: sizes }];
        let mut folders = OutputFolder::admit_all(&requests, inputs, plan, options, &Monitor::default())?;
        folders.pop().ok_or_else(|| Error::engine("an admitted folder is missing"))
    }

    /// Admits the output folders of one run, all or none: none of them touches an input or is in use by another run,
    /// each is empty, holds an unfinished run of this very plan, or may be overwritten, and there is room for all.
    /// When this returns, the plan is on the disk in each of them.
    ///
    /// An output that is replaced stays until the new one is whole, where there is room for both: that is written to
    /// [`OutputFolder::path`], which [`replaces`](OutputFolder::replaces) then.
    ///
    /// `plan` is compared byte for byte with that of an unfinished run; `inputs` are the folders (or files) the plan
    /// reads, of which the weight files must be as they were when the unfinished run began. `monitor` is asked about every
    /// megabyte that is read again, and told what a user should know before anything is removed or done again.
    pub fn admit_all(
        requests: &[Request<'_>],
        inputs: &[&Path],
        plan: &[u8],
        options: &Options,
        monitor: &Monitor,
    ) -> Result<Vec<OutputFolder>> {
        OutputFolder::admit_over(requests, inputs, plan, options, &|| Ok(()), monitor)
    }

    /// The same for a run whose inputs are open: `unchanged` is asked once their states are noted and before anything is
    /// changed, so that no run begins, and is gone on with later, over other files than it has opened.
    pub(crate) fn admit_over(
        requests: &[Request<'_>],
        inputs: &[&Path],
        plan: &[u8],
        options: &Options,
        unchanged: &dyn Fn() -> Result<()>,
        monitor: &Monitor,
    ) -> Result<Vec<OutputFolder>> {
        let mut inputs = Inputs::examine(inputs)?;
        let mut paths = Vec::new();
        for request in requests {
            // Looked at before anything is created, and again under the lock.
            paths.push(look_at(request.path, &inputs, plan, options)?);
        }
        inputs.sample()?;
        unchanged()?;
        // The latest first, so that after a refusal the folders that were created for it go in reverse order.
        let mut candidates = Vec::new();
        for (request, path) in requests.iter().zip(&paths) {
            candidates.insert(0, Candidate::lock(path, request.shards, &inputs, plan, options)?);
        }
        let candidates = Candidate::all(candidates)?;
        candidates.iter().filter_map(Candidate::notice).for_each(|notice| monitor.say(notice));
        let begin = |candidate: Candidate| {
            let (shared, done) = candidate.begin(&inputs, plan)?;
            let mut folder = OutputFolder { shared: Arc::new(shared), done };
            if options.rehash {
                folder.rehash(&|| monitor.is_cancelled())?;
            }
            Ok(folder)
        };
        candidates.into_iter().rev().map(begin).collect()
    }

    /// Refuses what [`OutputFolder::admit`] would refuse for what is in the folder or where it lies: for a run that
    /// finds out its sizes first, which takes a while.
    pub(crate) fn foresee(path: &Path, inputs: &[&Path], plan: &[u8], options: &Options) -> Result<()> {
        look_at(path, &Inputs::examine(inputs)?, plan, options).map(drop)
    }

    /// The resolved path of the folder that is written to.
    pub fn path(&self) -> &Path {
        self.shared.claim.directory.path()
    }

    /// Whether that lies in the state folder of an output that stays until this one is whole; then
    /// [`replace`](super::publish::replace) puts this one in its place.
    pub fn replaces(&self) -> bool {
        self.shared.outer.is_some()
    }

    /// The shards that an earlier run left complete and that need no redoing, by name.
    pub fn done(&self) -> &BTreeMap<String, Arc<JournalRecord>> {
        &self.done
    }

    /// What the journal says of a shard, whether an earlier run or this one published it.
    pub fn record(&self, shard: &str) -> Option<Arc<JournalRecord>> {
        self.shared.published().get(shard).cloned()
    }

    /// The error for what the journal says and nobody has written.
    pub(crate) fn damaged(&self, problem: &str) -> Error {
        self.shared.damaged(problem)
    }

    /// Ends the writing of weights: every shard must be in the journal. The state of the run stays until
    /// [`finish`](super::publish::finish).
    pub fn close(self) -> Result<()> {
        let published = self.shared.published();
        match self.shared.sizes.keys().find(|shard| !published.contains_key(*shard)) {
            Some(shard) => Err(Error::engine(format!("`{shard}` was not published"))),
            None => Ok(()),
        }
    }

    fn rehash(&mut self, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<()> {
        let directory = &self.shared.claim.directory;
        let mut damaged = Vec::new();
        for record in self.done.values() {
            let (_, digest) = digest::digest_file(&directory.path().join(&record.shard), 0, cancelled)?;
            if digest != record.digest {
                damaged.push(record.shard.clone());
            }
        }
        for shard in damaged {
            contents::remove_markers(directory)?;
            contents::remove_below(directory, Path::new(&shard))?;
            self.shared.published().remove(&shard);
            self.done.remove(&shard);
        }
        Ok(())
    }

    /// Ends the run after the manifest is in place; see [`finish`](super::publish::finish).
    pub fn finish(self) -> Result<()> {
        match &self.shared.outer {
            None => finish_in(&self.shared.claim.directory),
            Some(outer) => swap::swap(&outer.directory).and_then(|()| finish_in(&outer.directory)),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::Kind;

    /// Between opening the inputs and noting their states one of them may be replaced.
    #[test]
    fn over_inputs_that_are_no_longer_those_opened_no_run_begins_or_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let sizes = [("model.safetensors".to_owned(), 4)];
        let requests = [Request { path: &out, shards: &sizes }];
        let admit = |options: &Options, unchanged: &dyn Fn() -> Result<()>| {
            OutputFolder::admit_over(&requests, &[], b"plan", options, unchanged, &Monitor::default())
        };
        let changed = || Err(Error::new(Kind::Format, "an input was replaced"));
        let refused = |options: &Options| admit(options, &changed).unwrap_err().message;
        assert_eq!(refused(&Options::default()), "an input was replaced");
        assert!(!out.exists());
        fs::create_dir(&out).unwrap();
        fs::write(out.join("model.safetensors"), b"old.").unwrap();
        let overwrite = Options { overwrite: true, ..Options::default() };
        assert_eq!(refused(&overwrite), "an input was replaced");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        fs::remove_file(out.join("model.safetensors")).unwrap();
        drop(admit(&Options::default(), &|| Ok(())).unwrap());
        let state = |name: &str| fs::read(out.join(".taskvec").join(name)).unwrap();
        let before = ["plan.json", "inputs.json", "journal.jsonl"].map(state);
        assert_eq!(refused(&Options::default()), "an input was replaced");
        assert_eq!(["plan.json", "inputs.json", "journal.jsonl"].map(state), before);
    }
}
