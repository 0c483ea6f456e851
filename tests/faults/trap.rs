//! System calls that fail on demand, in this very process: a filter of the kernel's sends the calls that concern files
//! to a signal handler, which makes them itself, or gives the answer of a failing disk instead. Nothing in the engine
//! knows of it, so no call can be forgotten. Starting a thread is caught where the library is asked for it.
//!
//! The filter holds for one thread that does what it is given, and for those that this starts: several tests run side by
//! side, and what they do to look at the outcome is as fast as ever.
// The names of the system's calls are the library's.
#![allow(unsafe_code, non_upper_case_globals)]

use std::cell::Cell;
use std::ffi::{c_int, c_void, CStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, Once, OnceLock};

use libc::*;

use crate::verbs::Work;

/// A panic, or what the engine says.
pub(crate) type Outcome = std::thread::Result<taskvec_core::error::Result<Vec<u8>>>;

/// The call is made for half of what was asked.
const SHORT: c_int = 0;
/// In place of the number of a system call: a thread is started.
const THREAD: c_long = -1;

/// Which argument says what a call is about.
#[derive(Clone, Copy)]
enum About {
    Path(usize),
    /// A folder's descriptor, and the path that starts there.
    At(usize, usize),
    Descriptor(usize),
    /// A mapping, of which the engine alone asks this.
    Any,
}
use About::{Any, At, Descriptor, Path as Named};

const OPEN: &[c_int] = &[EIO, EACCES, EMFILE, ESTALE, ENOMEM, EINTR];
const LOOK: &[c_int] = &[EIO, EACCES, ESTALE, ENOMEM];
/// That it may not be read is an answer here.
const ASK: &[c_int] = &[EIO, ESTALE, ENOMEM];
const LIST: &[c_int] = &[EIO, ESTALE, ENOMEM, EACCES];
const READ: &[c_int] = &[EIO, EAGAIN, EINTR, ESTALE, SHORT];
const WRITE: &[c_int] = &[ENOSPC, EIO, EDQUOT, EINTR, SHORT];
const CHANGE: &[c_int] = &[EIO, EACCES, ENOSPC, EROFS];
const FLUSH: &[c_int] = &[EIO, ENOSPC];
const RESERVE: &[c_int] = &[ENOSPC, EIO, EINTR, EOPNOTSUPP];
const CLOSE: &[c_int] = &[EIO, EINTR];
const LOCK: &[c_int] = &[EIO, ENOLCK, EINTR];
const MAP: &[c_int] = &[ENOMEM, EAGAIN, ENODEV];
const POPULATE: &[c_int] = &[ENOMEM, EAGAIN, EFAULT];
const ADVISE: &[c_int] = &[EIO, EOPNOTSUPP];
const START: &[c_int] = &[EAGAIN];

/// Number, name, what tells the file, and the ways in which it may fail.
const CALLS: [(c_long, &str, About, &[c_int]); 44] = [
    (SYS_open, "open", Named(0), OPEN),
    (SYS_openat, "openat", At(0, 1), OPEN),
    (SYS_stat, "stat", Named(0), LOOK),
    (SYS_lstat, "lstat", Named(0), LOOK),
    (SYS_fstat, "fstat", Descriptor(0), LOOK),
    (SYS_newfstatat, "fstatat", At(0, 1), LOOK),
    (SYS_statx, "statx", At(0, 1), LOOK),
    (SYS_access, "access", Named(0), ASK),
    (SYS_faccessat, "faccessat", At(0, 1), ASK),
    (SYS_faccessat2, "faccessat2", At(0, 1), ASK),
    (SYS_readlink, "readlink", Named(0), LOOK),
    (SYS_readlinkat, "readlinkat", At(0, 1), LOOK),
    (SYS_statfs, "statfs", Named(0), LOOK),
    (SYS_fstatfs, "fstatfs", Descriptor(0), LOOK),
    (SYS_getdents64, "getdents64", Descriptor(0), LIST),
    (SYS_lseek, "lseek", Descriptor(0), ADVISE),
    (SYS_read, "read", Descriptor(0), READ),
    (SYS_pread64, "pread", Descriptor(0), READ),
    (SYS_write, "write", Descriptor(0), WRITE),
    (SYS_pwrite64, "pwrite", Descriptor(0), WRITE),
    (SYS_ftruncate, "ftruncate", Descriptor(0), CHANGE),
    (SYS_fallocate, "fallocate", Descriptor(0), RESERVE),
    (SYS_fsync, "fsync", Descriptor(0), FLUSH),
    (SYS_fdatasync, "fdatasync", Descriptor(0), FLUSH),
    (SYS_sync_file_range, "sync_file_range", Descriptor(0), FLUSH),
    (SYS_fadvise64, "fadvise", Descriptor(0), ADVISE),
    (SYS_ioctl, "ioctl", Descriptor(0), ADVISE),
    (SYS_flock, "flock", Descriptor(0), LOCK),
    (SYS_close, "close", Descriptor(0), CLOSE),
    (SYS_rename, "rename", Named(0), CHANGE),
    (SYS_renameat, "renameat", At(0, 1), CHANGE),
    (SYS_renameat2, "renameat2", At(0, 1), CHANGE),
    (SYS_unlink, "unlink", Named(0), CHANGE),
    (SYS_unlinkat, "unlinkat", At(0, 1), CHANGE),
    (SYS_mkdir, "mkdir", Named(0), CHANGE),
    (SYS_mkdirat, "mkdirat", At(0, 1), CHANGE),
    (SYS_rmdir, "rmdir", Named(0), CHANGE),
    (SYS_link, "link", Named(1), CHANGE),
    (SYS_linkat, "linkat", At(2, 3), CHANGE),
    (SYS_copy_file_range, "copy_file_range", Descriptor(0), WRITE),
    (SYS_sendfile, "sendfile", Descriptor(0), WRITE),
    (SYS_mmap, "mmap", Descriptor(4), MAP),
    (SYS_madvise, "madvise", Any, POPULATE),
    (THREAD, "pthread_create", Any, START),
];

