//! The k largest of a tensor's scores, exactly: equal scores by the lower index. Where k is a share of those that are
//! not zero, these are counted in the same pass, and so are the norms of all and of what is kept.
//!
//! A sample says between which two values the cut must be; one pass then counts what is above, and at, either of them
//! and lists the few per cent between, among which the cut is found. Where the sample was wrong, histograms find it.
//! (Histograms alone, which is what this replaced, take a dependent load and store per element: eight times as long.)

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use super::cut::{magnitudes, Cut, Scores};
use super::histogram::nth_largest;
use crate::error::Result;
use crate::kernels::combine::difference;
use crate::kernels::l1_norms::{add_norms, Norms};
use crate::kernels::masked::Masked;
use crate::kernels::threshold::{bracket, count_nonzero, Counts};
use crate::kernels::{Real, TILE};
use crate::methods::difference::Loan;
use crate::tensor::Tensor;
use crate::threads::Threads;

/// Tensors up to this size are sorted out in one go.
const SMALL: u64 = 1 << 14;
/// One element in so many is sampled, within bounds: the more, the fewer lie between the two values.
const SHARE: u64 = 512;
const SAMPLE: (u64, u64) = (1 << 14, 1 << 19);
/// Chunks that a sample is taken from at most, and neighbours that it takes.
const PLACES: u64 = 1024;
const PIECE: u64 = 16;
/// Standard deviations, as if elements were drawn one by one, from the sample's quantile to either value.
const DEVIATIONS: f64 = 6.0;

/// Values that a chunk lists before it tells the others: told tile by tile, two threads would wait for each other's
/// cache line as long as the counting takes.
const TELL: usize = 1 << 12;

/// A bit for every element of a tile.
const ALL: [u64; TILE / 64] = [u64::MAX; TILE / 64];

/// One question, and between which values its answer is thought to be.
#[derive(Clone, Copy)]
struct Query<R> {
    score: usize,
    place: usize,
    /// How many are kept: of a share of those that are not zero this many, once they are counted.
    k: u64,
    share: Option<f64>,
    /// Whether the norms are wanted.
    sums: bool,
    low: R,
    high: R,
}

/// The answer: what is kept, and the sums of all magnitudes and of those kept, where they are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Largest {
    /// What is kept.
    pub cut: Cut,
    /// L1 norms of everything, and of what is kept.
    pub norms: (f64, f64),
}

/// Cuts for each score: `counts[s]` lists how many of score `s` to keep.
///
/// # Errors
/// Unreadable input.
pub(crate) fn largest<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    counts: &[Vec<u64>],
    scores: &Scores<'_, R>,
) -> Result<Vec<Vec<Cut>>> {
    let mut cuts: Vec<Vec<Cut>> = counts.iter().map(|ks| vec![Cut::ALL; ks.len()]).collect();
    let mut queries: Vec<Query<R>> = Vec::new();
    for (score, ks) in counts.iter().enumerate() {
        for (place, k) in ks.iter().enumerate() {
            match *k {
                0 => cuts[score][place] = Cut::NONE,
                k if k >= tensor.elements => {}
                k => queries.push(Query { score, place, k, share: None, sums: false, low: R::ZERO, high: R::ZERO }),
            }
        }
    }
    answer(tensor, threads, queries, scores, &mut |query, found| cuts[query.score][query.place] = found.cut)?;
    Ok(cuts)
}

