//! What is left of a difference of which elements are dropped: found out for the whole tensor, applied tile by tile.

use super::by_rank;
use super::coin::{chance, Coin};
use super::mask::Mask;
use super::parameters::{Drop, Rescale, TrimMethod, TrimTerm};
use super::ranks::ranks;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::l1_norms::{add_norms, add_stored_norms, Norms};
use crate::kernels::masked::Masked;
use crate::kernels::philox::{fill, Stream};
use crate::kernels::{Real, TILE};
use crate::methods::difference::{cached, deltas, read_deltas, rows, Loan};
use crate::methods::quantile::cut::{magnitudes, Cut};
use crate::tensor::Tile;
use crate::tensor::{Tensor, CHUNK};
use crate::threads::{lock, Threads};

/// Most bytes of masks of one tensor; a larger one's draws are drawn again instead.
const MASKS: u64 = 64 << 20;

/// Words of one tile's bits.
pub(super) const WORDS: usize = TILE / 64;

/// A bit for every element of a tile.
pub(super) type Words = [u64; WORDS];

/// What the look at the whole tensor found out about one term.
pub(super) struct Found {
    /// Of the elements kept by `keep`, those kept by `except` are dropped again.
    keep: Cut,
    except: Cut,
    /// What is left is multiplied by this.
    pub scale: f64,
    /// What a random drop keeps, if that is known already.
    mask: Option<Mask>,
    /// What a random drop flips.
    coin: Coin,
}

impl Found {
    /// Where there was nothing to find out.
    pub(super) fn nothing(tensor: &Tensor<'_>, term: &TrimTerm) -> Self {
        let stream = Stream::new(tensor.seed, &format!("drop {}", term.stream), tensor.name);
        Found { keep: Cut::ALL, except: Cut::NONE, scale: 1.0, mask: None, coin: Coin::new(stream, term.density) }
    }

    /// Takes the cuts of a drop by magnitude.
    pub(super) fn cut(&mut self, cuts: &[Cut]) {
        self.keep = cuts[0];
        self.except = cuts.get(1).copied().unwrap_or(Cut::NONE);
    }

    /// What is kept of term `index`; `words` gets the bits.
    pub(super) fn kept<'a, R: Real>(
        &self,
        method: &TrimMethod,
        tile: &'a Tile<'_, R>,
        index: usize,
        words: &'a mut Words,
    ) -> Masked<'a, R> {
        let term = &method.parameters.terms[index];
        let Masked { model, reference, .. } = term.whole(tile, &[]);
        let n = model.len();
        *words = [u64::MAX; WORDS];
        if term.is_whole() {
            return Masked::whole(model, reference, words);
        }
        if term.density <= 0.0 {
            *words = [0; WORDS];
        } else if let Some(mask) = &self.mask {
            mask.copy(tile.first, words);
        } else if method.drop == Drop::Random {
            self.coin.flip(tile.level, tile.first, n, words);
        } else if method.cuts() {
            let (above, up_to) = (self.keep.above(tile.first, n), self.except.above(tile.first, n));
            if let (Some(low), Some(high)) = (above, up_to) {
                return Masked { low, high, ..Masked::whole(model, reference, words) };
            }
            // One tile of a tensor, in which the last of equal ones stands: one by one.
            for (i, (size, index)) in magnitudes(model, reference).zip(tile.first..).enumerate() {
                // What is not a number is in no order: it stays, to be found in the result.
                let kept = self.keep.keeps(index, size) && !self.except.keeps(index, size)
                    || size.partial_cmp(&size).is_none();
                words[i / 64] &= !(u64::from(!kept) << (i % 64));
            }
        }
        Masked::whole(model, reference, words)
    }

    /// Term `index` where elements are not only dropped: what is left of a drop by rank that is not remembered.
    ///
    /// # Errors
    /// Unreadable input.
    pub(super) fn changed<R: Real>(
        &self,
        method: &TrimMethod,
        tensor: &Tensor<'_>,
        tile: &Tile<'_, R>,
        index: usize,
    ) -> Result<Option<Loan<R>>> {
        let term = &method.parameters.terms[index];
        if method.drop != Drop::Ranked || self.mask.is_some() || !term.draws() {
            return Ok(None);
        }
        let mut all = deltas(tile, std::iter::once(term.pairs()));
        let n = all[0].len();
        let mut draws = [0; TILE];
        let draws = &mut draws[..n];
        fill(tile.level, &self.coin.stream, tile.first, draws);
        let probabilities = probabilities::<R>(tensor, term, index, tile.first, n)?;
        let expected = method.parameters.rescale == Rescale::Expectation;
        for ((x, draw), p) in all[0].iter_mut().zip(draws).zip(probabilities) {
            let kept = if expected { R::from_f64(x.to_f64() / p) } else { *x };
            *x = if u64::from(*draw) < chance(p) { kept } else { R::ZERO };
        }
        Ok(Some(all))
    }
}