/// Which call fails, and how.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    /// The call, counted from 0.
    pub at: u64,
    /// Which of the ways in which this call may fail, counted round and round.
    pub way: usize,
    /// Every later one fails too, as on a disk that is gone.
    pub lasting: bool,
}

/// Counts the calls on files below a folder, and lets one of them fail.
pub(crate) struct Trap {
    root: Vec<u8>,
    armed: AtomicBool,
    count: AtomicU64,
    at: AtomicU64,
    way: AtomicUsize,
    lasting: AtomicBool,
    /// Number of a call that the file system does not have, and how it says so; [`NOTHING`] mostly.
    lacking: AtomicI64,
    refusal: AtomicI64,
    /// Number and answer of the call that failed; [`NOTHING`] before.
    hit: AtomicI64,
    answer: AtomicI64,
    worker: OnceLock<Worker>,
}

/// Where work is given to the thread that is in the trap, and where its outcome comes back.
type Worker = Mutex<(Sender<Work>, Receiver<Outcome>)>;

const NOTHING: i64 = i64::MIN;

thread_local! {
    static TRAP: Cell<*const Trap> = const { Cell::new(ptr::null()) };
}

impl Trap {
    /// A trap for the files below a folder, and a thread in it.
    pub(crate) fn set(root: &Path) -> &'static Trap {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(handle);
        let trap: &'static Trap = Box::leak(Box::new(Trap {
            root: root.as_os_str().as_bytes().to_vec(),
            armed: AtomicBool::new(false),
            count: AtomicU64::new(0),
            at: AtomicU64::new(u64::MAX),
            way: AtomicUsize::new(0),
            lasting: AtomicBool::new(false),
            lacking: AtomicI64::new(NOTHING),
            refusal: AtomicI64::new(0),
            hit: AtomicI64::new(NOTHING),
            answer: AtomicI64::new(0),
            worker: OnceLock::new(),
        }));
        let ((give, given), (tell, told)) = (channel::<Work>(), channel());
        std::thread::spawn(move || {
            TRAP.set(trap);
            filter();
            while let Ok(work) = given.recv() {
                trap.armed.store(true, SeqCst);
                let outcome = catch_unwind(AssertUnwindSafe(|| work()));
                trap.armed.store(false, SeqCst);
                drop(work);
                tell.send(outcome).unwrap();
            }
        });
        trap.worker.get_or_init(|| Mutex::new((give, told)));
        trap
    }

    /// How many calls some work makes.
    pub(crate) fn count(&self, work: &Work) -> u64 {
        self.during(Fault { at: u64::MAX, way: 0, lasting: false }, work).0.unwrap().unwrap();
        self.count.load(SeqCst)
    }

    /// Does some work on a file system that answers one kind of call in this way whenever it is made, and says whether
    /// it was made at all.
    pub(crate) fn without(&self, name: &str, errno: c_int, work: &Work) -> (Outcome, bool) {
        let (number, ..) = CALLS.iter().find(|call| call.1 == name).unwrap();
        self.refusal.store(errno.into(), SeqCst);
        self.lacking.store(*number, SeqCst);
        let (outcome, hit) = self.during(Fault { at: u64::MAX, way: 0, lasting: false }, work);
        self.lacking.store(NOTHING, SeqCst);
        (outcome, hit.is_some())
    }

    /// Does some work with one call failing, if it comes to that: its outcome, and name and errno of the call.
    pub(crate) fn during(&self, fault: Fault, work: &Work) -> (Outcome, Option<(&'static str, c_int)>) {
        self.count.store(0, SeqCst);
        self.at.store(fault.at, SeqCst);
        self.way.store(fault.way, SeqCst);
        self.lasting.store(fault.lasting, SeqCst);
        self.hit.store(NOTHING, SeqCst);
        let worker = self.worker.get().unwrap().lock().unwrap();
        worker.0.send(Arc::clone(work)).unwrap();
        let outcome = worker.1.recv().unwrap();
        let hit = self.hit.load(SeqCst);
        let name = CALLS.iter().find(|call| call.0 == hit).map(|call| call.1);
        (outcome, name.map(|name| (name, self.answer.load(SeqCst) as c_int)))
    }

    /// The errno with which this call is to fail, if it is; `SHORT` for half of it.
    fn fault(&self, number: c_long, ways: &[c_int]) -> Option<c_int> {
        let now = self.count.fetch_add(1, SeqCst);
        let at = self.at.load(SeqCst);
        let lasting = self.lasting.load(SeqCst);
        if self.lacking.load(SeqCst) == number {
            let refusal = self.refusal.load(SeqCst);
            self.hit.store(number, SeqCst);
            self.answer.store(refusal, SeqCst);
            return Some(refusal as c_int);
        }
        if now != at && !(lasting && now > at) {
            return None;
        }
        let errno = if lasting { EIO } else { ways[self.way.load(SeqCst) % ways.len()] };
        if self.hit.compare_exchange(NOTHING, number, SeqCst, SeqCst).is_ok() {
            self.answer.store(errno.into(), SeqCst);
        }
        Some(errno)
    }

    /// Whether the call is about a file below the folder.
    fn concerns(&self, about: About, arguments: &[c_long; 6]) -> bool {
        match about {
            Any => true,
            Named(path) => self.holds(arguments[path]),
            At(folder, path) => {
                // SAFETY: the argument of a call that takes a path is one, or null where it may be.
                let first = unsafe { (arguments[path] as *const u8).as_ref() }.copied().unwrap_or(0);
                if first == b'/' {
                    self.holds(arguments[path])
                } else {
                    self.is_open(arguments[folder])
                }
            }
            Descriptor(descriptor) => self.is_open(arguments[descriptor]),
        }
    }

    fn holds(&self, path: c_long) -> bool {
        // SAFETY: the argument of a call that takes a path is a string that ends in a zero.
        unsafe { CStr::from_ptr(path as *const c_char) }.to_bytes().starts_with(&self.root)
    }

    fn is_open(&self, descriptor: c_long) -> bool {
        let mut name = *b"/proc/self/fd/0000000000\0";
        let mut rest = (descriptor as c_int).max(0);
        for digit in name[14..24].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let digits = name[14..23].iter().take_while(|digit| **digit == b'0').count();
        name.copy_within(14 + digits..25, 14);
        let mut target = [0u8; 512];
        let arguments = [name.as_ptr() as c_long, target.as_mut_ptr() as c_long, 512, 0, 0, 0];
        let length = make(SYS_readlink, &arguments);
        descriptor as c_int >= 0 && length > 0 && target[..length as usize].starts_with(&self.root)
    }
}

