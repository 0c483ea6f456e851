//! The order in which blocks are written, and which tensors they are of.

use super::block::Block;
use super::encode::tensors::Encodings;
use crate::plan::layout::Layout;

/// Blocks in file order, but what holds scales of packed tensors behind the codes of those: the scales are found with
/// the codes, and would be computed twice otherwise.
pub(super) fn in_order(blocks: Vec<Block>, layout: &Layout, encodings: &Encodings) -> Vec<Block> {
    // The last block that holds a part of each job.
    let mut last = vec![None; layout.offsets.len()];
    for (position, block) in blocks.iter().enumerate() {
        block.jobs.clone().for_each(|job| last[job] = Some(position));
    }
    let behind = |(position, block): (usize, &Block)| {
        let codes = block.jobs.clone().filter_map(|job| encodings.after(job)).filter_map(|job| last[job]);
        let codes = codes.max().unwrap_or(position);
        (codes.max(position), codes > position, position)
    };
    let mut order: Vec<((usize, bool, usize), usize)> =
        blocks.iter().enumerate().map(|(position, block)| (behind((position, block)), position)).collect();
    order.sort_unstable();
    let mut blocks: Vec<Option<Block>> = blocks.into_iter().map(Some).collect();
    order.into_iter().filter_map(|(_, position)| blocks[position].take()).collect()
}

/// The jobs of some blocks, in order.
pub(super) fn jobs(blocks: &[Block]) -> Vec<usize> {
    let mut jobs: Vec<usize> = Vec::new();
    for block in blocks {
        for job in block.jobs.clone() {
            if jobs.last() != Some(&job) {
                jobs.push(job);
            }
        }
    }
    jobs.sort_unstable();
    jobs.dedup();
    jobs
}

/// Which jobs come in no group of blocks after each.
pub(super) struct Last(Vec<Vec<usize>>);

impl Last {
    pub(super) fn of(groups: &[&[Block]]) -> Self {
        let mut last = std::collections::HashMap::new();
        for (index, group) in groups.iter().enumerate() {
            last.extend(jobs(group).into_iter().map(|job| (job, index)));
        }
        let mut of = vec![Vec::new(); groups.len()];
        last.into_iter().for_each(|(job, index)| of[index].push(job));
        Last(of)
    }

    /// Those of a group.
    pub(super) fn of_group(&self, index: usize) -> &[usize] {
        &self.0[index]
    }
}