/// Probabilities of being kept of the elements `first .. first + n`: from density − epsilon for the smallest of a row to
/// density + epsilon for the largest, linear in the rank; equal magnitudes by index.
fn probabilities<R: Real>(
    tensor: &Tensor<'_>,
    term: &TrimTerm,
    index: usize,
    first: u64,
    n: usize,
) -> Result<Vec<f64>> {
    let (_, length) = rows(tensor.shape);
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        let element = first + all.len() as u64;
        let (row, at) = (element / length, (element % length) as usize);
        let take = (n - all.len()).min(length as usize - at);
        let make = || {
            let delta: Vec<R> = read_deltas(tensor, row * length..(row + 1) * length, term.pairs())?;
            let mut probabilities = vec![term.density; delta.len()];
            if delta.len() > 1 {
                ranks(&delta, |i, rank| probabilities[i] = term.probability(rank, delta.len()));
            }
            Ok(probabilities)
        };
        cached((tensor.id, index, 0, row), make, |row| all.extend_from_slice(&row[at..at + take]))?;
    }
    Ok(all)
}

/// What a pass over some elements finds out, per term: the L1 norms before and after, and the bits of the masks.
struct Part {
    elements: usize,
    norms: Vec<Norms>,
    words: Vec<Vec<u64>>,
}

/// Finds scales and masks, where the method wants them.
///
/// # Errors
/// Unreadable input.
pub(super) fn measure<R: Real>(
    method: &TrimMethod,
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    found: &mut [Found],
) -> Result<()> {
    let terms = &method.parameters.terms;
    let rescales = method.parameters.rescale == Rescale::L1;
    let remembers = remembers(method, tensor);
    if !remembers && !rescales {
        return Ok(());
    }
    let parts = if remembers && method.drop == Drop::Ranked {
        ranked::<R>(method, tensor, threads, found)?
    } else {
        by_chunk::<R>(method, tensor, threads, found, remembers)?
    };
    for (index, found) in found.iter_mut().enumerate() {
        let (before, after) = parts.iter().fold((0.0, 0.0), |(before, after), part| {
            let (more_before, more_after) = part.norms[index].sums();
            (before + more_before, after + more_after)
        });
        if rescales && before >= 1e-7 && after >= 1e-7 {
            found.scale = before / after;
        }
        if remembers && terms[index].draws() {
            let mask = found.mask.get_or_insert_default();
            parts.iter().for_each(|part| mask.append(&part.words[index], part.elements));
        }
    }
    Ok(())
}

/// Whether what is drawn is remembered from the look at the whole tensor.
fn remembers(method: &TrimMethod, tensor: &Tensor<'_>) -> bool {
    let looks = match method.drop {
        Drop::Random => method.parameters.rescale == Rescale::L1,
        Drop::Ranked => method.parameters.rescale != Rescale::Expectation,
        Drop::Smallest | Drop::Outliers => false,
    };
    let terms = method.parameters.terms.iter().filter(|term| term.draws()).count() as u64;
    looks && terms.saturating_mul(tensor.elements / 8) <= MASKS
}

