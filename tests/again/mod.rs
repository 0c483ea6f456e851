//! The program that is running, to be started once more.

use std::process::Command;

/// Words that go before it, where this machine cannot start it by itself: an emulator and its options.
const RUNNER: &str = "TASKVEC_TEST_RUNNER";

/// This program, as words to start it with.
pub(crate) fn words() -> Vec<String> {
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let this = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    runner.split_whitespace().map(str::to_owned).chain([this]).collect()
}

/// The command that starts it.
#[allow(dead_code)] // not every program that has this file needs it
pub(crate) fn command() -> Command {
    let words = words();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
