//! Files that shrink, change or are no files at all, under a reader that must not die of it.
//! Mapped files are those of Linux: elsewhere files are read.
#![cfg(target_os = "linux")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use taskvec_core::error::Kind;
use taskvec_core::file::mapped::Mapped;

mod again;

/// A multiple of every page size there is.
const PAGE: u64 = 65536;

/// A file of `len` bytes, none of them zero, on a file system that can be mapped.
fn file(folder: &Path, len: u64) -> PathBuf {
    let path = folder.join("file");
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
    fs::write(&path, bytes).unwrap();
    path
}

fn truncate(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn mapped_and_unmapped_files_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for len in [1, 7, PAGE - 1, PAGE, PAGE + 1, 40 * PAGE + 13] {
        let path = file(folder.path(), len);
        let contents = fs::read(&path).unwrap();
        let mapped = Mapped::open(&path).unwrap();
        let unmapped = Mapped::open_unmapped(&path).unwrap();
        let closed = Mapped::open_closed(&path).unwrap();
        assert!(mapped.is_mapped() && !unmapped.is_mapped() && !closed.is_mapped());
        let mut scratch = Vec::new();
        for (start, end) in [(0, len), (len / 3, len / 2), (len - 1, len), (len, len), (0, 0)] {
            let expected = &contents[start as usize..end as usize];
            for source in [&mapped, &unmapped, &closed] {
                source.advise_ahead(start..end);
                assert_eq!(source.read(start..end, &mut scratch).unwrap(), expected);
                source.drop_behind(start..end);
                assert_eq!(source.read(start..end, &mut scratch).unwrap(), expected);
            }
        }
        mapped.unchanged().unwrap();
        unmapped.unchanged().unwrap();
    }
}

#[test]
fn an_empty_file_has_nothing_to_map_or_read() {
    let folder = tempfile::tempdir().unwrap();
    let empty = Mapped::open(&file(folder.path(), 0)).unwrap();
    assert!(empty.is_empty());
    assert!(empty.read(0..0, &mut Vec::new()).unwrap().is_empty());
    empty.advise_ahead(0..0);
    empty.drop_behind(0..0);
    empty.unchanged().unwrap();
}

#[test]
fn a_range_outside_the_file_is_an_error_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 10);
    for source in [Mapped::open(&path).unwrap(), Mapped::open_unmapped(&path).unwrap()] {
        #[allow(clippy::reversed_empty_ranges)]
        for range in [0..11, 11..11, 5..4, 0..u64::MAX, u64::MAX..u64::MAX] {
            let mut scratch = Vec::new();
            let error = source.read(range.clone(), &mut scratch).unwrap_err();
            assert_eq!(error.kind, Kind::Engine);
            assert_eq!(scratch.capacity(), 0);
            source.advise_ahead(range.clone());
            source.drop_behind(range);
        }
    }
}

#[test]
fn a_file_truncated_before_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for unmapped in [false, true] {
        let path = file(folder.path(), 100 * PAGE);
        let source = if unmapped { Mapped::open_unmapped(&path) } else { Mapped::open(&path) }.unwrap();
        truncate(&path, 10 * PAGE);
        let mut scratch = Vec::new();
        assert!(source.read(0..10 * PAGE, &mut scratch).is_ok(), "what is left is still there");
        let error = source.read(9 * PAGE..12 * PAGE, &mut scratch).unwrap_err();
        assert_eq!(error.kind, Kind::Format);
        assert!(error.message.contains("was truncated"), "{error}");
        assert!(source.unchanged().unwrap_err().message.contains("now has 655360"), "{error}");
    }
}

