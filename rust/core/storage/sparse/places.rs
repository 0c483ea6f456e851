//! Where the values of a sparse tensor go: bits counted, indices read and searched.

/// How the places of the values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// One bit per element, the lowest bit of a byte first.
    Mask,
    /// Flat indices, sorted, I32 or I64.
    Index,
}

/// How many of `0..count` come before the first that is not `before`.
pub(super) fn partition(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

pub(super) fn ones(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let whole: u64 = words.iter().map(|word| u64::from(u64::from_le_bytes(*word).count_ones())).sum();
    whole + rest.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
}

/// Bits set among the first `bits`.
pub(super) fn ones_before(bytes: &[u8], bits: usize) -> u64 {
    let whole = ones(&bytes[..bits / 8]);
    let rest = match bits % 8 {
        0 => 0,
        used => (bytes[bits / 8] & ((1 << used) - 1)).count_ones(),
    };
    whole + u64::from(rest)
}

/// A little-endian I32 or I64.
pub(super) fn integer(raw: &[u8]) -> i64 {
    match *raw {
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => -1,
    }
}
