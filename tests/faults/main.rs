//! An error at every call that the engine makes of the system, for every verb: it ends in the right bytes, or in an
//! error with its cause and a way out and nothing that looks complete; the same work afterwards ends in the bytes of an
//! undisturbed run and leaves nothing behind.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use taskvec_core::error::{Error, Kind, Result};

#[path = "../plans/mod.rs"]
mod plans;
mod trap;
mod verbs;

use trap::{Fault, Trap};
use verbs::{contents, entries, folders, Files, Work, World};

/// In how many of the ways in which it may fail each call is tried; in the others its like are.
const WAYS: usize = 2;

/// What is missing of an error: what failed and why, at the end a way out.
fn untold(error: &Error, errno: i32) -> Option<&'static str> {
    let cause = match errno {
        0 => "expected".to_owned(),
        _ => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    let cause = cause.split(" (os error").next().unwrap();
    let unreadable = ["was truncated, or cannot be read", "does not start"];
    let told = error.message.contains(cause) || unreadable.iter().any(|words| error.message.contains(words));
    match error.kind {
        Kind::Output | Kind::Format if !told => Some("no cause"),
        Kind::Output | Kind::Format if error.hint.is_none() => Some("no way out"),
        Kind::Output | Kind::Format => None,
        _ => Some("another kind of error"),
    }
}

/// What is wrong with the outcome of a point, if anything is.
type Judge<'a> = &'a dyn Fn(&Result<Vec<u8>>) -> Option<String>;

/// Tries every call of some work in every way, or in one way with all calls after it, and shows each outcome to
/// `judge`: how many points there were, and what is wrong, with the first point of each kind.
fn everywhere(
    trap: &Trap,
    work: &Work,
    step: usize,
    lasting: bool,
    prepare: &dyn Fn(),
    judge: Judge<'_>,
) -> (u64, Vec<String>) {
    prepare();
    let calls = trap.count(work);
    let (mut points, mut wrong) = (0, BTreeMap::new());
    // What lasts is the same from one call to the next but for what was done in between.
    for at in (0..calls).step_by(if lasting { 3 * step } else { step }) {
        for way in 0..if lasting { 1 } else { WAYS } {
            prepare();
            let fault = Fault { at, way: at as usize * WAYS + way, lasting };
            let (outcome, hit) = trap.during(fault, work);
            let result = outcome.unwrap_or_else(|_| Err(Error::new(Kind::Engine, "it panicked")));
            let Some((call, errno)) = hit else { break };
            points += 1;
            let words = result.as_ref().err().and_then(|error| match lasting {
                true => (error.kind == Kind::Engine).then_some("a defect"),
                false => untold(error, errno),
            });
            let words = words.map(str::to_owned).into_iter().chain(judge(&result));
            for problem in words {
                let told = result.as_ref().err().map(|error| format!("{error} (hint: {:?})", error.hint));
                let kind = format!("{call}, errno {errno}, lasting {lasting}: {problem}");
                wrong.entry(kind).or_insert_with(|| format!("call {at}: {told:?}"));
            }
        }
    }
    (points, wrong.into_iter().map(|(kind, first)| format!("{kind}\n    {first}")).collect())
}

/// Tries the calls each alone and with all after them.
fn assert_everywhere(verb: &str, world: &World, work: &Work, prepare: &dyn Fn(), least: u64, judge: Judge<'_>) {
    let trap = Trap::set(&world.root);
    let (points, wrong) = everywhere(trap, work, world.step, false, prepare, judge);
    let (lasting, worse) = everywhere(trap, work, world.step, true, prepare, judge);
    println!("{verb}: {points} + {lasting} points");
    let wrong = [wrong, worse].concat();
    assert!(wrong.is_empty(), "{verb}: {} kinds of failure:\n{}", wrong.len(), wrong.join("\n"));
    assert!(points > least, "only {points} points");
}

fn a_verb_that_writes(verb: &str, world: &World) {
    let (work, prepare) = (world.writer(verb), || world.prepare(verb));
    prepare();
    let before: Vec<_> = folders(&world.out).iter().map(|folder| contents(folder)).collect();
    work().unwrap();
    let good = contents(&world.out);
    // What a state leads to is tried once: most errors leave one of a few.
    let continued = RefCell::new(HashSet::new());
    assert_everywhere(verb, world, &work, &prepare, 100, &|result| {
        if !is_honest(world, &good, &before) {
            return Some("what looks complete is not".to_owned());
        }
        let mut found = contents(&world.out);
        if result.is_err() {
            let state = entries(world.out.parent().unwrap());
            if continued.borrow().contains(&state) {
                return None;
            }
            if let Err(error) = work() {
                return Some(format!("the same again: {error}"));
            }
            found = contents(&world.out);
            if found == good {
                continued.borrow_mut().insert(state);
            }
        } else {
            // What is left of the state of a run that has succeeded does no harm.
            found.retain(|path, _| !path.iter().any(|part| part == ".taskvec"));
        }
        let other = || found.iter().filter(|(path, bytes)| good.get(*path) != Some(*bytes)).map(|(path, _)| path);
        let missing = || good.keys().filter(|path| !found.contains_key(*path));
        (found != good).then(|| format!("not as undisturbed: {:?}", other().chain(missing()).collect::<Vec<_>>()))
    });
}

