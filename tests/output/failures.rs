//! Failing disks, full disks and kills: nothing that looks complete is incomplete, nothing complete is lost, and the
//! next run ends in the bytes of an undisturbed one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use taskvec_core::error::Kind;
use taskvec_core::output::fault::{clear, cut_off, inject, Operation};
use taskvec_core::output::folder::{Options, OutputFolder};
use taskvec_core::output::publish::finish;
use taskvec_core::output::shard::ShardFile;

use crate::again;
use crate::support::{fast_place, names, place, Job, MANIFEST, PLAN};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const OVERWRITE: Options = Options { overwrite: true, resume: true, rehash: false };

/// A run whose system calls fail one after the other.
struct Trial<'a> {
    place: fn() -> (tempfile::TempDir, PathBuf),
    prepare: &'a dyn Fn(&Path),
    before: Option<&'a Job>,
    options: Options,
}

impl Trial<'_> {
    /// Until a run comes through undisturbed: each call first alone, as on a disk with a bad spot, and then with all
    /// that follow, as in a kill.
    fn fail_everywhere(&self, errno: i32) {
        self.fail(&|out, nth| inject(out, Operation::Any, nth, errno).unwrap());
        self.fail(&|out, nth| cut_off(out, nth, errno).unwrap());
    }

    fn fail(&self, arm: &dyn Fn(&Path, u64)) {
        let job = Job::new(&[(1 << 20) + 5, 10]);
        for nth in 0.. {
            let (_place, out) = (self.place)();
            (self.prepare)(&out);
            arm(&out, nth);
            let outcome = job.run(&out, &self.options);
            let fired = !clear(&out).unwrap();
            if out.exists() {
                job.assert_honest(&out, self.before);
            }
            if !fired {
                outcome.unwrap();
                assert!(nth > 50, "only {nth} system calls");
                return;
            }
            if let Err(error) = &outcome {
                assert_eq!(error.kind, Kind::Output, "call {nth}: {error}");
                assert!(error.message.contains("failed"), "call {nth}: {error}");
            }
            if let Some(before) = self.before {
                job.assert_nothing_lost(&out, before);
            }
            if let Err(error) = job.run(&out, &self.options) {
                // All was in place already, only the state of the run was left.
                assert!(outcome.is_ok() && error.message.contains("holds a finished output"), "call {nth}: {error}");
                finish(&out).unwrap();
            }
            job.assert_complete(&out);
        }
    }
}

#[test]
fn every_system_call_of_a_new_run_may_fail() {
    // On a disk, where space is reserved; the others where flushing is fast.
    let trial = Trial { place, prepare: &|_| {}, before: None, options: Options::default() };
    trial.fail_everywhere(EIO);
}

#[test]
fn every_system_call_of_a_replacing_run_may_fail() {
    let other = Job::new(&[300, 200, 100]);
    let old = |out: &Path| {
        other.run(out, &Options::default()).unwrap();
        fs::write(out.join("tokenizer.json"), b"old").unwrap();
    };
    let trial = Trial { place: fast_place, prepare: &old, before: Some(&other), options: OVERWRITE };
    trial.fail_everywhere(ENOSPC);
}

