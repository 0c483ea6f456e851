//! The output folder: what is admitted, what is kept, what is published.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

use taskvec_core::error::{Error, Kind, Result};
use taskvec_core::monitor::Monitor;
use taskvec_core::output::folder::{Options, OutputFolder, Request};
use taskvec_core::output::hold::Hold;
use taskvec_core::output::publish::{finish, write_atomic};
use taskvec_core::output::shard::{copy_whole, ShardFile, Sharing};

use crate::support::{bytes, names, place, Job, INDEX, MANIFEST, PLAN};

const NEVER: fn() -> bool = || false;
const OVERWRITE: Options = Options { overwrite: true, resume: true, rehash: false };
const REHASH: Options = Options { overwrite: false, resume: true, rehash: true };

fn admit(out: &Path, inputs: &[&Path], options: &Options) -> Result<OutputFolder> {
    OutputFolder::admit(out, inputs, PLAN, &[("model.safetensors".to_string(), 4)], options)
}

fn refused(outcome: Result<OutputFolder>, message: &str, hint: &str) {
    let error = outcome.expect_err(message);
    assert_eq!(error.kind, Kind::Output, "{error}");
    assert!(error.message.contains(message), "{} does not say: {message}", error.message);
    assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{:?} does not say: {hint}", error.hint);
}

#[test]
fn a_run_from_nothing_to_the_end() {
    let (place, _) = place();
    let out = place.path().join("several/new/folders");
    let job = Job { threads: 3, ..Job::new(&[3 << 20, 10, 0, (1 << 20) + 1]) };
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 0);
    job.assert_complete(&out);
}

#[test]
fn an_unfinished_run_goes_on() {
    let (_place, out) = place();
    let job = Job::new(&[2000, 1000, 3000]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    job.shard(&folder, "model-1.safetensors").unwrap();
    let half = ShardFile::create(&folder, "model-0.safetensors", 2000).unwrap();
    half.write_at(0, &job.weights["model-0.safetensors"][..500]).unwrap();
    assert!(names(&out).contains(&".model-0.safetensors.part".to_string()));
    drop(half);
    assert_eq!(names(&out), [".taskvec", "model-1.safetensors"]);
    assert!(folder.close().unwrap_err().message.contains("`model-0.safetensors` was not published"));
    fs::write(out.join(".model-2.safetensors.part"), b"left by a kill").unwrap();
    // In place, but the kill came before its line in the journal.
    fs::write(out.join("model-2.safetensors"), b"left by a kill").unwrap();
    fs::write(out.join(INDEX), b"{}").unwrap();

    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    let record = &folder.done()["model-1.safetensors"];
    let extra = record.extra.as_ref().unwrap();
    assert_eq!(extra.get(), r#"{"name":"model-1.safetensors","norm":0.1}"#);
    assert_eq!(record.digest, blake3::hash(&job.weights["model-1.safetensors"]).to_hex().to_string());
    assert!(folder.record("model-1.safetensors").is_some_and(|again| Arc::ptr_eq(&again, record)));
    assert!(folder.record("model-0.safetensors").is_none());
    assert_eq!(names(&out), [".taskvec", "model-1.safetensors"]);
    drop(folder);
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 1);
    job.assert_complete(&out);
}

#[test]
fn shards_that_are_not_as_the_journal_says_are_written_again() {
    let (_place, out) = place();
    let job = Job::new(&[2000, 1000, 3000]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    job.weights.keys().for_each(|name| job.shard(&folder, name).unwrap());
    folder.close().unwrap();
    fs::write(out.join("model-0.safetensors"), b"shorter").unwrap();
    fs::remove_file(out.join("model-1.safetensors")).unwrap();
    let mut flipped = job.weights["model-2.safetensors"].clone();
    flipped[1234] ^= 1;
    fs::write(out.join("model-2.safetensors"), flipped).unwrap();
    fs::write(out.join(MANIFEST), b"{}").unwrap();

    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    assert_eq!(folder.done().keys().collect::<Vec<_>>(), ["model-2.safetensors"]);
    assert!(!out.join(MANIFEST).exists());
    drop(folder);
    let requests = [Request { path: &out, shards: &job.sizes() }];
    let stop = Monitor::default();
    stop.cancel();
    let stopped = OutputFolder::admit_all(&requests, &[], PLAN, &REHASH, &stop).unwrap_err();
    assert_eq!(stopped.kind, Kind::Interrupted);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &REHASH).unwrap();
    assert!(folder.done().is_empty() && folder.record("model-2.safetensors").is_none());
    drop(folder);
    assert_eq!(job.run(&out, &REHASH).unwrap(), 0);
    job.assert_complete(&out);
}

#[test]
fn a_kill_while_the_run_is_being_ended_costs_nothing() {
    let (_place, out) = place();
    let job = Job::new(&[2000, 1000]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    job.weights.keys().for_each(|name| job.shard(&folder, name).unwrap());
    folder.close().unwrap();
    assert!(finish(&out).unwrap_err().message.contains("has no `taskvec.json`"));
    job.small.iter().for_each(|(name, bytes)| write_atomic(&out.join(name), bytes).unwrap());
    // Killed here: all is in place, only the state is still there.
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 2);
    job.assert_complete(&out);
    // Killed after the plan was removed: a finished output.
    fs::create_dir(out.join(".taskvec")).unwrap();
    fs::write(out.join(".taskvec/lock"), b"1").unwrap();
    refused(admit(&out, &[], &Options::default()), "holds a finished output", "--overwrite");
    finish(&out).unwrap();
    job.assert_complete(&out);
}

#[test]
fn an_output_that_touches_an_input_is_refused() {
    let (place, _) = place();
    let root = place.path().canonicalize().unwrap();
    let input = root.join("models/input");
    fs::create_dir_all(input.join("sub")).unwrap();
    fs::write(input.join("model.safetensors"), b"data").unwrap();
    symlink(&input, root.join("link")).unwrap();
    symlink("models", root.join("models-link")).unwrap();
    let cases = [
        ("models/input", "is an input"),
        ("models/../models/./input", "is an input"),
        ("link", "is an input"),
        ("models", "contains the input"),
        ("models-link", "contains the input"),
        ("", "contains the input"),
        ("models/input/sub", "lies within the input"),
        ("link/sub/new", "lies within the input"),
        ("models-link/input/not/there/yet", "lies within the input"),
        ("new/../link/out", "lies within the input"),
    ];
    for (path, message) in cases {
        for input in [input.clone(), root.join("link"), root.join("models-link/input")] {
            refused(admit(&root.join(path), &[&input], &OVERWRITE), message, "another output folder");
        }
    }
    assert_eq!(names(&root), ["link", "models", "models-link"]);
    assert_eq!(names(&input), ["model.safetensors", "sub"]);
    admit(&root.join("models/output"), &[&input], &Options::default()).unwrap();
}

#[test]
fn an_input_whose_weights_lie_in_the_output_is_refused() {
    let (place, out) = place();
    let input = place.path().join("input");
    fs::create_dir_all(&input).unwrap();
    fs::create_dir_all(out.join("deeper")).unwrap();
    fs::write(out.join("deeper/model.safetensors"), b"data").unwrap();
    symlink(out.join("deeper/model.safetensors"), input.join("model.safetensors")).unwrap();
    fs::write(out.join("old.safetensors"), b"data").unwrap();
    refused(admit(&out, &[&input], &OVERWRITE), "contains the input", "another output folder");
    let single = out.join("deeper/model.safetensors");
    refused(admit(&out, &[&single], &OVERWRITE), "contains the input", "another output folder");
    let missing = admit(&out, &[&place.path().join("nowhere")], &OVERWRITE).unwrap_err();
    assert_eq!(missing.kind, Kind::NotFound);
}

#[test]
fn overwriting_leaves_what_shares_an_inode_with_the_output_alone() {
    let (place, out) = place();
    let input = place.path().join("input");
    fs::create_dir_all(&input).unwrap();
    fs::create_dir_all(&out).unwrap();
    let weights = input.join("model.safetensors");
    fs::write(&weights, b"data").unwrap();
    fs::hard_link(&weights, out.join("model.safetensors")).unwrap();
    symlink(&weights, out.join("model-2.safetensors")).unwrap();
    let folder = admit(&out, &[&input], &OVERWRITE).unwrap();
    assert_eq!(names(&out), [".taskvec", "model-2.safetensors", "model.safetensors"]);
    replace_with(folder, b"DATA");
    assert_eq!(names(&out), ["model.safetensors", MANIFEST]);
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), b"DATA");
    assert_eq!(fs::read(&weights).unwrap(), b"data");
}