/// Whatever has a manifest is complete, as this run or as what was there before it.
fn is_honest(world: &World, good: &Files, before: &[Files]) -> bool {
    let found = folders(&world.out);
    found.iter().enumerate().all(|(at, folder)| {
        let inside = folder.strip_prefix(&world.out).unwrap();
        let own = good.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(inside).ok()?.into(), bytes.clone())));
        let (found, own): (Files, Files) = (contents(folder), own.collect());
        let holds = |whole: &Files| whole.iter().all(|(path, bytes)| found.get(path) == Some(bytes));
        let as_before = before.get(at).is_some_and(|before| !before.is_empty() && holds(before));
        !found.contains_key(Path::new("taskvec.json")) || holds(&own) || as_before
    })
}

/// Calls that some file systems do not have (network and user-space ones, those of other systems), and how they say so.
const LACKING: &[(&str, &[i32])] = &[
    ("fsync", &[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP]),
    ("fdatasync", &[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP]),
    ("sync_file_range", &[libc::EINVAL, libc::ENOSYS, libc::ESPIPE]),
    ("fallocate", &[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENODEV]),
    ("fadvise", &[libc::EINVAL, libc::ENOSYS, libc::ESPIPE]),
    ("madvise", &[libc::EINVAL, libc::ENOSYS]),
    ("flock", &[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOLCK]),
    ("ioctl", &[libc::ENOTTY, libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM, libc::EXDEV]),
    ("copy_file_range", &[libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EXDEV]),
    ("linkat", &[libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP, libc::EMLINK, libc::EXDEV]),
    ("renameat2", &[libc::EINVAL, libc::ENOSYS]),
    ("statfs", &[libc::ENOSYS, libc::EOPNOTSUPP]),
    ("fstatfs", &[libc::ENOSYS, libc::EOPNOTSUPP]),
];

/// On a file system that lacks a call each verb does its work all the same.
fn nothing_that_can_be_lacking_is_needed() {
    for (verb, world) in [
        ("transfer", World::on_disk()),
        ("alphas", World::new()),
        ("apply", World::new()),
        ("extract", World::new()),
        ("join", World::new()),
        ("overwrite", World::new()),
        ("resume", World::new()),
    ] {
        let (trap, work) = (Trap::set(&world.root), world.writer(verb));
        world.prepare(verb);
        work().unwrap();
        let good = contents(&world.out);
        for (call, errno) in LACKING.iter().flat_map(|(call, answers)| answers.iter().map(move |errno| (*call, *errno)))
        {
            world.prepare(verb);
            let (outcome, _) = trap.without(call, errno, &work);
            let outcome = outcome.unwrap_or_else(|_| panic!("{verb}: {call} answers {errno}: it panicked"));
            assert!(outcome.is_ok(), "{verb}: {call} answers {errno}: {}", outcome.unwrap_err());
            assert!(contents(&world.out) == good, "{verb}: {call} answers {errno}: other bytes");
        }
    }
}

fn a_verb_that_reads(verb: &str) {
    let world = World::new();
    let work = world.reader(verb);
    let good = work().unwrap();
    assert_everywhere(verb, &world, &work, &|| {}, 15, &|result| match result {
        Ok(found) if *found != good => Some("another result than undisturbed".to_owned()),
        _ if work().unwrap() != good => Some("another result afterwards".to_owned()),
        _ => None,
    });
}

macro_rules! tests {
    ($($test:ident: $body:expr;)*) => { $(#[test] fn $test() { $body })* };
}

tests! {
    transfer: a_verb_that_writes("transfer", &World::new());
    transfer_to_a_disk: a_verb_that_writes("transfer", &World::on_disk());
    several_alphas: a_verb_that_writes("alphas", &World::new());
    merge: a_verb_that_writes("merge", &World::new());
    apply: a_verb_that_writes("apply", &World::new());
    apply_with_an_adapter: a_verb_that_writes("adapter", &World::new());
    extract: a_verb_that_writes("extract", &World::new());
    join: a_verb_that_writes("join", &World::new());
    overwrite: a_verb_that_writes("overwrite", &World::new());
    resume: a_verb_that_writes("resume", &World::new());
    inspect: a_verb_that_reads("inspect");
    diff: a_verb_that_reads("diff");
    evaluate: a_verb_that_reads("evaluate");
    verify: a_verb_that_reads("verify");
    in_place: a_verb_that_reads("in place");
    lacking: nothing_that_can_be_lacking_is_needed();
    linear: calls_grow_with_the_number_of_shards_and_no_faster();
}

/// Counted, since no clock is to be trusted: twice the shards are twice the calls.
fn calls_grow_with_the_number_of_shards_and_no_faster() {
    let world = World::new();
    let trap = Trap::set(&world.root);
    let [few, some, many] = [20, 40, 80].map(|shards| trap.count(&world.of_shards(shards)));
    assert!(few >= 20 * 5, "{few} calls");
    let (first, second) = (some - few, many - some);
    assert!(second < 2 * first + first / 4, "{few}, {some} and {many} calls");
}