/// A share of what is not zero of each score, its number rounded down, and with `sums` the norms; of a share of one
/// everything, and no norms.
///
/// # Errors
/// Unreadable input.
pub(crate) fn largest_shares<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    shares: &[f64],
    sums: bool,
    scores: &Scores<'_, R>,
) -> Result<Vec<Largest>> {
    let whole = |share: &f64| if *share >= 1.0 { Cut::ALL } else { Cut::NONE };
    let mut found: Vec<Largest> = shares.iter().map(|share| Largest { cut: whole(share), norms: (0.0, 0.0) }).collect();
    let asked = shares.iter().enumerate().filter(|(_, share)| **share > 0.0 && **share < 1.0);
    let query = |(score, share): (usize, &f64)| {
        let (low, high) = (R::ZERO, R::ZERO);
        Query { score, place: 0, k: 0, share: Some(*share), sums, low, high }
    };
    answer(tensor, threads, asked.map(query).collect(), scores, &mut |query, answer| found[query.score] = answer)?;
    Ok(found)
}

/// Finds what is kept for each query.
fn answer<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    mut queries: Vec<Query<R>>,
    scores: &Scores<'_, R>,
    put: &mut dyn FnMut(&Query<R>, Largest),
) -> Result<()> {
    if queries.is_empty() {
        return Ok(());
    }
    if tensor.elements <= SMALL {
        return sort(tensor, &queries, scores, put);
    }
    guess(tensor, threads, &mut queries, scores)?;
    let mut missed = find(tensor, threads, queries, scores, put)?;
    for query in &mut missed {
        let threshold = nth_largest(tensor, threads, (query.score, query.k), scores)?;
        (query.low, query.high) = (R::from_f64(threshold), R::from_f64(threshold));
        // for scores that are not numbers, which are missed again
        put(query, Largest { cut: Cut { threshold, until: u64::MAX }, norms: (0.0, 0.0) });
    }
    if !missed.is_empty() {
        find(tensor, threads, missed, scores, put)?;
    }
    Ok(())
}

/// All scores in one list.
fn sort<R: Real>(
    tensor: &Tensor<'_>,
    queries: &[Query<R>],
    scores: &Scores<'_, R>,
    put: &mut dyn FnMut(&Query<R>, Largest),
) -> Result<()> {
    let kinds = queries.iter().map(|query| query.score + 1).max().unwrap_or(0);
    let all = tensor.fold::<R, Vec<Vec<f64>>, _, _>(
        Threads::Alone,
        |_| vec![Vec::new(); kinds],
        |all, tile| {
            scores(tile, &mut |kind, x, y| {
                if let Some(all) = all.get_mut(kind) {
                    all.extend(magnitudes(x, y).map(R::to_f64));
                }
            });
        },
    )?;
    for query in queries {
        let mut order: Vec<(f64, u64)> =
            all.iter().flat_map(|chunk| chunk[query.score].iter().copied()).zip(0u64..).collect();
        let sum = |part: &[(f64, u64)]| part.iter().map(|(size, _)| size).sum::<f64>();
        let (whole, nonzero) = (sum(&order), order.iter().filter(|(size, _)| *size != 0.0).count());
        let k = query.share.map_or(query.k, |share| (share * nonzero as f64) as u64);
        let Some(last) = (k as usize).checked_sub(1) else {
            put(query, Largest { cut: Cut::NONE, norms: (whole, 0.0) });
            continue;
        };
        let (_, (threshold, index), _) =
            order.select_nth_unstable_by(last, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let cut = Cut { threshold: *threshold, until: *index + 1 };
        put(query, Largest { cut, norms: (whole, sum(&order[..=last])) });
    }
    Ok(())
}

/// Larger first.
fn descending<R: Real>(a: &R, b: &R) -> std::cmp::Ordering {
    b.magnitude_bits().cmp(&a.magnitude_bits())
}

/// Two values per query that its threshold probably lies between, from a sample.
fn guess<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    queries: &mut [Query<R>],
    scores: &Scores<'_, R>,
) -> Result<()> {
    let wanted = (tensor.elements / SHARE).clamp(SAMPLE.0, SAMPLE.1);
    let parts = tensor.sample::<R, Vec<Vec<R>>, _>(threads, wanted, PLACES, PIECE, |part, tile| {
        scores(tile, &mut |kind, x, y| {
            part.resize_with(part.len().max(kind + 1), Vec::new);
            part[kind].extend(magnitudes(x, y));
        });
    })?;
    let kinds = parts.first().map_or(0, Vec::len);
    let mut samples: Vec<Vec<R>> =
        (0..kinds).map(|kind| parts.iter().flat_map(|part| &part[kind]).copied().collect()).collect();
    for query in queries {
        let sample = &mut samples[query.score];
        let count = sample.len() as f64;
        let mut share = query.k as f64 / tensor.elements as f64;
        let mut deviation = (count * share * (1.0 - share)).sqrt();
        if let Some(of_nonzero) = query.share {
            // How many are not zero is known as well as the sample does: both errors add up at most.
            let nonzero = sample.iter().filter(|x| **x != R::ZERO).count() as f64 / count.max(1.0);
            share = of_nonzero * nonzero;
            deviation = (count * share * (1.0 - share)).sqrt();
            deviation += of_nonzero * (count * nonzero * (1.0 - nonzero)).sqrt();
        }
        let margin = DEVIATIONS * deviation + PIECE as f64;
        let mut at = |rank: f64, beyond: R| {
            if rank < 0.0 || rank >= count {
                return beyond;
            }
            *sample.select_nth_unstable_by(rank as usize, descending).1
        };
        query.high = at(count * share - margin, R::from_f64(f64::INFINITY));
        query.low = at(count * share + margin, R::ZERO);
    }
    Ok(())
}

