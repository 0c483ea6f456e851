//! Element types as safetensors names them.

use std::fmt;

/// The type of one element of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    C64,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F4,
}

/// With the bytes of what is counted; see [`Dtype::units`].
const NAMES: [(Dtype, &str, usize); 20] = [
    (Dtype::Bool, "BOOL", 1),
    (Dtype::U8, "U8", 1),
    (Dtype::I8, "I8", 1),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::U16, "U16", 2),
    (Dtype::I16, "I16", 2),
    (Dtype::F16, "F16", 2),
    (Dtype::BF16, "BF16", 2),
    (Dtype::U32, "U32", 4),
    (Dtype::I32, "I32", 4),
    (Dtype::F32, "F32", 4),
    (Dtype::U64, "U64", 8),
    (Dtype::I64, "I64", 8),
    (Dtype::F64, "F64", 8),
    (Dtype::C64, "C64", 8),
    (Dtype::F8E8M0, "F8_E8M0", 1),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 1),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 1),
    (Dtype::F4, "F4", 1),
];

/// Types that safetensors knows and that put elements across byte borders. Everything here counts in whole bytes, so a
/// file that holds one is refused by name instead of being read wrongly.
const PACKED: [&str; 2] = ["F6_E2M3", "F6_E3M2"];

impl Dtype {
    /// The type that a safetensors header calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n, _)| *n == name).map(|(d, _, _)| *d)
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// Whether `name` is a type of safetensors whose elements are smaller than a byte, which is not read here.
    pub(crate) fn is_packed(name: &str) -> bool {
        PACKED.contains(&name)
    }

    /// Bytes of a tensor of this type and `shape`, unless the count overflows.
    pub fn bytes(self, shape: &[u64]) -> Option<u64> {
        self.units(shape)?.checked_mul(self.size() as u64)
    }

    /// What is counted of a tensor of this type and `shape`: its elements; of F4 pairs of them, which share a byte. None
    /// where there is half a pair, or the count overflows.
    pub fn units(self, shape: &[u64]) -> Option<u64> {
        let count = elements(shape)?;
        match self {
            Dtype::F4 => count.is_multiple_of(2).then_some(count / 2),
            _ => Some(count),
        }
    }

    /// Bytes of one element; of F4, of two.
    pub fn size(self) -> usize {
        NAMES[self as usize].2
    }

    /// Whether arithmetic is defined on it here; other types are copied.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Whether every value fits the eight significand bits for which f32 arithmetic rounds once at the end.
    pub(crate) fn is_narrow(self) -> bool {
        matches!(self, Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::BF16)
    }
}

/// Elements of a tensor of this shape, unless the count overflows.
pub fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, side| product.checked_mul(*side))
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