/// The rest of a run with one shard that replaces another output.
fn replace_with(folder: OutputFolder, data: &[u8; 4]) {
    assert!(folder.replaces());
    let shard = ShardFile::create(&folder, "model.safetensors", 4).unwrap();
    shard.write_at(0, data).unwrap();
    shard.publish("", &serde_json::Value::Null).unwrap();
    let manifest = serde_json::json!({"files": [{"name": "model.safetensors"}]});
    write_atomic(&folder.path().join(MANIFEST), manifest.to_string().as_bytes()).unwrap();
    drop(shard);
    folder.finish().unwrap();
}

#[test]
fn folders_without_files_are_as_good_as_none() {
    let (_place, out) = place();
    fs::create_dir_all(out.join("1_Pooling/deeper")).unwrap();
    drop(admit(&out, &[], &OVERWRITE).unwrap());
    fs::remove_dir_all(out.join(".taskvec")).unwrap();
    drop(admit(&out, &[], &Options::default()).unwrap());
    fs::remove_dir_all(out.join(".taskvec")).unwrap();
    std::os::unix::fs::symlink("1_Pooling", out.join("link")).unwrap();
    refused(admit(&out, &[], &OVERWRITE), "holds files but no checkpoint", "choose an empty folder");
    fs::remove_file(out.join("link")).unwrap();
    fs::write(out.join("1_Pooling/deeper/thesis.txt"), b"irreplaceable").unwrap();
    refused(admit(&out, &[], &OVERWRITE), "holds files but no checkpoint", "choose an empty folder");
}

