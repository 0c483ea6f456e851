//! The two compute types, and the sizes that every kernel is written for.

use std::cell::RefCell;

/// Elements of one compute tile: a dozen buffers of this length fit the first-level cache. Measured with AVX-512 and
/// 48 KiB of it, CPU time of a transfer: 1024 takes a twentieth more, 2048 a tenth, 4096 a quarter.
pub const TILE: usize = 512;

/// Lanes of every floating-point sum; element `i` of a tile goes to lane `i % LANES`.
pub(crate) const LANES: usize = 16;

/// The two compute types.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Whether this is the narrow compute type, whose rare inexact steps are repeated in f64.
    const IS_F32: bool;
    /// From f32, exact.
    fn from_f32(x: f32) -> Self;
    /// From f64, rounded to nearest.
    fn from_f64(x: f64) -> Self;
    /// To f64, exact.
    fn to_f64(self) -> f64;
    /// To f32, rounded to nearest.
    fn to_f32(self) -> f32;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The next number below.
    fn next_down(self) -> Self;
    /// The same number, and of zeros the same sign; NaN is the same as nothing.
    fn is_same(self, other: Self) -> bool;
    /// The bit pattern without the sign: in the order of the magnitudes.
    fn magnitude_bits(self) -> u64;
    /// The same slice, its compute type named: for what is called through a table.
    fn floats(slice: &mut [Self]) -> Floats<'_>;
    /// This thread's buffers that nothing uses: allocating and zeroing them for every tile would cost as much as the
    /// arithmetic.
    fn spare<T>(then: impl FnOnce(&mut Vec<Vec<Self>>) -> T) -> T;
}

/// A slice of either compute type.
pub enum Floats<'a> {
    /// Narrow.
    F32(&'a mut [f32]),
    /// Wide.
    F64(&'a mut [f64]),
}

macro_rules! real {
    ($t:ty, $floats:path, $narrow:expr, $mask:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const IS_F32: bool = $narrow;
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $t
            }
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn next_down(self) -> Self {
                <$t>::next_down(self)
            }
            #[inline(always)]
            fn is_same(self, other: Self) -> bool {
                // both, always: a branch would keep the loops around it from becoming vectors
                (self == other) & (self.to_bits() == other.to_bits())
            }
            #[inline(always)]
            fn magnitude_bits(self) -> u64 {
                u64::from(self.to_bits() & $mask)
            }
            #[inline(always)]
            fn floats(slice: &mut [Self]) -> Floats<'_> {
                $floats(slice)
            }
            fn spare<T>(then: impl FnOnce(&mut Vec<Vec<Self>>) -> T) -> T {
                thread_local! {
                    static SPARE: RefCell<Vec<Vec<$t>>> = const { RefCell::new(Vec::new()) };
                }
                SPARE.with(|spare| then(&mut spare.borrow_mut()))
            }
        }
    };
}
real!(f32, Floats::F32, true, 0x7FFF_FFFF);
real!(f64, Floats::F64, false, 0x7FFF_FFFF_FFFF_FFFF);