/// What one tile holds for one query.
#[derive(Clone, Copy)]
struct Seen {
    counts: Counts,
    listed: usize,
}

/// What one chunk holds for one query.
#[derive(Clone)]
struct Gathered<R> {
    tiles: Vec<Seen>,
    inside: Vec<R>,
    /// Of those inside, how many all threads have been told of.
    told: usize,
    nonzero: u64,
    norms: Norms,
}

impl<R: Real> Gathered<R> {
    const NOTHING: Self = Gathered { tiles: Vec::new(), inside: Vec::new(), told: 0, nonzero: 0, norms: Norms::NONE };
}

/// One pass: the cuts of the queries whose threshold is where it was thought to be; returns the others.
fn find<R: Real>(
    tensor: &Tensor<'_>,
    threads: Threads<'_>,
    mut queries: Vec<Query<R>>,
    scores: &Scores<'_, R>,
    put: &mut dyn FnMut(&Query<R>, Largest),
) -> Result<Vec<Query<R>>> {
    let most = (tensor.elements / 16).max(SMALL);
    let listed: Vec<AtomicU64> = queries.iter().map(|_| AtomicU64::new(0)).collect();
    let chunks = tensor.fold::<R, Vec<Gathered<R>>, _, _>(
        threads,
        |_| vec![Gathered::NOTHING; queries.len()],
        |chunk, tile| {
            scores(tile, &mut |kind, x, y| {
                let difference = y.map(|y| Loan::one(x.len(), |out| difference(tile.level, x, y, out)));
                let x = difference.as_ref().map_or(x, |difference| &difference[0]);
                let of = |((_, query), _): &((_, &Query<R>), _)| query.score == kind;
                for ((own, query), listed) in chunk.iter_mut().zip(&queries).zip(&listed).filter(of) {
                    if query.share.is_some() {
                        own.nonzero += count_nonzero(tile.level, x);
                    }
                    if listed.load(Relaxed) > most {
                        own.inside.clear();
                        continue;
                    }
                    if query.sums {
                        let above = Masked { low: query.high, ..Masked::whole(x, None, &ALL) };
                        add_norms(tile.level, &above, &mut own.norms);
                    }
                    let before = own.inside.len();
                    let counts = bracket(tile.level, x, (query.low, query.high), &mut own.inside);
                    own.tiles.push(Seen { counts, listed: own.inside.len() - before });
                    let fresh = own.inside.len() - own.told;
                    if fresh >= TELL {
                        listed.fetch_add(fresh as u64, Relaxed);
                        own.told = own.inside.len();
                    }
                }
            });
        },
    )?;
    for (index, query) in queries.iter_mut().enumerate() {
        let nonzero: u64 = chunks.iter().map(|chunk| chunk[index].nonzero).sum();
        query.k = query.share.map_or(query.k, |share| (share * nonzero as f64) as u64);
    }
    let settled = side_by_side(threads, queries.len(), |index| {
        if listed[index].load(Relaxed) > most || queries[index].k == 0 {
            return None;
        }
        let seen = chunks.iter().flat_map(|chunk| &chunk[index].tiles).copied().collect();
        let inside = chunks.iter().flat_map(|chunk| &chunk[index].inside).copied().collect();
        settle(&queries[index], seen, inside)
    });
    let mut missed = Vec::new();
    for (index, (query, settled)) in queries.into_iter().zip(settled).enumerate() {
        match settled {
            Some(found) => {
                let until = nth_equal(tensor, (query.score, found.threshold), found.wanted, &found.equal, scores)?;
                let sums: Vec<(f64, f64)> = chunks.iter().map(|chunk| chunk[index].norms.sums()).collect();
                let all = sums.iter().map(|sums| sums.0).sum();
                let above: f64 = sums.iter().map(|sums| sums.1).sum();
                let cut = Cut { threshold: found.threshold.to_f64(), until };
                put(&query, Largest { cut, norms: (all, above + found.sum) });
            }
            None if query.k == 0 => put(&query, Largest { cut: Cut::NONE, norms: (0.0, 0.0) }),
            None => missed.push(query),
        }
    }
    Ok(missed)
}