#[test]
fn a_folder_in_use_is_refused() {
    let (_place, out) = place();
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("thesis.txt"), b"irreplaceable").unwrap();
    fs::create_dir(out.join("model.safetensors.d")).unwrap();
    refused(admit(&out, &[], &Options::default()), "is not empty", "--overwrite");
    refused(admit(&out, &[], &OVERWRITE), "holds files but no checkpoint", "choose an empty folder");
    assert_eq!(names(&out), ["model.safetensors.d", "thesis.txt"]);
    fs::write(out.join("config.json"), b"{}").unwrap();
    refused(admit(&out, &[], &OVERWRITE), "holds files but no checkpoint", "choose an empty folder");
    fs::write(out.join("a.safetensors"), b"").unwrap();
    refused(admit(&out, &[], &Options::default()), "is not empty", "--overwrite");
    fs::write(out.join(MANIFEST), b"{}").unwrap();
    refused(admit(&out, &[], &Options::default()), "holds a finished output", "--overwrite");
    fs::create_dir(out.join("model.safetensors")).unwrap();
    refused(admit(&out, &[], &OVERWRITE), "is a folder, but a file of that name", "another output folder");
    assert_eq!(names(&out).len(), 6);
}

#[test]
fn what_is_no_folder_is_refused() {
    let (place, out) = place();
    fs::write(&out, b"a file").unwrap();
    refused(admit(&out, &[], &OVERWRITE), "is not a folder", "another output folder");
    symlink("nowhere", place.path().join("dangling")).unwrap();
    refused(admit(&place.path().join("dangling/x"), &[], &OVERWRITE), "does not exist", "remove the link");
    let inside = place.path().join("inside");
    fs::create_dir(&inside).unwrap();
    symlink(place.path(), inside.join(".taskvec")).unwrap();
    refused(admit(&inside, &[], &OVERWRITE), "`.taskvec` is not a folder".trim_start_matches('`'), "another");
    let outside = ["../x.safetensors", "a/../b.safetensors", "a//b.safetensors", "/a.safetensors", "a/.b.safetensors"];
    for name in outside.into_iter().chain(["", ".hidden.safetensors", "..", "./a.safetensors", ".a/b.safetensors"]) {
        let error = OutputFolder::admit(&place.path().join("new"), &[], PLAN, &[(name.to_string(), 1)], &OVERWRITE);
        assert_eq!(error.unwrap_err().kind, Kind::Plan, "{name}");
    }
    let twice = [("a.safetensors".to_string(), 1), ("a.safetensors".to_string(), 1)];
    assert!(OutputFolder::admit(&place.path().join("new"), &[], PLAN, &twice, &OVERWRITE).is_err());
    assert!(!place.path().join("new").exists());
}

#[test]
fn an_unfinished_run_of_another_plan_is_refused_or_replaced() {
    let (_place, out) = place();
    let job = Job::new(&[2000, 1000]);
    let first = OutputFolder::admit(&out, &[], b"another plan", &job.sizes(), &Options::default()).unwrap();
    job.shard(&first, "model-0.safetensors").unwrap();
    drop(first);
    write_atomic(&out.join("config.json"), b"of the other plan").unwrap();
    let other = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default());
    refused(other, "unfinished run of a different plan", "--overwrite");
    assert_eq!(names(&out), [".taskvec", "config.json", "model-0.safetensors"]);
    for again in [Options { resume: false, ..Options::default() }, Options { resume: false, ..OVERWRITE }] {
        let anew = OutputFolder::admit(&out, &[], b"another plan", &job.sizes(), &again).unwrap();
        assert!(anew.done().is_empty());
        assert_eq!(names(&out), [".taskvec"]);
        job.shard(&anew, "model-0.safetensors").unwrap();
    }
    assert_eq!(job.run(&out, &OVERWRITE).unwrap(), 0);
    job.assert_complete(&out);
}

/// Weights of a pipeline lie in sub-folders; a run that was killed anywhere goes on there.
#[test]
fn shards_in_sub_folders_are_published_resumed_and_replaced() {
    let (place, out) = place();
    let sizes: Vec<(String, u64)> = ["unet/a.safetensors", "vae/deep/b.safetensors", "vae/deep/c.safetensors"]
        .map(|name| (name.to_string(), 4))
        .into();
    let begin = |options: &Options| OutputFolder::admit(&out, &[], PLAN, &sizes, options).unwrap();
    let write = |folder: &OutputFolder, name: &str| {
        let shard = ShardFile::create(folder, name, 4).unwrap();
        shard.write_at(0, b"data").unwrap();
        shard.publish(&shard.digest(1, &NEVER).unwrap(), &()).unwrap();
    };
    let folder = begin(&Options::default());
    write(&folder, "vae/deep/b.safetensors");
    assert_eq!(names(&out.join("vae/deep")), ["b.safetensors"]);
    drop(ShardFile::create(&folder, "unet/a.safetensors", 4).unwrap());
    assert!(names(&out.join("unet")).is_empty());
    drop(folder);
    // A kill leaves a part, and a shard whose line is not in the journal yet.
    fs::write(out.join("unet/.a.safetensors.part"), b"da").unwrap();
    fs::write(out.join("vae/deep/.other.part"), b"of another program").unwrap();
    fs::write(out.join("vae/deep/c.safetensors"), b"data").unwrap();
    let folder = begin(&Options::default());
    assert_eq!(folder.done().keys().collect::<Vec<_>>(), ["vae/deep/b.safetensors"]);
    assert_eq!(names(&out.join("vae/deep")), [".other.part", "b.safetensors"]);
    assert!(!out.join("unet").exists());
    write(&folder, "unet/a.safetensors");
    write(&folder, "vae/deep/c.safetensors");
    folder.close().unwrap();
    // Bytes that are not those of the journal are written again.
    fs::write(out.join("unet/a.safetensors"), b"atad").unwrap();
    let folder = begin(&REHASH);
    assert_eq!(folder.done().len(), 2);
    write(&folder, "unet/a.safetensors");
    folder.close().unwrap();
    let listed: Vec<_> = sizes.iter().map(|(name, _)| serde_json::json!({ "name": name })).collect();
    fs::write(out.join(MANIFEST), serde_json::json!({ "files": listed }).to_string()).unwrap();
    finish(&out).unwrap();
    assert_eq!(names(&out), [MANIFEST, "unet", "vae"]);
    // A new output takes its place; sub-folders that it does not have go.
    replace_with(admit(&out, &[], &OVERWRITE).unwrap(), b"data");
    assert!(!out.join("unet").exists());
    assert_eq!(names(&out.join("vae/deep")), [".other.part"]);
    // A link in the place of a sub-folder leads out of the output.
    let other = place.path().join("other");
    fs::create_dir(&other).unwrap();
    symlink(place.path(), other.join("unet")).unwrap();
    let linked = OutputFolder::admit(&other, &[], PLAN, &sizes, &OVERWRITE);
    assert!(linked.and_then(|folder| ShardFile::create(&folder, "unet/a.safetensors", 4)).is_err());
    assert!(!place.path().join(".a.safetensors.part").exists());
}