/// Row by row, with the masks of a drop by rank.
fn ranked<R: Real>(
    method: &TrimMethod,
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    found: &[Found],
) -> Result<Vec<Part>> {
    let terms = &method.parameters.terms;
    let length = rows(tensor.shape).1;
    let n = length as usize;
    let limits = |term: &TrimTerm| match (term.draws(), n) {
        (false, _) => Vec::new(),
        (true, 1) => vec![chance(term.density)],
        (true, n) => (0..n).map(|rank| chance(term.probability(rank, n))).collect(),
    };
    let limits: Vec<Vec<u64>> = terms.iter().map(limits).collect();
    tensor.rows::<R, Part, _>(threads, length, |row, inputs| {
        let tile = Tile { level: tensor.level, first: row * length, inputs };
        let mut part = Part { elements: n, norms: vec![Norms::default(); terms.len()], words: Vec::new() };
        let mut draws = vec![0; n];
        for (index, delta) in deltas(&tile, method.pairs()).iter().enumerate() {
            let mut words = vec![if terms[index].is_whole() { u64::MAX } else { 0 }; n.div_ceil(64)];
            if terms[index].draws() {
                fill(tile.level, &found[index].coin.stream, tile.first, &mut draws);
                by_rank::keep(tile.level, delta, &draws, &limits[index], &mut words);
            }
            add_norms(tile.level, &Masked::whole(delta, None, &words), &mut part.norms[index]);
            part.words.push(words);
        }
        part
    })
}

/// Chunk by chunk, with the masks of a drop at random where they are to be remembered.
fn by_chunk<R: Real>(
    method: &TrimMethod,
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    found: &[Found],
    remembers: bool,
) -> Result<Vec<Part>> {
    let terms = &method.parameters.terms;
    let failed = std::sync::Mutex::new(None);
    let start = |chunk: u64| {
        let first = chunk * CHUNK;
        let n = (tensor.elements - first).min(CHUNK) as usize;
        let mut words = vec![Vec::new(); terms.len()];
        for ((words, term), found) in words.iter_mut().zip(terms).zip(found) {
            if remembers && term.draws() {
                *words = vec![0; n.div_ceil(64)];
                found.coin.flip(tensor.level, first, n, words);
            }
        }
        Part { elements: n, norms: vec![Norms::default(); terms.len()], words }
    };
    // Of models in bf16 that are all dropped at random nothing else is asked than the sums.
    let models: Vec<usize> = terms.iter().flat_map(|term| [Some(term.model), term.reference]).flatten().collect();
    let all_read = (0..tensor.inputs.len()).all(|input| models.contains(&input));
    if R::IS_F32 && remembers && all_read && terms.iter().all(TrimTerm::draws) && method.drop == Drop::Random {
        let stored = tensor.fold_stored::<R, Part, _, _>(threads, Dtype::BF16, start, |part, tile| {
            let at = (tile.first % CHUNK) as usize / 64;
            terms.iter().enumerate().fold(true, |finite, (index, term)| {
                let (model, reference) = (tile.inputs[term.model], term.reference.map(|at| tile.inputs[at]));
                let (words, norms) = (&part.words[index][at..], &mut part.norms[index]);
                add_stored_norms(tile.level, model, reference, words, norms) && finite
            })
        })?;
        if let Some(parts) = stored {
            return Ok(parts);
        }
    }
    let parts = tensor.fold::<R, Part, _, _>(threads, start, |part, tile| {
        for (index, found) in found.iter().enumerate() {
            let (mut words, norms) = ([0; WORDS], &mut part.norms[index]);
            if let Some(words) = part.words[index].get((tile.first % CHUNK) as usize / 64..) {
                if !words.is_empty() {
                    add_norms(tile.level, &terms[index].whole(tile, words), norms);
                    continue;
                }
            }
            match found.changed(method, tensor, tile, index) {
                Ok(Some(changed)) => {
                    words = [u64::MAX; WORDS];
                    add_norms(tile.level, &terms[index].whole(tile, &[0; WORDS]), norms);
                    norms.keep(tile.level, &Masked::whole(&changed[0], None, &words));
                }
                Ok(None) => add_norms(tile.level, &found.kept(method, tile, index, &mut words), norms),
                Err(error) => {
                    lock(&failed).get_or_insert(error);
                }
            }
        }
    })?;
    let failed = lock(&failed).take();
    failed.map_or(Ok(parts), Err)
}
