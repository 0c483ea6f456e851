//! What happens when a mapped page is gone: zeros in its place and a note, instead of the end of the process.
//!
//! A handler for SIGBUS is process-wide, and this one lives in other people's Python. Its manners:
//! - It acts only on a fault inside a mapping that is watched here. For every other one it calls the handler that was
//!   there before, or restores the default and lets the fault happen again.
//! - It is installed when the first file is mapped, and again when it finds itself replaced (Python's faulthandler does
//!   that) before the next read.
//! - It does nothing but read atomics and call mmap; it neither allocates nor locks, and it runs on the thread's
//!   alternate stack where there is one.
//!
//! The same is done by libwayland for the shared buffers of its clients and by systemd's journal for its files. Dropped:
//! pread into a buffer for everything, which needs no handler and costs a tenth of the time of a whole merge.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::Mutex;

use memmap2::Mmap;
use rustix::mm::{MapFlags, ProtFlags};

use crate::file::platform::{Here, Platform};

/// The watch over one mapping, for as long as it lives. It must not outlive the mapping: drop it first.
#[derive(Debug)]
pub(super) struct Watch(&'static Slot);

/// A watched range of addresses. Slots form a list that only grows, so the handler can walk it at any moment; a slot
/// that is let go is used again.
#[derive(Debug)]
struct Slot {
    /// `FREE` or the first address.
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
    next: *const Slot,
}

// SAFETY: `next` is written before the slot is shared and never after; it points to a slot that is never freed.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

const FREE: usize = usize::MAX;

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// The signal that is being given to the previous handler, and how deep in the stack, to notice when that one gives it
/// back: the same signal then comes from further down. A handler that never returns, but jumps to where its library
/// goes on, leaves these as they are; the next signal there does not come from further down.
static PASSING_ON: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// Guards changes of the list and of the handler, and holds the slots that were let go; never taken by the handler.
static CHANGES: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());

impl Watch {
    /// None where the handler cannot be installed.
    pub(super) fn new(map: &Mmap) -> Option<Watch> {
        let mut free = CHANGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        install()?;
        let start = map.as_ptr() as usize;
        let end = start + map.len().next_multiple_of(rustix::param::page_size());
        let slot = match free.pop() {
            Some(slot) => slot,
            None => {
                let slot = Box::leak(Box::new(Slot {
                    start: AtomicUsize::new(FREE),
                    end: AtomicUsize::new(0),
                    lost: AtomicBool::new(false),
                    next: SLOTS.load(Ordering::Acquire),
                }));
                SLOTS.store(slot, Ordering::Release);
                slot
            }
        };
        slot.lost.store(false, Ordering::SeqCst);
        slot.end.store(end, Ordering::SeqCst);
        slot.start.store(start, Ordering::SeqCst);
        Some(Watch(slot))
    }

    /// Takes the handler back where somebody has replaced it since. Asking is one short system call.
    pub(super) fn renew(&self) {
        if !current().is_some_and(|action| is_ours(&action)) {
            let _changing = CHANGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            install();
        }
    }

    /// Whether a page was gone when it was touched.
    pub(super) fn lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = CHANGES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.0.start.store(FREE, Ordering::SeqCst);
        self.0.end.store(0, Ordering::SeqCst);
        free.push(self.0);
    }
}

impl Slot {
    /// Whether `address` lies in the range. The two ends are read apart; a change in between shows in the start, since
    /// a slot becomes free before it is used again.
    fn holds(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::SeqCst);
        let end = self.end.load(Ordering::SeqCst);
        start <= address && address < end && self.start.load(Ordering::SeqCst) == start
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    let mut at: *const Slot = SLOTS.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null, or a slot that was leaked: valid for ever and shared only through atomics.
        let slot = unsafe { at.as_ref() }?;
        at = slot.next;
        Some(slot)
    })
}

/// Makes `on_bus_error` the handler if it is not.
fn install() -> Option<()> {
    let current = current()?;
    if is_ours(&current) {
        return Some(());
    }
    // Leaked, for a handler may be reading the one before; replacement is rare.
    PREVIOUS.store(Box::leak(Box::new(current)), Ordering::SeqCst);
    // SAFETY: a sigaction of zeros is a valid one: default action, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = HANDLER as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_NODEFER;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls only what a handler may.
    (unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } == 0).then_some(())
}

const HANDLER: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;

/// What is done on SIGBUS now.
fn current() -> Option<libc::sigaction> {
    let mut current = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks for the present action only, into space for one.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), current.as_mut_ptr()) };
    // SAFETY: where the call succeeded it has filled it.
    (asked == 0).then(|| unsafe { current.assume_init() })
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == HANDLER as usize
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; for a fault (code above 0) it has an address.
    let (fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    if let (true, Some(slot)) = (fault, slots().find(|slot| slot.holds(address))) {
        slot.lost.store(true, Ordering::SeqCst);
        let page = rustix::param::page_size();
        let target = (address / page * page) as *mut c_void;
        // SAFETY: the page lies within a mapping that is watched, so it is ours to replace, and the thread that faulted
        // is reading from it, so it is not being unmapped. A read-only page of zeros may be read as bytes like the
        // file's. rustix makes the system call itself and leaves the thread's errno alone.
        let placed =
            unsafe { rustix::mm::mmap_anonymous(target, page, ProtFlags::READ, MapFlags::PRIVATE | MapFlags::FIXED) };
        if placed.is_ok() {
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Gives the signal to whoever had it before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let here = 0u8;
    let passing = [Here::thread(), info as usize, std::hint::black_box(&raw const here) as usize];
    // SAFETY: null, or a box that was leaked.
    let previous = unsafe { PREVIOUS.load(Ordering::SeqCst).as_ref() };
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    // SAFETY: as in `on_bus_error`.
    if handler == libc::SIG_IGN && unsafe { (*info).si_code } <= 0 {
        return;
    }
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN || is_given_back(passing) {
        // Nobody, or somebody who has given it back. With the default restored the signal ends the process, as it
        // would have without this module.
        // SAFETY: a sigaction of zeros is the default action; both calls may be made in a handler.
        unsafe {
            let action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &action, ptr::null_mut());
            libc::raise(signal);
        }
        return;
    }
    note(passing);
    if previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: it was installed as a handler of this form.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: it was installed as a handler of this form.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
    note([0; 3]);
}

/// Thread, signal and depth of what is passed on now.
fn note(passing: [usize; 3]) {
    PASSING_ON.iter().zip(passing).for_each(|(noted, now)| noted.store(now, Ordering::SeqCst));
}

/// Whether the previous handler has called this one for the signal that it was given.
fn is_given_back([thread, signal, depth]: [usize; 3]) -> bool {
    let [noted_thread, noted_signal, noted_depth] = PASSING_ON.each_ref().map(|noted| noted.load(Ordering::SeqCst));
    (thread, signal) == (noted_thread, noted_signal) && depth < noted_depth
}