/// A pipeline that somebody else saved has no manifest: its models go with what lists them.
#[test]
fn overwriting_a_pipeline_replaces_the_weights_in_its_folders() {
    let (_place, out) = place();
    for name in ["model_index.json", "unet/config.json", "unet/old-00001-of-00002.safetensors", "unet/notes.txt"] {
        fs::create_dir_all(out.join(name).parent().unwrap()).unwrap();
        fs::write(out.join(name), b"old").unwrap();
    }
    refused(admit(&out, &[], &Options::default()), "is not empty", "--overwrite");
    replace_with(admit(&out, &[], &OVERWRITE).unwrap(), b"data");
    assert_eq!(names(&out), ["model.safetensors", MANIFEST, "unet"]);
    assert_eq!(names(&out.join("unet")), ["notes.txt"]);
}

#[test]
fn overwriting_replaces_the_whole_checkpoint_and_nothing_else() {
    let (place, out) = place();
    let outside = place.path().join("outside");
    fs::create_dir_all(outside.join("kept")).unwrap();
    fs::write(outside.join("kept/file.json"), b"{}").unwrap();
    fs::create_dir_all(out.join("pooling/empty")).unwrap();
    fs::create_dir_all(out.join("folder.safetensors")).unwrap();
    symlink(&outside, out.join("linked")).unwrap();
    symlink(outside.join("kept/file.json"), out.join("other.safetensors")).unwrap();
    fs::write(out.join("pooling/config.json"), b"{}").unwrap();
    fs::write(out.join("notes.txt"), b"mine").unwrap();
    for name in
        ["model-7.safetensors", INDEX, "chat_template.jinja", "extra.py", ".x.part", ".model-9.safetensors.part"]
    {
        fs::write(out.join(name), b"old").unwrap();
    }
    let listed = ["extra.py", "pooling/config.json", "linked/kept/file.json", "../outside/kept/file.json"];
    let absolute = outside.join("kept/file.json");
    let mut files: Vec<_> = listed.iter().map(|name| serde_json::json!({ "name": name })).collect();
    files.push(serde_json::json!({"name": absolute}));
    files.push(serde_json::json!({"name": ".taskvec/lock"}));
    fs::write(out.join(MANIFEST), serde_json::json!({ "files": files }).to_string()).unwrap();

    let before = names(&out);
    let folder = admit(&out, &[], &OVERWRITE).unwrap();
    let mut expected = [&[".taskvec".to_string()], &before[..]].concat();
    expected.sort();
    assert_eq!(names(&out), expected);
    assert_eq!(names(&out.join(".taskvec/new/.taskvec")), ["inputs.json", "journal.jsonl", "lock", "plan.json"]);
    drop(folder);
    // Without leave to replace it, it is what it was.
    refused(admit(&out, &[], &Options::default()), "holds a finished output", "--overwrite");
    // The same command again, with --overwrite, goes on with the new run.
    replace_with(admit(&out, &[], &OVERWRITE).unwrap(), b"data");
    let after = [".x.part", "folder.safetensors", "linked", "model.safetensors", "notes.txt", "pooling", MANIFEST];
    assert_eq!(names(&out), after);
    assert_eq!(names(&out.join("pooling")), ["empty"]);
    assert_eq!(fs::read(outside.join("kept/file.json")).unwrap(), b"{}");
}

