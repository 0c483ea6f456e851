//! What the tests of codes are tried on.

use super::code::Code;

/// Codes of every kind.
pub(super) const CODES: [Code; 7] =
    [Code::E4M3, Code::E5M2, Code::E2M1, Code::Signed(8), Code::Offset(3), Code::Offset(4), Code::Offset(8)];

/// All bf16 numbers, and what lies between them; under Miri, which takes hours for all, some of every second exponent.
pub(super) fn numbers() -> Vec<f32> {
    (0..=u16::MAX)
        .step_by(if cfg!(miri) { 251 } else { 1 })
        .flat_map(|bits| [0, 0x7FFF, 0x8000, 0x8001].map(|low| f32::from_bits(u32::from(bits) << 16 | low)))
        .collect()
}
