//! Codes of a few bits in bytes: fields one behind the other, the lowest bits first, over the borders of bytes.

/// Bytes that `count` fields of `bits` take.
pub(crate) fn bytes(bits: u32, count: usize) -> usize {
    (count * bits as usize).div_ceil(8)
}

kernel! {
    /// Packs codes, a byte for each, into fields; what is left of the last byte is zero.
    pub(crate) fn pack(bits: u32, codes: &[u8], out: &mut [u8]) {
        match bits {
            8 => out.copy_from_slice(codes),
            4 => {
                let (pairs, rest) = codes.as_chunks::<2>();
                let (whole, last) = out.split_at_mut(pairs.len());
                for (byte, pair) in whole.iter_mut().zip(pairs) {
                    *byte = (pair[0] & 15) | (pair[1] << 4);
                }
                last.iter_mut().zip(rest).for_each(|(byte, code)| *byte = code & 15);
            }
            _ => fields(bits, codes, out),
        }
    }
}

#[inline(always)]
fn fields(bits: u32, codes: &[u8], out: &mut [u8]) {
    // Eight fields fill whole bytes.
    let (eights, rest) = codes.as_chunks::<8>();
    let size = bits as usize;
    let (whole, last) = out.split_at_mut(eights.len() * size);
    let joined = |codes: &[u8]| {
        codes
            .iter()
            .enumerate()
            .fold(0u64, |word, (i, code)| word | (u64::from(*code) & ((1 << bits) - 1)) << (i as u32 * bits))
    };
    for (out, codes) in whole.chunks_exact_mut(size).zip(eights) {
        out.copy_from_slice(&joined(codes).to_le_bytes()[..size]);
    }
    if !rest.is_empty() {
        let n = last.len();
        last.copy_from_slice(&joined(rest).to_le_bytes()[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    #[test]
    fn fields_are_dense_from_the_lowest_bit_on() {
        for level in Level::available() {
            for bits in 2..=8 {
                for n in [0, 1, 7, 8, 9, 33, 64] {
                    let codes: Vec<u8> = (0..n).map(|i| (i * 37 % (1 << bits)) as u8).collect();
                    let mut out = vec![0xFF; bytes(bits, n)];
                    pack(level, bits, &codes, &mut out);
                    for (i, code) in codes.iter().enumerate() {
                        let bit = |at: usize| out[at / 8] >> (at % 8) & 1;
                        let found = (0..bits as usize).fold(0, |sum, b| sum | bit(i * bits as usize + b) << b);
                        assert_eq!(found, *code);
                    }
                    let spare = out.len() * 8 - n * bits as usize;
                    assert!(spare == 0 || out[out.len() - 1] >> (8 - spare) == 0);
                }
            }
        }
    }
}