#[test]
fn files_of_the_new_output_in_folders_take_the_place_of_those_of_the_old_one() {
    let (_place, out) = place();
    fs::create_dir_all(out.join("old/deep")).unwrap();
    fs::create_dir_all(out.join("both")).unwrap();
    for name in ["old/deep/a.txt", "both/b.txt", "model.safetensors"] {
        fs::write(out.join(name), b"old").unwrap();
    }
    let listed = |names: &[&str]| {
        let rows: Vec<_> = names.iter().map(|name| serde_json::json!({ "name": name })).collect();
        serde_json::json!({ "files": rows }).to_string()
    };
    fs::write(out.join(MANIFEST), listed(&["old/deep/a.txt", "both/b.txt", "model.safetensors"])).unwrap();
    let folder = admit(&out, &[], &OVERWRITE).unwrap();
    let shard = ShardFile::create(&folder, "model.safetensors", 4).unwrap();
    shard.publish("", &serde_json::Value::Null).unwrap();
    for name in ["new/deep/c.txt", "both/b.txt"] {
        fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        fs::write(folder.path().join(name), b"new").unwrap();
    }
    let manifest = listed(&["new/deep/c.txt", "both/b.txt", "model.safetensors"]);
    write_atomic(&folder.path().join(MANIFEST), manifest.as_bytes()).unwrap();
    drop(shard);
    folder.finish().unwrap();
    assert_eq!(names(&out), ["both", "model.safetensors", "new", MANIFEST]);
    assert_eq!(fs::read(out.join("both/b.txt")).unwrap(), b"new");
    assert_eq!(fs::read(out.join("new/deep/c.txt")).unwrap(), b"new");
}

#[test]
fn without_room_for_both_the_old_output_goes_first() {
    let (_place, out) = place();
    fs::create_dir_all(&out).unwrap();
    let old = fs::File::create(out.join("model.safetensors")).unwrap();
    if rustix::fs::fallocate(&old, rustix::fs::FallocateFlags::empty(), 0, 512 << 20).is_err() {
        return; // no room for the test itself
    }
    let status = rustix::fs::statvfs(&out).unwrap();
    let free = status.f_bavail * status.f_frsize;
    let size = (free + (255 << 20)) / 1025 * 1024;
    let shards = [("model.safetensors".to_string(), size)];
    let requests = [Request { path: &out, shards: &shards }];
    let (monitor, is_said) = (Monitor::default(), AtomicBool::new(false));
    monitor.listen();
    let folder = std::thread::scope(|scope| {
        scope.spawn(|| {
            let said =
                std::iter::repeat_with(|| monitor.notices()).find(|said| !said.is_empty() || monitor.is_cancelled());
            assert!(said.unwrap()[0].contains("there is no room for the new output besides the old one"));
            // A moment later it may have gone.
            is_said.store(true, SeqCst);
        });
        let folder = OutputFolder::admit_all(&requests, &[], PLAN, &OVERWRITE, &monitor).unwrap().pop().unwrap();
        monitor.cancel();
        folder
    });
    assert!(is_said.load(SeqCst));
    assert!(!folder.replaces());
    assert_eq!(names(&out), [".taskvec"]);
    // What cannot be done in either way is refused, and nothing has gone.
    drop(folder);
    fs::remove_dir_all(out.join(".taskvec")).unwrap();
    fs::write(out.join("model.safetensors"), b"old").unwrap();
    let shards = [("model.safetensors".to_string(), size * 2)];
    let error = OutputFolder::admit(&out, &[], PLAN, &shards, &OVERWRITE).unwrap_err();
    assert!(error.message.contains("too little space"), "{error}");
    assert_eq!(names(&out), ["model.safetensors"]);
}

#[test]
fn a_changed_input_ends_a_resumed_run() {
    let (place, out) = place();
    let input = place.path().join("input");
    fs::create_dir_all(&input).unwrap();
    let weights = input.join("model.safetensors");
    fs::write(&weights, b"data").unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    // The same bytes, wherever they lie and whenever they came there.
    fs::rename(&weights, input.join("away")).unwrap();
    fs::write(&weights, b"data").unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    let stamp = fs::metadata(&weights).unwrap().modified().unwrap();
    fs::write(&weights, b"DATA").unwrap();
    fs::File::options().write(true).open(&weights).unwrap().set_modified(stamp).unwrap();
    refused(admit(&out, &[&input], &Options::default()), "is not the file it was", "--no-resume or --overwrite");
    fs::write(&weights, b"data").unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    fs::write(input.join("more.safetensors"), b"data").unwrap();
    refused(admit(&out, &[&input], &Options::default()), "more.safetensors` is not the file it was", "--overwrite");
    fs::remove_file(input.join("more.safetensors")).unwrap();
    fs::write(out.join(".taskvec/inputs.json"), b"[").unwrap();
    refused(admit(&out, &[&input], &Options::default()), "is damaged", "--overwrite");
}

