//! CPU levels: detected or forced, and the macro that compiles one body once per level.
//!
//! The second room where `unsafe` lives. A function compiled for a CPU feature may only be called where the CPU
//! has it; [`Level`] values above `Scalar` are made in this file alone, after asking the CPU.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use crate::error::{shown, Error, Kind, Result};

/// Which instructions the kernels may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub(crate) Inner);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inner {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

const NAMES: [&str; 4] = ["scalar", "avx2", "avx512", "neon"];

impl Level {
    /// The baseline of the target architecture; always there.
    pub const SCALAR: Level = Level(Inner::Scalar);

    /// Every level that this machine can run, lowest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            // What `kernel!` compiles for, feature by feature: a virtual machine may have any of them without the others.
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2");
            if avx2 {
                levels.push(Level(Inner::Avx2));
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt")
            {
                levels.push(Level(Inner::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level(Inner::Neon));
        levels
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Inner::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Inner::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Inner::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Inner::Neon => "neon",
        }
    }

    /// The level called `name`; an error where it is unknown or this machine lacks it.
    pub fn named(name: &str) -> Result<Level> {
        let available = Level::available();
        if let Some(level) = available.iter().find(|level| level.name() == name) {
            return Ok(*level);
        }
        let list = available.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
        let message = if NAMES.contains(&name) {
            format!("this machine lacks the CPU level `{name}`")
        } else {
            format!("unknown CPU level `{}`", shown(name))
        };
        Err(Error::new(Kind::Plan, message).hint(format!("set TASKVEC_CPU to one of {list}, or unset it")))
    }

    /// The level named by `TASKVEC_CPU`, or else the highest that this machine has.
    pub fn chosen() -> Result<Level> {
        static CHOSEN: OnceLock<Result<Level>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var("TASKVEC_CPU") {
                Ok(name) if !name.is_empty() => Level::named(&name),
                _ => Ok(*Level::available().last().unwrap_or(&Level::SCALAR)),
            })
            .clone()
    }
}

/// Compiles a body for every CPU level and calls the instance that `level` names.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$R:ident>)? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name $(<$R: $crate::kernels::real::Real>)? (level: $crate::kernels::dispatch::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$R: $crate::kernels::real::Real>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,bmi1,bmi2")]
            fn avx2 $(<$R: $crate::kernels::real::Real>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
            fn avx512 $(<$R: $crate::kernels::real::Real>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match level.0 {
                // SAFETY: such a level is only made after the CPU was asked for exactly these features.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::dispatch::Inner::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::dispatch::Inner::Avx2 => unsafe { avx2($($arg),*) },
                // NEON is part of the aarch64 baseline: the plain body already uses it.
                _ => body($($arg),*),
            }
        }
    };
}

/// Asks for `bytes` to be brought into the second-level cache. Tiles of several inputs are read in turn, page by page,
/// which hides their order from the CPU's own prefetcher.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a hint that reads nothing; and the address lies within `bytes`.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Restores the floating-point control register when dropped. The interpreter Miri has none.
pub(crate) struct ControlRegister {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    saved: u32,
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    saved: u64,
}

impl ControlRegister {
    /// Sets the IEEE defaults (round to nearest, subnormals kept, exceptions masked) for this thread: the embedding
    /// process may have switched on flush-to-zero, which new threads inherit.
    pub(crate) fn ieee() -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let mut saved: u32 = 0;
            let default: u32 = 0x1F80;
            // SAFETY: both instructions touch MXCSR and the named four bytes only; Drop puts the old value back.
            unsafe {
                std::arch::asm!("stmxcsr [{}]", in(reg) &mut saved, options(nostack));
                std::arch::asm!("ldmxcsr [{}]", in(reg) &default, options(nostack, readonly));
            }
            ControlRegister { saved }
        }
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        {
            let saved: u64;
            // SAFETY: FPCR is readable and writable from user space; zero is the IEEE default.
            unsafe {
                std::arch::asm!("mrs {}, fpcr", out(reg) saved, options(nomem, nostack));
                std::arch::asm!("msr fpcr, {}", in(reg) 0u64, options(nomem, nostack));
            }
            ControlRegister { saved }
        }
        #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
        ControlRegister {}
    }
}

impl Drop for ControlRegister {
    fn drop(&mut self) {
        // SAFETY: puts back the value that was read from this thread's own register.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &self.saved, options(nostack, readonly));
        }
        // SAFETY: as above.
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        unsafe {
            std::arch::asm!("msr fpcr, {}", in(reg) self.saved, options(nomem, nostack));
        }
    }
}