#[test]
fn every_system_call_of_a_resumed_run_may_fail() {
    let half = |out: &Path| {
        let job = Job::new(&[(1 << 20) + 5, 10]);
        let folder = OutputFolder::admit(out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
        job.shard(&folder, "model-1.safetensors").unwrap();
        drop(folder);
        fs::write(out.join(".model-0.safetensors.part"), b"left by a kill").unwrap();
    };
    let trial = Trial { place: fast_place, prepare: &half, before: None, options: Options::default() };
    trial.fail_everywhere(ENOSPC);
}

#[test]
fn a_shard_whose_flush_failed_is_written_again() {
    let (_place, out) = place();
    let job = Job::new(&[2000]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    drop(folder);
    inject(&out, Operation::Sync, 0, EIO).unwrap();
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    let shard = ShardFile::create(&folder, "model-0.safetensors", 2000).unwrap();
    shard.write_at(0, &job.weights["model-0.safetensors"]).unwrap();
    let error = shard.publish("", &serde_json::Value::Null).unwrap_err();
    assert!(error.message.starts_with("flushing `") && error.hint.unwrap().contains("write this file again"));
    // The next flush would succeed, and mean nothing.
    assert_eq!(shard.publish("", &serde_json::Value::Null).unwrap_err().kind, Kind::Engine);
    drop(shard);
    assert_eq!(names(&out), [".taskvec"]);
    job.shard(&folder, "model-0.safetensors").unwrap();
    drop(folder);
    assert!(!clear(&out).unwrap());
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 1);
    job.assert_complete(&out);
}

#[test]
fn a_shard_that_failed_while_it_was_written_cannot_be_published() {
    let (_place, out) = place();
    let job = Job { threads: 3, ..Job::new(&[8 << 20]) };
    inject(&out, Operation::Write, 6, ENOSPC).unwrap();
    let error = job.run(&out, &Options::default()).unwrap_err();
    assert!(error.hint.unwrap().starts_with("free space"));
    assert_eq!(names(&out), [".taskvec"]);
    assert!(!clear(&out).unwrap());
    job.run(&out, &Options::default()).unwrap();
    job.assert_complete(&out);
}

#[test]
fn while_much_is_written_the_disk_is_waited_for() {
    let (_place, out) = place();
    let job = Job { threads: 2, ..Job::new(&[300 << 20]) };
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    drop(folder);
    // On a disk the second flush is in the middle of the file, in memory there is only one, at its end.
    let nth = if is_memory(&out) { 0 } else { 1 };
    inject(&out, Operation::Sync, nth, EIO).unwrap();
    let error = job.run(&out, &Options::default()).unwrap_err();
    assert!(error.message.starts_with("flushing `"), "{error}");
    assert_eq!(names(&out), [".taskvec"]);
    assert!(!clear(&out).unwrap());
    job.run(&out, &Options::default()).unwrap();
    job.assert_complete(&out);
}

fn is_memory(path: &Path) -> bool {
    rustix::fs::statfs(path).unwrap().f_type == 0x0102_1994
}

/// A small file system of its own, where the system lets us make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let place = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "taskvec-test"])
            .arg(place.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk() {
    let Some(disk) = SmallDisk::mount(16 << 20) else {
        return a_limit_on_file_sizes();
    };
    let out = disk.0.path().join("out");
    let too_much = Job::new(&[10 << 20, 10 << 20]);
    let error = too_much.run(&out, &Options::default()).unwrap_err();
    assert!(error.message.contains("too little space"), "{error}");
    assert!(error.message.contains("22.0 MB needed, 16.8 MB available"), "{error}");
    assert!(!out.exists());

    // Room enough when the run begins; then something else fills the disk.
    let job = Job::new(&[4 << 20, 6 << 20]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    job.shard(&folder, "model-0.safetensors").unwrap();
    fs::write(disk.0.path().join("other"), vec![1; 9 << 20]).unwrap();
    let error = job.shard(&folder, "model-1.safetensors").unwrap_err();
    assert!(error.message.contains("No space left on device"), "{error}");
    assert!(error.hint.unwrap().contains("run the same command again"));
    drop(folder);
    job.assert_honest(&out, None);
    assert_eq!(names(&out), [".taskvec", "model-0.safetensors"]);
    let error = job.run(&out, &Options::default()).unwrap_err();
    assert!(error.message.contains("too little space"), "{error}");
    fs::remove_file(disk.0.path().join("other")).unwrap();
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 1);
    job.assert_complete(&out);

    // What is overwritten makes room for what takes its place.
    let next = Job::new(&[10 << 20, 3]);
    next.run(&out, &OVERWRITE).unwrap();
    next.assert_complete(&out);
}

/// What a child process of these tests does: the run of [`child_job`] into the folder it is told. For the others this
/// test has nothing to do.
#[test]
fn child() {
    if let Some(out) = std::env::var_os("TASKVEC_TEST_OUTPUT") {
        if let Err(error) = child_job().run(Path::new(&out), &Options::default()) {
            println!("error: {error}\nhint: {}", error.hint.as_deref().unwrap_or_default());
            std::process::exit(2);
        }
    }
}

fn child_job() -> Job {
    Job { threads: 2, ..Job::new(&[3 << 20, 9 << 20, 5, 5 << 20, 2 << 20]) }
}

fn child_command(out: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{shell} exec \"$0\" \"$@\"")]).args(again::words());
    command.args(["failures::child", "--exact", "--nocapture"]).env("TASKVEC_TEST_OUTPUT", out);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn a_limit_on_file_sizes() {
    let (_place, out) = place();
    // Half-kilobytes or kilobytes, as the shell has it: both lie between the small and the large shards.
    let output = child_command(&out, "trap '' XFSZ; ulimit -f 8192;").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("File too large") && text.contains("hint: a limit forbids files of this size"), "{text}");
    child_job().assert_honest(&out, None);
    assert_eq!(names(&out), [".taskvec", "model-0.safetensors"]);
    assert!(child_command(&out, "").status().unwrap().success());
    child_job().assert_complete(&out);
}

#[test]
fn a_run_killed_again_and_again_ends_in_the_same_bytes() {
    let (_place, out) = place();
    let (mut kills, mut delay) = (0, 1);
    loop {
        let mut child = child_command(&out, "").spawn().unwrap();
        // Moments spread over the run without a source of randomness (7 and 40 share no divisor), and later ones as
        // time goes by, for a machine that is busy.
        std::thread::sleep(Duration::from_millis(2 + delay + kills / 2));
        delay = (delay + 7) % 40;
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
        }
        if out.exists() {
            child_job().assert_honest(&out, None);
        }
        assert!(kills < 500, "no progress");
        if out.join(MANIFEST).exists() && !out.join(".taskvec/plan.json").exists() {
            break;
        }
    }
    if out.join(".taskvec").exists() {
        finish(&out).unwrap();
    }
    child_job().assert_complete(&out);
}