#[test]
fn a_large_input_is_known_by_its_times_its_place_and_a_sample() {
    let (place, out) = place();
    let input = place.path().join("input");
    fs::create_dir_all(&input).unwrap();
    let weights = input.join("model.safetensors");
    let old = bytes(5 << 20, 1);
    fs::write(&weights, &old).unwrap();
    let stamp = fs::metadata(&weights).unwrap().modified().unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    // Another name of it is no change of it.
    fs::hard_link(&weights, place.path().join("second")).unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    fs::remove_file(place.path().join("second")).unwrap();
    // The state as earlier versions wrote it: size and time alone.
    let saved = out.join(".taskvec/inputs.json");
    let text = fs::read(&saved).unwrap();
    let mut rows: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let row = rows[0].as_object_mut().unwrap();
    row.retain(|key, _| ["path", "size", "modified"].contains(&key.as_str()));
    fs::write(&saved, rows.to_string()).unwrap();
    drop(admit(&out, &[&input], &Options::default()).unwrap());
    fs::write(&saved, &text).unwrap();
    let replace = |new: &[u8]| {
        fs::write(input.join("new"), new).unwrap();
        fs::File::options().write(true).open(input.join("new")).unwrap().set_modified(stamp).unwrap();
        fs::rename(input.join("new"), &weights).unwrap();
    };
    let shard = |folder: &OutputFolder| {
        let file = ShardFile::create(folder, "model.safetensors", 4).unwrap();
        file.write_at(0, b"done").unwrap();
        file.publish(&blake3::hash(b"done").to_hex(), &()).unwrap();
    };
    // Another file of the same size and time that differs nowhere that is looked at, and the first one put back: which of
    // them it is cannot be told, so that the run begins again with what is there now.
    let mut near = old.clone();
    near[100_000] ^= 1;
    for new in [&near, &old] {
        shard(&admit(&out, &[&input], &Options::default()).unwrap());
        assert_eq!(admit(&out, &[&input], &Options::default()).unwrap().done().len(), 1);
        replace(new);
        let (monitor, size) = (Monitor::default(), [("model.safetensors".to_string(), 4)]);
        let requests = [Request { path: &out, shards: &size }];
        let again = OutputFolder::admit_all(&requests, &[&input], PLAN, &Options::default(), &monitor).unwrap();
        assert!(again[0].done().is_empty());
        assert!(monitor.notices()[0].contains("begins again: files of its inputs were moved or changed"));
        drop(again);
        assert!(!out.join("model.safetensors").exists());
    }
    // One that differs everywhere is another one, and so is one of another time.
    let text = fs::read(&saved).unwrap();
    replace(&bytes(5 << 20, 2));
    refused(admit(&out, &[&input], &Options::default()), "is not the file it was", "--no-resume or --overwrite");
    replace(&old);
    fs::File::options().write(true).open(&weights).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    refused(admit(&out, &[&input], &Options::default()), "is not the file it was", "--no-resume or --overwrite");
    // Both ways out are ways out.
    for options in [OVERWRITE, Options { resume: false, ..Options::default() }] {
        fs::write(&saved, &text).unwrap();
        drop(admit(&out, &[&input], &options).unwrap());
        drop(admit(&out, &[&input], &Options::default()).unwrap());
    }
}

#[test]
fn a_held_folder_is_that_of_one_run_of_this_process_after_the_other() {
    let (place, out) = place();
    let us = format!("another run is writing to `{}` (process {})", out.display(), std::process::id());
    let held = Hold::take(&out, &[], None).unwrap();
    assert!(Hold::take(&out, &[], None).unwrap_err().message.contains(&us));
    let first = admit(&out, &[], &Options::default()).unwrap();
    refused(admit(&out, &[], &Options::default()), &us, "wait");
    drop(first);
    // A run with all that follows it has it from first to last, and the engine of that run has it then.
    let whole = Hold::take(&out, &[], Some((PLAN, &OVERWRITE))).unwrap();
    assert!(Hold::take(&out, &[], Some((PLAN, &OVERWRITE))).unwrap_err().message.contains(&us));
    drop(admit(&out, &[], &OVERWRITE).unwrap());
    assert!(Hold::take(&out, &[], Some((PLAN, &OVERWRITE))).unwrap_err().message.contains(&us));
    drop(whole);
    let job = Job::new(&[2000]);
    assert_eq!(job.run(&out, &OVERWRITE).unwrap(), 0);
    // The manifest is in place and the state is gone; what holds the folder is too.
    job.assert_complete(&out);
    drop(held);
    // Nothing was put into it: nothing stays.
    let new = place.path().join("new/er");
    drop(Hold::take(&new, &[], None).unwrap());
    assert!(!place.path().join("new").exists());
    let refused = Hold::take(&out, &[&out], None).unwrap_err();
    assert!(refused.message.contains("is an input"), "{refused}");
    assert!(!out.join(".taskvec").exists());
}

#[test]
fn a_part_that_is_not_of_the_run_stays() {
    let (_place, out) = place();
    let job = Job::new(&[2000]);
    let run = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    drop(run);
    let others = [".notes.part", ".other.safetensors.part"];
    let ours = [".model-0.safetensors.part", ".README.md.part", ".config.json.4711.part"];
    others.iter().chain(&ours).for_each(|name| fs::write(out.join(name), b"half").unwrap());
    job.run(&out, &Options::default()).unwrap();
    let left = names(&out);
    assert!(others.iter().all(|name| left.iter().any(|left| left == name)), "{left:?}");
    assert!(!ours.iter().any(|name| left.iter().any(|left| left == name)), "{left:?}");
}