#[test]
fn a_file_truncated_while_its_bytes_are_in_use_gives_zeros_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 100 * PAGE);
    let source = Mapped::open(&path).unwrap();
    let (mut scratch, mut other) = (Vec::new(), Vec::new());
    let bytes = source.read(0..100 * PAGE, &mut scratch).unwrap();
    assert!(bytes.iter().all(|byte| *byte != 0));
    truncate(&path, 10 * PAGE);
    let (kept, gone) = bytes.split_at(10 * PAGE as usize);
    assert!(kept.iter().all(|byte| *byte != 0));
    assert!(gone.iter().all(|byte| *byte == 0));
    // From here on nothing of this file is trusted, not even after it has its old length again.
    truncate(&path, 100 * PAGE);
    assert!(source.read(0..1, &mut other).unwrap_err().message.contains("was truncated"));
    assert!(source.unchanged().is_err());
}

#[test]
fn threads_that_meet_a_truncation_together_all_survive_it() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = file(folder.path(), 200 * PAGE);
        let source = Mapped::open(&path).unwrap();
        let begun = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    begun.wait();
                    for chunk in 0..20 {
                        let mut scratch = Vec::new();
                        let range = chunk * 10 * PAGE..(chunk + 1) * 10 * PAGE;
                        match source.read(range, &mut scratch) {
                            Ok(bytes) => drop(bytes.iter().fold(0u64, |sum, byte| sum + u64::from(*byte))),
                            Err(error) => assert_eq!(error.kind, Kind::Format),
                        }
                    }
                });
            }
            begun.wait();
            std::thread::sleep(Duration::from_micros(100 * round));
            truncate(&path, 3 * PAGE);
        });
        assert!(source.unchanged().is_err());
    }
}

#[test]
fn a_change_that_loses_no_page_is_found_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), PAGE + 100);

    let shortened = Mapped::open(&path).unwrap();
    truncate(&path, PAGE + 50);
    let mut scratch = Vec::new();
    // The last page is still there, with zeros at its end: reading cannot know.
    assert!(shortened.read(0..PAGE + 100, &mut scratch).is_ok());
    assert!(shortened.unchanged().unwrap_err().message.contains("had 65636 bytes and now has 65586"));

    let written = Mapped::open(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    OpenOptions::new().write(true).open(&path).unwrap().write_all(b"other").unwrap();
    assert!(written.unchanged().unwrap_err().message.contains("was written to"));

    let put_back = Mapped::open(&path).unwrap();
    let stamp = fs::metadata(&path).unwrap().modified().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    OpenOptions::new().write(true).open(&path).unwrap().write_all(b"third").unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_modified(stamp).unwrap();
    assert!(put_back.unchanged().unwrap_err().message.contains("was changed, or its permissions were"));

    let linked = Mapped::open(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::hard_link(&path, folder.path().join("linked")).unwrap();
    linked.unchanged().unwrap();

    let replaced = Mapped::open(&path).unwrap();
    fs::copy(&path, folder.path().join("copy")).unwrap();
    fs::rename(folder.path().join("copy"), &path).unwrap();
    assert!(replaced.unchanged().unwrap_err().message.contains("was replaced"));

    let removed = Mapped::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(removed.unchanged().unwrap_err().kind, Kind::NotFound);
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let linked = folder.path().join("linked");
    symlink(&fifo, &linked).unwrap();
    for (path, expected) in [
        (fifo.as_path(), "is a FIFO, not a regular file"),
        (linked.as_path(), "is a FIFO"),
        (socket.as_path(), "is a socket"),
        (folder.path(), "is a folder"),
        (Path::new("/dev/zero"), "is a device"),
    ] {
        let error = Mapped::open(path).unwrap_err();
        assert_eq!(error.kind, Kind::Format);
        assert!(error.message.contains(expected), "{error}");
    }
}

#[test]
fn links_are_followed_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path(), 10);
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    symlink("file", &first).unwrap();
    symlink(&first, &second).unwrap();
    let source = Mapped::open(&second).unwrap();
    assert_eq!(source.len(), 10);
    assert_eq!(source.path(), second);
    let (dangling, around) = (folder.path().join("dangling"), folder.path().join("around"));
    symlink("nowhere", &dangling).unwrap();
    symlink("around", &around).unwrap();
    assert_eq!(Mapped::open(&dangling).unwrap_err().kind, Kind::NotFound);
    assert!(Mapped::open(&around).is_err());
}