/// What `each` makes of 0..n, in order.
fn side_by_side<T: Send>(threads: Threads<'_>, n: usize, each: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    match threads {
        Threads::Pool(pool) => pool.install(|| (0..n).into_par_iter().map(each).collect()),
        Threads::Alone => (0..n).map(each).collect(),
    }
}

/// Where a cut goes through.
struct Settled<R> {
    threshold: R,
    /// How many equal to it are kept.
    wanted: u64,
    /// How many of them there are in each tile.
    equal: Vec<u64>,
    /// The sum of what is kept and not above the bracket, where it is asked for.
    sum: f64,
}

/// Where the threshold is; none if it lies elsewhere.
fn settle<R: Real>(query: &Query<R>, seen: Vec<Seen>, inside: Vec<R>) -> Option<Settled<R>> {
    let total = |count: fn(&Counts) -> u64| seen.iter().map(|seen| count(&seen.counts)).sum::<u64>();
    let mut wanted = query.k.checked_sub(total(|counts| counts.above)).filter(|wanted| *wanted > 0)?;
    let at_high = total(|counts| counts.at_high);
    let times = |count: u64, value: R| if count > 0 { count as f64 * value.to_f64() } else { 0.0 };
    let sum = |above: &dyn Fn(R) -> bool| match query.sums {
        true => inside.iter().filter(|x| above(**x)).map(|x| x.to_f64()).sum::<f64>(),
        false => 0.0,
    };
    if wanted <= at_high {
        let equal = seen.iter().map(|seen| seen.counts.at_high).collect();
        return Some(Settled { threshold: query.high, wanted, equal, sum: times(wanted, query.high) });
    }
    wanted -= at_high;
    if wanted <= inside.len() as u64 {
        let mut order = inside.clone();
        let (greater, threshold, _) = order.select_nth_unstable_by(wanted as usize - 1, descending);
        let threshold = *threshold;
        wanted -= greater.iter().filter(|x| **x != threshold).count() as u64;
        let mut rest = inside.as_slice();
        let equal = seen.iter().map(|seen| {
            let (tile, others) = rest.split_at(seen.listed);
            rest = others;
            tile.iter().filter(|x| **x == threshold).count() as u64
        });
        let equal = equal.collect();
        let sum = times(at_high, query.high) + sum(&|x| x > threshold) + times(wanted, threshold);
        return Some(Settled { threshold, wanted, equal, sum });
    }
    wanted -= inside.len() as u64;
    let within = query.low < query.high && wanted <= total(|counts| counts.at_low);
    within.then(|| Settled {
        threshold: query.low,
        wanted,
        equal: seen.iter().map(|seen| seen.counts.at_low).collect(),
        sum: times(at_high, query.high) + sum(&|_| true) + times(wanted, query.low),
    })
}