#[test]
fn a_torn_line_in_the_journal_is_cut_off_and_other_damage_is_an_error() {
    let (_place, out) = place();
    let job = Job::new(&[2000, 1000]);
    let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
    job.weights.keys().for_each(|name| job.shard(&folder, name).unwrap());
    drop(folder);
    let path = out.join(".taskvec/journal.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let done = || {
        let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default())?;
        Ok::<_, Error>(folder.done().len())
    };
    assert_eq!(done().unwrap(), 2);
    let start = lines[0].len() + lines[1].len();
    for cut in (start..whole.len()).rev().step_by(9) {
        job.shard(
            &OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap(),
            "model-1.safetensors",
        )
        .unwrap();
        fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(done().unwrap(), 1, "cut at {cut}");
        assert_eq!(fs::read_to_string(&path).unwrap(), whole[..start]);
    }
    fs::write(&path, [&whole.as_bytes()[..start], &[0; 64]].concat()).unwrap();
    assert_eq!(done().unwrap(), 1);

    let middle = format!("{}{{\"shard\": 1}}\n{}", lines[0], lines[2]);
    let foreign = whole.replace("model-1", "model-9");
    let resized = whole.replace("\"size\":1000", "\"size\":1001");
    let head = whole.replacen("\"format\":1", "\"format\":2", 1);
    let plan = format!("{{\"format\":1,\"plan\":\"00\"}}\n{}", lines[1]);
    for (text, message) in [
        (middle.as_str(), "is damaged: line 2"),
        (&foreign, "lists `model-9.safetensors`, which does not fit"),
        (&resized, "lists `model-1.safetensors`, which does not fit"),
        (&head, "line 1: format 2, expected 1"),
        (&plan, "belongs to another plan"),
        ("", "it is empty"),
        ("\u{1}\n", "is damaged: line 1"),
    ] {
        fs::write(&path, text).unwrap();
        let error = done().unwrap_err();
        assert!(error.message.contains(message), "{}", error.message);
        assert_eq!(error.hint.as_deref(), Some("use --overwrite to begin again"));
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(done().unwrap(), 0);
    assert_eq!(job.run(&out, &Options::default()).unwrap(), 0);
    job.assert_complete(&out);
}

#[test]
fn overwriting_begins_again_whatever_became_of_the_state() {
    for name in ["plan.json", "journal.jsonl", "inputs.json", "lock"] {
        for damage in ["garbage", "folder", "link to itself", "link to nowhere"] {
            let (_place, out) = place();
            let job = Job::new(&[2000, 1000]);
            let folder = OutputFolder::admit(&out, &[], PLAN, &job.sizes(), &Options::default()).unwrap();
            job.shard(&folder, "model-0.safetensors").unwrap();
            drop(folder);
            let path = out.join(".taskvec").join(name);
            fs::remove_file(&path).unwrap();
            match damage {
                "garbage" => fs::write(&path, [7; 50]).unwrap(),
                "folder" => {
                    fs::create_dir_all(path.join("below")).and_then(|()| fs::write(path.join("file"), b"")).unwrap()
                }
                "link to itself" => symlink(name, &path).unwrap(),
                _ => symlink("nowhere", &path).unwrap(),
            }
            job.run(&out, &OVERWRITE).unwrap_or_else(|error| panic!("{name}, {damage}: {error}"));
            job.assert_complete(&out);
        }
    }
}

#[test]
fn two_runs_never_write_into_one_folder() {
    let (_place, out) = place();
    let first = admit(&out, &[], &Options::default()).unwrap();
    let us = format!("another run is writing to `{}` (process {})", out.display(), std::process::id());
    refused(admit(&out, &[], &Options::default()), &us, "wait");
    refused(admit(&out, &[], &OVERWRITE), &us, "wait");
    fs::write(out.join(MANIFEST), b"{}").unwrap();
    assert!(finish(&out).unwrap_err().message.contains("another run is writing"));
    let shard = ShardFile::create(&first, "model.safetensors", 4).unwrap();
    drop(first);
    refused(admit(&out, &[], &Options::default()), &us, "wait");
    drop(shard);
    drop(admit(&out, &[], &Options::default()).unwrap());
    fs::write(out.join(MANIFEST), b"{}").unwrap();
    admit(&out, &[], &Options::default()).unwrap();
    // Many at once: exactly one gets it.
    let (_place, contested) = place();
    let admitted: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| admit(&contested, &[], &Options::default()))).collect();
        all.into_iter().filter_map(|one| one.join().unwrap().ok()).collect()
    });
    assert_eq!(admitted.len(), 1);
}

#[test]
fn space_is_checked_for_all_outputs_together_before_anything_changes() {
    let (place, _) = place();
    let root = place.path().canonicalize().unwrap();
    let status = rustix::fs::statvfs(&root).unwrap();
    let free = status.f_bavail * status.f_frsize;
    let shards = [("model.safetensors".to_string(), free / 2 + free / 8)];
    let (one, other) = (root.join("set/alpha=0"), root.join("set/alpha=1"));
    let one_only = [Request { path: &one, shards: &shards }];
    OutputFolder::admit_all(&one_only, &[], PLAN, &Options::default(), &Monitor::default()).unwrap();
    fs::remove_dir_all(root.join("set")).unwrap();
    let both = [Request { path: &one, shards: &shards }, Request { path: &other, shards: &shards }];
    let error = OutputFolder::admit_all(&both, &[], PLAN, &Options::default(), &Monitor::default()).unwrap_err();
    assert!(error.message.contains("too little space") && error.message.contains("needed"), "{error}");
    assert!(error.hint.unwrap().starts_with("free "));
    assert!(names(&root).is_empty(), "the folders of the refused run are gone");

    // With --overwrite, the old files are still there after a refusal.
    fs::create_dir(root.join("old")).unwrap();
    fs::write(root.join("old/model.safetensors"), b"old").unwrap();
    let shards = [("model.safetensors".to_string(), u64::MAX / 4096)];
    let error = OutputFolder::admit(&root.join("old"), &[], PLAN, &shards, &OVERWRITE).unwrap_err();
    assert!(error.message.contains("too little space"), "{error}");
    assert_eq!(names(&root.join("old")), ["model.safetensors"]);
}