/// Set in the process that is to die.
const VICTIM: &str = "TASKVEC_TEST_VICTIM";

/// Runs one of the tests here in a process of its own and returns the signal that ended it.
fn signal_of(test: &str) -> Option<i32> {
    let status = again::command().args(["--exact", test]).env(VICTIM, "1").output().unwrap().status;
    status.signal()
}

#[test]
#[allow(unsafe_code)]
fn faults_of_others_stay_theirs() {
    if std::env::var_os(VICTIM).is_none() {
        assert_eq!(signal_of("faults_of_others_stay_theirs"), Some(libc::SIGBUS));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 2 * PAGE);
    let _ours = Mapped::open(&path).unwrap();
    let file = fs::File::open(&path).unwrap();
    // SAFETY: the file is this test's own; that it changes under the mapping is what is tested.
    let theirs = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    truncate(&path, 0);
    assert_eq!(theirs[0], 0, "not reached: reading it is the end of this process");
}

#[test]
fn a_signal_that_is_sent_still_arrives() {
    if std::env::var_os(VICTIM).is_none() {
        assert_eq!(signal_of("a_signal_that_is_sent_still_arrives"), Some(libc::SIGBUS));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _ours = Mapped::open(&file(folder.path(), 1)).unwrap();
    // The handler that Rust's own library installs swallows the first one and restores the default.
    for _ in 0..100 {
        Command::new("kill").args(["-BUS", &std::process::id().to_string()]).status().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
}

extern "C" fn other_handler(_: libc::c_int) {
    // SAFETY: `_exit` may be called in a handler.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(42)
    }
}

/// As faulthandler does: takes the signal over after the first file was mapped.
#[test]
#[allow(unsafe_code)]
fn a_handler_installed_later_does_not_take_the_watch_away_and_gets_its_own_faults() {
    if std::env::var_os(VICTIM).is_none() {
        let test = "a_handler_installed_later_does_not_take_the_watch_away_and_gets_its_own_faults";
        let status = again::command().args(["--exact", test]).env(VICTIM, "1").status().unwrap();
        assert_eq!(status.code(), Some(42));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), 2 * PAGE);
    let ours = Mapped::open(&path).unwrap();
    // SAFETY: the handler has the form that `signal` asks for.
    unsafe { libc::signal(libc::SIGBUS, other_handler as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    let mut scratch = Vec::new();
    let bytes = ours.read(0..2 * PAGE, &mut scratch).unwrap();
    let file = fs::File::open(&path).unwrap();
    // SAFETY: the file is this test's own; that it changes under the mapping is what is tested.
    let theirs = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    truncate(&path, 0);
    assert_eq!(bytes[0], 0);
    assert!(ours.unchanged().is_err());
    assert_eq!(theirs[0], 0, "not reached: the other handler ends this process");
}

/// Where the watch of a mapping must be gone when the mapping is: its address, once it is to be looked at.
static UNMAPPED: AtomicUsize = AtomicUsize::new(0);

/// In place of the library's: puts an empty file where the mapping was, and touches it.
#[no_mangle]
#[allow(unsafe_code)]
unsafe extern "C" fn munmap(address: *mut libc::c_void, length: libc::size_t) -> libc::c_int {
    // SAFETY: as asked of the caller.
    let done = unsafe { libc::syscall(libc::SYS_munmap, address, length) } as libc::c_int;
    if done == 0 && UNMAPPED.compare_exchange(address as usize, 1, SeqCst, SeqCst).is_ok() {
        let file = tempfile::tempfile().unwrap();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: the place is free, and that the file has no page is what is tested.
        unsafe {
            let place = libc::mmap(address, PAGE as usize, libc::PROT_READ, flags, file.as_raw_fd(), 0);
            assert_eq!(place, address);
            std::ptr::read_volatile(place as *const u8);
        }
    }
    done
}

#[test]
fn a_watch_does_not_outlive_its_mapping() {
    let test = "a_watch_does_not_outlive_its_mapping";
    if std::env::var_os(VICTIM).is_none() {
        assert_eq!(signal_of(test), Some(libc::SIGBUS), "a fault of somebody else's mapping was taken for ours");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = Mapped::open(&file(folder.path(), PAGE)).unwrap();
    let mut scratch = Vec::new();
    UNMAPPED.store(ours.read(0..PAGE, &mut scratch).unwrap().as_ptr() as usize, SeqCst);
    drop(ours);
    std::process::exit(if UNMAPPED.load(SeqCst) == 1 { 2 } else { 3 });
}

/// A library that leaves its handler by a jump to where it goes on, as `siglongjmp` does it.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod leaving {
    use std::ffi::c_int;

    std::arch::global_asm!(
        ".globl taskvec_test_probe",
        "taskvec_test_probe:",
        "mov [rsi], rbx",
        "mov [rsi + 8], rbp",
        "mov [rsi + 16], r12",
        "mov [rsi + 24], r13",
        "mov [rsi + 32], r14",
        "mov [rsi + 40], r15",
        "mov [rsi + 48], rsp",
        "mov al, [rdi]",
        "xor eax, eax",
        "ret",
        ".globl taskvec_test_leave",
        "taskvec_test_leave:",
        "mov rbx, [rdi]",
        "mov rbp, [rdi + 8]",
        "mov r12, [rdi + 16]",
        "mov r13, [rdi + 24]",
        "mov r14, [rdi + 32]",
        "mov r15, [rdi + 40]",
        "mov rsp, [rdi + 48]",
        "mov eax, 1",
        "ret",
    );

    extern "C" {
        /// Reads a byte, and is 0; 1 where `leave` was called meanwhile.
        fn taskvec_test_probe(address: *const u8, registers: *mut [u64; 7]) -> c_int;
        fn taskvec_test_leave(registers: *const [u64; 7]) -> !;
    }

    static mut REGISTERS: [u64; 7] = [0; 7];

    pub(super) extern "C" fn handler(_: c_int) {
        // SAFETY: signals come from `probe` alone, which has filled it and has not returned.
        unsafe { taskvec_test_leave(&raw const REGISTERS) }
    }

    /// Whether reading there is a fault that the library's own handler got.
    pub(super) fn faults(address: *const u8) -> bool {
        // SAFETY: an address that is mapped; what the system does on a page that its file lacks is caught.
        unsafe { taskvec_test_probe(address, &raw mut REGISTERS) == 1 }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn a_handler_that_never_returns_gets_every_fault_of_its_own() {
    if std::env::var_os(VICTIM).is_none() {
        let test = "a_handler_that_never_returns_gets_every_fault_of_its_own";
        let output = again::command().args(["--exact", test, "--test-threads=1"]).env(VICTIM, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // SAFETY: the handler has the form that `signal` asks for.
    unsafe { libc::signal(libc::SIGBUS, leaving::handler as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    let path = file(folder.path(), 2 * PAGE);
    let ours = Mapped::open(&path).unwrap();
    let mut scratch = Vec::new();
    let bytes = ours.read(0..2 * PAGE, &mut scratch).unwrap();
    let file = fs::File::open(&path).unwrap();
    // SAFETY: the file is this test's own; that it changes under the mapping is what is tested.
    let theirs = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    assert!(!leaving::faults(theirs.as_ptr()));
    truncate(&path, 0);
    for _ in 0..3 {
        assert!(leaving::faults(theirs.as_ptr()));
    }
    assert_eq!(bytes[0], 0);
    assert!(leaving::faults(theirs.as_ptr()));
    assert!(ours.unchanged().is_err());
}