std::arch::global_asm!(
    ".globl taskvec_test_call",
    "taskvec_test_call:",
    "mov rax, rdi",
    "mov r11, rsi",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "syscall",
    ".globl taskvec_test_called",
    "taskvec_test_called:",
    "ret",
);

unsafe extern "C" {
    fn taskvec_test_call(number: c_long, arguments: *const c_long) -> c_long;
    fn taskvec_test_called();
}

/// Makes a call from the one place from which the filter lets it through.
fn make(number: c_long, arguments: &[c_long; 6]) -> c_long {
    // SAFETY: the arguments are those with which somebody makes this very call.
    unsafe { taskvec_test_call(number, arguments.as_ptr()) }
}

fn handle() {
    // SAFETY: a sigaction of zeros is valid, and the handler has the form that SA_SIGINFO asks for.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = SA_SIGINFO;
        assert_eq!(sigaction(SIGSYS, &action, ptr::null_mut()), 0);
    }
}

extern "C" fn trapped(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the context of the thread that made the call.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let number = registers[REG_RAX as usize];
    let arguments = [REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9].map(|name| registers[name as usize]);
    registers[REG_RAX as usize] = answer(number, &arguments);
}

fn answer(number: c_long, arguments: &[c_long; 6]) -> c_long {
    // SAFETY: null, or a trap, which is never freed.
    let trap = unsafe { TRAP.get().as_ref() }.filter(|trap| trap.armed.load(SeqCst));
    let call = CALLS.iter().find(|call| call.0 == number);
    let (Some(trap), Some((_, _, about, ways))) = (trap, call) else { return make(number, arguments) };
    if !trap.concerns(*about, arguments) {
        return make(number, arguments);
    }
    match trap.fault(number, ways) {
        None => make(number, arguments),
        Some(SHORT) => {
            let mut less = *arguments;
            less[2] -= less[2] / 2;
            make(number, &less)
        }
        Some(errno) => {
            if number == SYS_close {
                // It is closed all the same, as by the kernel.
                make(number, arguments);
            }
            -c_long::from(errno)
        }
    }
}