#[test]
fn files_have_the_permissions_of_any_new_file() {
    let (place, out) = place();
    Job::new(&[100]).run(&out, &Options::default()).unwrap();
    fs::write(place.path().join("plain"), b"").unwrap();
    let plain = fs::metadata(place.path().join("plain")).unwrap().permissions().mode();
    for name in names(&out) {
        assert_eq!(fs::metadata(out.join(&name)).unwrap().permissions().mode(), plain, "{name}");
    }
}

#[test]
fn a_whole_shard_is_copied_shared_or_linked() {
    let (place, out) = place();
    let data = bytes((5 << 20) + 77, 3);
    let source = place.path().join("source.safetensors");
    fs::write(&source, &data).unwrap();
    symlink("source.safetensors", place.path().join("link.safetensors")).unwrap();
    let sizes: Vec<_> = ["a", "b", "c"].iter().map(|name| (format!("{name}.safetensors"), data.len() as u64)).collect();
    let folder = OutputFolder::admit(&out, &[], PLAN, &sizes, &Options::default()).unwrap();
    for (name, sharing) in [("a.safetensors", Sharing::Blocks), ("b.safetensors", Sharing::File)] {
        let link = place.path().join("link.safetensors");
        let (shard, digest) = copy_whole(&folder, &link, name, sharing, None, 3, &NEVER).unwrap();
        assert_eq!(digest, blake3::hash(&data).to_hex().to_string());
        assert!(!out.join(name).exists());
        shard.publish(&digest, &serde_json::Value::Null).unwrap();
        assert!(fs::read(out.join(name)).unwrap() == data);
    }
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_ne!(inode(&out.join("a.safetensors")), inode(&source));
    assert_eq!(inode(&out.join("b.safetensors")), inode(&source));
    let stopped = copy_whole(&folder, &source, "c.safetensors", Sharing::Blocks, None, 2, &|| true).unwrap_err();
    assert_eq!(stopped.kind, Kind::Interrupted);
    assert_eq!(names(&out), [".taskvec", "a.safetensors", "b.safetensors"]);
    fs::write(&source, b"of another size").unwrap();
    let error = copy_whole(&folder, &source, "c.safetensors", Sharing::File, None, 2, &NEVER).unwrap_err();
    assert!(error.message.contains("has 15 bytes, expected 5242957"), "{error}");
}

#[test]
fn a_shard_keeps_to_its_size() {
    let (_place, out) = place();
    let folder = admit(&out, &[], &Options::default()).unwrap();
    assert!(ShardFile::create(&folder, "model.safetensors", 5).is_err());
    assert!(ShardFile::create(&folder, "other.safetensors", 4).is_err());
    let shard = ShardFile::create(&folder, "model.safetensors", 4).unwrap();
    assert_eq!((shard.name(), shard.size()), ("model.safetensors", 4));
    assert_eq!(shard.write_at(2, b"abc").unwrap_err().kind, Kind::Engine);
    assert_eq!(shard.write_at(u64::MAX, b"a").unwrap_err().kind, Kind::Engine);
    shard.allocate(2..900).unwrap();
    shard.allocate(7..9).unwrap();
    shard.write_behind(3..3).unwrap();
    shard.write_at(0, b"data").unwrap();
    let part = out.join(".model.safetensors.part");
    fs::File::options().write(true).open(&part).unwrap().set_len(3).unwrap();
    assert!(shard.publish("", &serde_json::Value::Null).unwrap_err().message.contains("has 3 bytes, expected 4"));
    fs::File::options().write(true).open(&part).unwrap().set_len(4).unwrap();
    shard.publish("", &serde_json::Value::Null).unwrap();
    assert_eq!(shard.publish("", &serde_json::Value::Null).unwrap_err().kind, Kind::Engine);
}

#[test]
fn small_files_are_written_as_a_whole() {
    let (place, _) = place();
    let path = place.path().join("config.json");
    write_atomic(&path, b"one").unwrap();
    write_atomic(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    fs::write(place.path().join("aim"), b"untouched").unwrap();
    symlink("aim", place.path().join("link")).unwrap();
    symlink("aim", place.path().join(".link.part")).unwrap();
    write_atomic(&place.path().join("link"), b"three").unwrap();
    assert_eq!(fs::read(place.path().join("aim")).unwrap(), b"untouched");
    assert!(!fs::symlink_metadata(place.path().join("link")).unwrap().is_symlink());
    assert_eq!(names(place.path()), ["aim", "config.json", "link"]);
    assert_eq!(write_atomic(&place.path().join("no/x"), b"").unwrap_err().kind, Kind::NotFound);
    assert!(write_atomic(Path::new("/"), b"").is_err());
    fs::create_dir(place.path().join("taken")).unwrap();
    assert!(write_atomic(&place.path().join("taken"), b"").is_err());
    assert_eq!(names(place.path()), ["aim", "config.json", "link", "taken"]);
}
