//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a draw is a pure function
//! of key and counter, so the same element gets the same draw under any sharding, thread count or resume.

/// A stream of draws, one per element index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    /// Upper half of the counter: separates uses of one key.
    domain: [u32; 2],
}

const MULTIPLIER: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of four draws.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let first = MULTIPLIER[0] * u64::from(c[0]);
        let second = MULTIPLIER[1] * u64::from(c[2]);
        c = [(second >> 32) as u32 ^ c[1] ^ k[0], second as u32, (first >> 32) as u32 ^ c[3] ^ k[1], first as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

impl Stream {
    /// The stream of `purpose` (what is drawn, for which input) in `tensor` under `seed`.
    pub fn new(seed: u64, purpose: &str, tensor: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"taskvec random stream 1\0");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(purpose.len() as u64).to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(tensor.as_bytes());
        let digest = hasher.finalize();
        let word = |i: usize| {
            let b = &digest.as_bytes()[4 * i..4 * i + 4];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        Stream { key: [word(0), word(1)], domain: [word(2), word(3)] }
    }
}

/// Blocks that are drawn side by side, in the lanes of vectors.
const SIDE: usize = 16;
/// Elements that they serve. Element e takes word e / 16 % 4 of block e / 64 · 16 + e % 16: neighbours in a vector
/// are neighbours in memory, where words in block order would have to be transposed, at twice the cost of drawing.
const GROUP: usize = 4 * SIDE;

/// Counters of the blocks, word by word.
type Lanes = [[u64; SIDE]; 4];

/// Turns counters into draws. Only the lower half of every lane counts.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all four arrays: what makes vectors of it
fn rounds(c: &mut Lanes, key: [u32; 2]) {
    // Cutting the upper half off where it is multiplied, and there alone, costs nothing: that is what the instruction
    // does.
    const LOW: u64 = 0xFFFF_FFFF;
    let mut k = key;
    for _ in 0..10 {
        for lane in 0..SIDE {
            let product0 = MULTIPLIER[0] * (c[0][lane] & LOW);
            let product1 = MULTIPLIER[1] * (c[2][lane] & LOW);
            c[0][lane] = (product1 >> 32) ^ c[1][lane] ^ u64::from(k[0]);
            c[2][lane] = (product0 >> 32) ^ c[3][lane] ^ u64::from(k[1]);
            c[1][lane] = product1;
            c[3][lane] = product0;
        }
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
}

/// Draws of the elements of one group.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // lanes side by side in all four arrays: what makes vectors of it
fn group(stream: &Stream, index: u64, out: &mut [u32; GROUP]) {
    let mut c = [[0u64; SIDE]; 4];
    for lane in 0..SIDE {
        let block = index * SIDE as u64 + lane as u64;
        c[0][lane] = block;
        c[1][lane] = block >> 32;
        c[2][lane] = u64::from(stream.domain[0]);
        c[3][lane] = u64::from(stream.domain[1]);
    }
    rounds(&mut c, stream.key);
    for word in 0..4 {
        for lane in 0..SIDE {
            out[word * SIDE + lane] = c[word][lane] as u32;
        }
    }
}

kernel! {
    /// 32 bits more for each of `elements`: draws of counters that no other draw has.
    pub(crate) fn further(stream: &Stream, elements: &[u64], out: &mut [u32]) {
        for (elements, out) in elements.chunks(SIDE).zip(out.chunks_mut(SIDE)) {
            let mut c = [[0u64; SIDE]; 4];
            for (lane, element) in elements.iter().enumerate() {
                c[0][lane] = *element;
                c[1][lane] = *element >> 32;
            }
            c[2].fill(u64::from(stream.domain[0]));
            c[3].fill(u64::from(!stream.domain[1]));
            rounds(&mut c, stream.key);
            for (out, draw) in out.iter_mut().zip(c[0]) {
                *out = draw as u32;
            }
        }
    }
}

kernel! {
    /// Draws of the elements `first .. first + out.len()`, uniform over all 32-bit values.
    pub fn fill(stream: &Stream, first: u64, out: &mut [u32]) {
        let (mut index, begun) = (first / GROUP as u64, (first % GROUP as u64) as usize);
        let mut rest = out;
        let mut whole = [0; GROUP];
        if begun > 0 {
            let (head, tail) = rest.split_at_mut((GROUP - begun).min(rest.len()));
            group(stream, index, &mut whole);
            head.copy_from_slice(&whole[begun..begun + head.len()]);
            index += 1;
            rest = tail;
        }
        let (groups, tail) = rest.as_chunks_mut::<GROUP>();
        for out in groups {
            group(stream, index, out);
            index += 1;
        }
        if !tail.is_empty() {
            group(stream, index, &mut whole);
            tail.copy_from_slice(&whole[..tail.len()]);
        }
    }
}

/// Elements that the bytes of a group's draws serve.
const BYTES: usize = 4 * GROUP;

kernel! {
    /// Draws of 8 bits of the elements `first .. first + out.len()`: element e takes byte e % 4, the lowest first, of
    /// the draw of element e / 4.
    pub(crate) fn fill_bytes(stream: &Stream, first: u64, out: &mut [u8]) {
        let (mut index, begun) = (first / BYTES as u64, (first % BYTES as u64) as usize);
        let mut rest = out;
        let mut whole = [0; BYTES];
        if begun > 0 {
            let (head, tail) = rest.split_at_mut((BYTES - begun).min(rest.len()));
            bytes(stream, index, &mut whole);
            head.copy_from_slice(&whole[begun..begun + head.len()]);
            index += 1;
            rest = tail;
        }
        let (groups, tail) = rest.as_chunks_mut::<BYTES>();
        for out in groups {
            bytes(stream, index, out);
            index += 1;
        }
        if !tail.is_empty() {
            bytes(stream, index, &mut whole);
            tail.copy_from_slice(&whole[..tail.len()]);
        }
    }
}

#[inline(always)]
fn bytes(stream: &Stream, index: u64, out: &mut [u8; BYTES]) {
    let mut words = [0; GROUP];
    group(stream, index, &mut words);
    out.as_chunks_mut::<4>().0.iter_mut().zip(&words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;

    /// Known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
        let pi = philox([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0]);
        assert_eq!(pi, [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]);
    }

    #[test]
    fn draws_do_not_depend_on_where_the_range_starts_nor_on_the_level() {
        let stream = Stream::new(7, "round", "model.norm.weight");
        let mut whole = vec![0; 1000];
        fill(Level::SCALAR, &stream, 0, &mut whole);
        for level in Level::available() {
            for first in [0usize, 1, 2, 3, 4, 63, 64, 65, 130, 999] {
                let mut part = vec![0; (1000 - first).min(517)];
                fill(level, &stream, first as u64, &mut part);
                assert_eq!(part, whole[first..first + part.len()], "{} from {first}", level.name());
            }
        }
        for (e, draw) in whole.iter().enumerate() {
            let block = (e / 64 * 16 + e % 16) as u32;
            assert_eq!(*draw, philox([block, 0, stream.domain[0], stream.domain[1]], stream.key)[e / 16 % 4]);
        }
    }

    #[test]
    fn bytes_are_those_of_the_draws() {
        let stream = Stream::new(7, "drop 0", "model.norm.weight");
        let mut whole = vec![0; 320];
        fill(Level::SCALAR, &stream, 0, &mut whole);
        for level in Level::available() {
            for first in [0usize, 1, 63, 64, 255, 256, 300] {
                let mut bytes = vec![0; 1000 - first];
                fill_bytes(level, &stream, first as u64, &mut bytes);
                for (byte, e) in bytes.iter().zip(first..) {
                    assert_eq!(*byte, whole[e / 4].to_le_bytes()[e % 4]);
                }
            }
        }
    }

    #[test]
    fn further_draws_are_of_other_counters() {
        let stream = Stream::new(7, "drop 0", "model.norm.weight");
        let elements: Vec<u64> = (0..37).map(|i| i * i * 0x1_0000_0007).collect();
        for level in Level::available() {
            let mut out = vec![0; elements.len()];
            further(level, &stream, &elements, &mut out);
            for (draw, e) in out.iter().zip(&elements) {
                let counter = [*e as u32, (*e >> 32) as u32, stream.domain[0], !stream.domain[1]];
                assert_eq!(*draw, philox(counter, stream.key)[0]);
            }
        }
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_tensor() {
        let base = Stream::new(0, "a", "t");
        assert_ne!(base, Stream::new(1, "a", "t"));
        assert_ne!(base, Stream::new(0, "b", "t"));
        assert_ne!(base, Stream::new(0, "a", "u"));
        assert_ne!(Stream::new(0, "ab", "c"), Stream::new(0, "a", "bc"));
    }
}