/// Behind the index of the `nth` (from 1) element whose score is `value`; `equal` counts them per tile.
fn nth_equal<R: Real>(
    tensor: &Tensor<'_>,
    (score, value): (usize, R),
    nth: u64,
    equal: &[u64],
    scores: &Scores<'_, R>,
) -> Result<u64> {
    if nth == equal.iter().sum::<u64>() {
        return Ok(u64::MAX);
    }
    let (mut left, mut index) = (nth, 0);
    while left > equal[index] {
        left -= equal[index];
        index += 1;
    }
    let first = index as u64 * TILE as u64;
    let mut until = u64::MAX;
    tensor.one_tile::<R>(first, &mut |tile| {
        scores(tile, &mut |kind, x, y| {
            if kind == score {
                let equals = magnitudes(x, y).zip(first..).filter(|(x, _)| *x == value);
                until = equals.map(|(_, i)| i + 1).nth(left as usize - 1).unwrap_or(u64::MAX);
            }
        });
    })?;
    Ok(until)
}

#[cfg(test)]
mod tests {
    use super::super::cut::Each;
    use super::*;
    use crate::dtype::Dtype;
    use crate::file::mapped::Mapped;
    use crate::kernels::Level;
    use crate::measure::NonFinite;
    use crate::monitor::Monitor;
    use crate::storage::dense::Dense;
    use crate::storage::input::Input;
    use crate::storage::part::Part;
    use crate::tensor::Tile;

    /// The cuts of |x|, found in a file of f32.
    fn cuts(values: &[f32], counts: &[u64]) -> Vec<Cut> {
        in_a_file(values, |tensor, scores| largest(tensor, Threads::Alone, &[counts.to_vec()], scores)).swap_remove(0)
    }

