//! Digests assembled from blocks equal the digest of the whole.

use std::fs;

use proptest::prelude::*;
use taskvec_core::error::Kind;
use taskvec_core::output::digest::{digest_file, BlockHasher, FileDigest, BLOCK};

use crate::support::{bytes, place};

fn whole(data: &[u8]) -> String {
    blake3::hash(data).to_hex().to_string()
}

fn block(data: &[u8], index: u64) -> &[u8] {
    &data[(index * BLOCK) as usize..data.len().min(((index + 1) * BLOCK) as usize)]
}

#[test]
fn at_every_boundary() {
    let data = bytes(9 * BLOCK + 2000, 1);
    let mut lengths = vec![0, 1, 1023, 1024, 1025, 2048, 4097];
    lengths.extend((1..=9).flat_map(|n| [n * BLOCK - 1, n * BLOCK, n * BLOCK + 1, n * BLOCK + 1025]));
    for length in lengths {
        let data = &data[..length as usize];
        let digest = FileDigest::new(length);
        assert_eq!(digest.blocks(), length.div_ceil(BLOCK));
        (0..digest.blocks()).rev().for_each(|index| digest.leaf(index, block(data, index)));
        assert_eq!(digest.finish().unwrap(), whole(data), "{length} bytes");
    }
}

#[test]
fn missing_and_repeated_blocks_are_defects() {
    let data = bytes(2 * BLOCK, 2);
    let digest = FileDigest::new(2 * BLOCK);
    digest.leaf(1, block(&data, 1));
    assert_eq!(digest.finish().unwrap_err().kind, Kind::Engine);
    digest.leaf(0, block(&data, 0));
    assert_eq!(digest.finish().unwrap(), whole(&data));
    digest.leaf(0, block(&data, 0));
    assert_eq!(digest.finish().unwrap_err().kind, Kind::Engine);
}

#[test]
#[should_panic(expected = "block 1 of a file of")]
fn a_block_of_the_wrong_length_is_a_defect() {
    FileDigest::new(BLOCK + 2).leaf(1, b"a");
}

#[test]
fn a_file_is_digested_by_any_number_of_threads() {
    let (place, _) = place();
    for length in [0, 17, BLOCK, 5 * BLOCK + 3] {
        let path = place.path().join("file");
        let data = bytes(length, length);
        fs::write(&path, &data).unwrap();
        for threads in [0, 1, 2, 7] {
            assert_eq!(digest_file(&path, threads, &|| false).unwrap(), (length, whole(&data)));
        }
    }
    let path = place.path().join("file");
    assert_eq!(digest_file(&path, 2, &|| true).unwrap_err().kind, Kind::Interrupted);
    assert_eq!(digest_file(&place.path().join("none"), 2, &|| false).unwrap_err().kind, Kind::NotFound);
    assert_eq!(digest_file(place.path(), 2, &|| false).unwrap_err().kind, Kind::Format);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn out_of_order_by_threads_and_piece_by_piece(
        length in 0..6 * BLOCK,
        pieces in prop::collection::vec(1usize..70_000, 1..8),
        order in any::<u64>(),
        threads in 1usize..4,
    ) {
        let data = bytes(length, order);
        let digest = FileDigest::new(length);
        let mut indices: Vec<u64> = (0..digest.blocks()).collect();
        indices.sort_by_key(|index| blake3::hash(&(index ^ order).to_le_bytes()).as_bytes()[0]);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (digest, data, indices, pieces) = (&digest, &data, &indices, &pieces);
                scope.spawn(move || {
                    let mut hasher = BlockHasher::new(0);
                    for index in indices.iter().skip(thread).step_by(threads) {
                        hasher.reset(*index);
                        let mut rest = block(data, *index);
                        for piece in pieces.iter().cycle() {
                            if rest.is_empty() {
                                break;
                            }
                            let (now, later) = rest.split_at(rest.len().min(*piece));
                            hasher.update(now);
                            rest = later;
                        }
                        digest.block(&hasher);
                    }
                });
            }
        });
        prop_assert_eq!(digest.finish().unwrap(), whole(&data));
    }
}