/// Lets the kernel send this thread's calls on files to the handler, unless they come from there.
fn filter() {
    let statement = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |at: u32| statement(BPF_LD | BPF_W | BPF_ABS, at);
    let give = |action: u32| statement(BPF_RET | BPF_K, action);
    let unless = |k: u32, skip: u8| sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf: skip, k };
    let (arch, low, high, number, third, fifth) = (4, 8, 12, 0, 32, 48);
    let here = taskvec_test_called as *const () as u64;
    let mut program = vec![load(arch), unless(0xc000_003e, 1), sock_filter { jt: 1, ..unless(0, 0) }];
    program[2] = statement(BPF_JMP | BPF_JA, 1);
    program.push(give(SECCOMP_RET_ALLOW));
    program.extend([load(low), unless(here as u32, 3), load(high), unless((here >> 32) as u32, 1)]);
    program.extend([give(SECCOMP_RET_ALLOW), load(number)]);
    for (call, ..) in CALLS.iter().filter(|call| call.0 != THREAD) {
        let caught = match *call {
            // Memory of no file is the allocator's.
            SYS_mmap => vec![load(fifth), unless(u32::MAX, 1), give(SECCOMP_RET_ALLOW), give(SECCOMP_RET_TRAP)],
            SYS_madvise => {
                vec![load(third), unless(MADV_POPULATE_READ as u32, 1), give(SECCOMP_RET_TRAP), give(SECCOMP_RET_ALLOW)]
            }
            _ => vec![give(SECCOMP_RET_TRAP)],
        };
        program.push(unless(*call as u32, caught.len() as u8));
        program.extend(caught);
    }
    program.push(give(SECCOMP_RET_ALLOW));
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives the call, which copies it.
    unsafe {
        assert_eq!(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), 0, "the kernel takes no filter");
    }
}

type Routine = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Routine, *mut c_void) -> c_int;

/// What a new thread does, and whose trap it is in.
struct Begin(Routine, *mut c_void, *const Trap);

extern "C" fn begin(given: *mut c_void) -> *mut c_void {
    // SAFETY: what `pthread_create` below has boxed for this thread.
    let Begin(routine, argument, trap) = *unsafe { Box::from_raw(given.cast::<Begin>()) };
    TRAP.set(trap);
    routine(argument)
}

/// Takes the place of the library's.
///
/// # Safety
/// As the library's.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    static GENUINE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    // SAFETY: null, or a trap, which is never freed.
    let trap = unsafe { TRAP.get().as_ref() }.filter(|trap| trap.armed.load(SeqCst));
    if let Some(errno) = trap.and_then(|trap| trap.fault(THREAD, START)) {
        return if errno == EIO { EAGAIN } else { errno };
    }
    if GENUINE.load(SeqCst).is_null() {
        // SAFETY: the name ends in a zero.
        GENUINE.store(unsafe { dlsym(RTLD_NEXT, c"pthread_create".as_ptr()) }, SeqCst);
    }
    // SAFETY: that is the library's function, which has this form.
    let genuine: Create = unsafe { std::mem::transmute(GENUINE.load(SeqCst)) };
    let given = Box::into_raw(Box::new(Begin(routine, argument, TRAP.get())));
    // SAFETY: as asked of the caller; `begin` takes what is given here.
    let answer = unsafe { genuine(thread, attributes, begin, given.cast()) };
    if answer != 0 {
        // SAFETY: no thread has taken it.
        drop(unsafe { Box::from_raw(given) });
    }
    answer
}