    /// What `ask` finds of |x|, which lie in a file of f32.
    fn in_a_file<T>(values: &[f32], ask: impl Fn(&Tensor<'_>, &Scores<'_, f32>) -> Result<T>) -> T {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        let mapped = Mapped::open(file.path()).unwrap();
        let elements = values.len() as u64;
        let tensor = Tensor {
            id: 0,
            job: 0,
            name: "t",
            shape: &[elements],
            elements,
            inputs: &[Input::dense(Dense(Part { file: &mapped, offset: 0, elements, dtype: Dtype::F32 }))],
            seed: 0,
            level: *Level::available().last().unwrap(),
            monitor: &Monitor::default(),
            non_finite: &NonFinite::default(),
            passes: std::sync::atomic::AtomicUsize::new(0),
        };
        let scores = |tile: &Tile<'_, f32>, each: &mut Each<'_, f32>| each(0, tile.input(0), None);
        ask(&tensor, &scores).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "millions of elements; smaller tensors: tests/golden.rs")]
    fn a_share_of_what_is_not_zero_is_kept_and_its_norms_are_told() {
        let n = 2 * crate::tensor::CHUNK as usize + 333;
        let mixed = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) % 1_000_003;
        let sparse = |i: usize| if mixed(i) % 7 == 0 { mixed(i * 3) as f32 / 7.0 - 70_000.0 } else { 0.0 };
        let few = |i: usize| [0.0, 0.0, 1.0, -2.0, 0.0, 0.5, 2.0][i * i % 7];
        let misleading = |i: usize| if i % 64 < 16 { mixed(i) as f32 } else { 0.0 };
        let one = |i: usize| if i == n / 2 { -3.0 } else { 0.0 };
        let none = |_: usize| 0.0;
        for value in [&sparse as &dyn Fn(usize) -> f32, &few, &misleading, &one, &none] {
            for length in [n, 3000] {
                let values: Vec<f32> = (0..length).map(value).collect();
                let nonzero = values.iter().filter(|x| **x != 0.0).count();
                let mut order: Vec<usize> = (0..length).collect();
                order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
                for share in [1e-9, 0.03, 0.5, 0.99] {
                    let ask = |tensor: &Tensor<'_>, scores: &Scores<'_, f32>| {
                        largest_shares(tensor, Threads::Alone, &[share], true, scores)
                    };
                    let found = in_a_file(&values, ask)[0];
                    let k = (share * nonzero as f64) as usize;
                    let sum = |indices: &mut dyn Iterator<Item = &usize>| -> f64 {
                        indices.map(|i| f64::from(values[*i].abs())).sum()
                    };
                    for (rank, i) in order.iter().enumerate() {
                        assert_eq!(found.cut.keeps(*i as u64, values[*i].abs()), rank < k, "{share} {i} {found:?}");
                    }
                    let expected = sum(&mut order.iter().take(k));
                    assert!((found.norms.1 - expected).abs() <= 1e-6 * expected, "{share} {found:?} {expected}");
                    if k > 0 {
                        let all = sum(&mut order.iter());
                        assert!((found.norms.0 - all).abs() <= 1e-6 * all, "{share} {found:?} {all}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_cut_is_one_bound_where_it_is_not_in_the_midst() {
        let x: Vec<f32> = (0..40).map(|i| (i * 7 % 5) as f32 * 0.5).collect();
        for (threshold, until) in [(-1.0, u64::MAX), (f64::INFINITY, 0), (0.5, 117), (0.5, 100), (1.0, 140), (0.0, 120)]
        {
            let cut = Cut { threshold, until };
            let above = cut.above::<f32>(100, 40);
            assert_eq!(above.is_none(), (101..140).contains(&until));
            for (x, index) in x.iter().zip(100..) {
                let size = f64::from(*x);
                let kept = size > threshold || size == threshold && index < until;
                assert_eq!(cut.keeps(index, *x), kept);
                assert!(above.is_none_or(|above| (*x > above) == kept), "{cut:?} {index}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "millions of elements; smaller tensors: tests/golden.rs")]
    fn exactly_the_k_largest_are_kept_wherever_the_sample_looked() {
        let n = 3 * crate::tensor::CHUNK as usize + 777;
        let spread = |i: usize| (i.wrapping_mul(2_654_435_761) % 1_000_003) as f32 - 500_000.0;
        let few = |i: usize| [0.0, 0.0, 1.0, -2.0, 0.0, 0.5, 2.0][i * i % 7];
        // The first of every sixteen, which a sample mostly meets, are not like the others.
        let misleading = |i: usize| if i % 64 < 16 { 1e9 + spread(i) } else { spread(i) };
        let same = |_: usize| -3.0;
        for value in [&spread as &dyn Fn(usize) -> f32, &few, &misleading, &same] {
            let values: Vec<f32> = (0..n).map(value).collect();
            let counts = [1, 2, 1000, n as u64 / 4, n as u64 / 2, n as u64 - 1000, n as u64 - 1];
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
            for (k, cut) in counts.into_iter().zip(cuts(&values, &counts)) {
                let mut kept = vec![1f32; n];
                cut.keep_by(Level::SCALAR, 0, &values.iter().map(|x| x.abs()).collect::<Vec<_>>(), &mut kept);
                assert!(
                    order.iter().enumerate().all(|(rank, i)| (kept[*i] == 1.0) == ((rank as u64) < k)),
                    "{k} {cut:?}"
                );
            }
        }
    }
}
