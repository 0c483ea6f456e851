//! Two sides, each a weighted sum of tensors and differences, compared tensor by tensor in one streamed pass: models
//! (`diff`), or task vectors (norm, cosine, overlap of supports).

use std::cell::RefCell;
use std::sync::atomic::AtomicUsize;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::dtype;
use crate::error::{printable, shown, Error, Kind, Result};
use crate::kernels::dispatch::ControlRegister;
use crate::kernels::stats::{pair_sums, PairSums};
use crate::kernels::{Level, TILE};
use crate::measure::{number, NonFinite};
use crate::methods::difference::weighted_sum;
use crate::methods::method::{check_terms, Term};
use crate::monitor::Monitor;
use crate::plan::FORMAT;
use crate::run::report::text;
use crate::storage::input::Input;
use crate::storage::source::Buffers;
use crate::storage::source::Source;
use crate::storage::sources::Sources;
use crate::tensor::Tile;
use crate::tensor::{next_id, Tensor, CHUNK};
use crate::threads::{each, pool};
use crate::threads::{lock, Threads};

/// What to compare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ComparePlan {
    format: u32,
    sources: Vec<Source>,
    tensors: Vec<Row>,
    /// Terms over the inputs; none is zero.
    left: Vec<Term>,
    right: Vec<Term>,
}

/// (name, shape, inputs as (source, stored name))
type Row = (String, Vec<u64>, Vec<(usize, String)>);

/// Compares and returns one row of figures per tensor as JSON; `memories` as in [`crate::run::run_with`].
///
/// # Errors
/// Sources that cannot be read, a plan that does not fit them, or the run was cancelled.
pub fn compare(plan_json: &[u8], memories: &[Buffers<'_>], threads: usize, monitor: &Monitor) -> Result<String> {
    // A thread that the embedding process starts inherits what that has set.
    let _ieee = ControlRegister::ieee();
    let started = Instant::now();
    let bad = |e: String| Error::new(Kind::Plan, format!("unusable plan: {}", printable(&e)));
    let plan: ComparePlan = serde_json::from_slice(plan_json).map_err(|e| bad(e.to_string()))?;
    if plan.format != FORMAT {
        return Err(bad(format!("format {}, expected {FORMAT}", plan.format)));
    }
    let level = Level::chosen()?;
    let sources = Sources::of(&plan.sources, memories)?;
    let mut inputs: Vec<Vec<Input<'_>>> = Vec::with_capacity(plan.tensors.len());
    let mut elements: Vec<u64> = Vec::with_capacity(plan.tensors.len());
    for (name, shape, from) in &plan.tensors {
        for side in [&plan.left, &plan.right] {
            check_terms(side, from.len()).map_err(|e| bad(format!("`{}`: {e}", shown(name))))?;
        }
        let count = dtype::elements(shape);
        let count = count.ok_or_else(|| bad(format!("shape of `{}` overflows", shown(name))))?;
        elements.push(count);
        let open = |(source, stored): &(usize, String)| match plan.sources.get(*source) {
            None => Err(bad(format!("source {source}"))),
            Some(_) => sources.input(&plan.sources, (*source, stored), (shape, count), false),
        };
        inputs.push(from.iter().map(open).collect::<Result<_>>()?);
    }
    let cost = |index: usize| -> u64 { inputs[index].iter().map(|input| input.cost(elements[index])).sum() };
    monitor.expect((0..inputs.len()).map(cost).sum());
    let pool = pool(threads)?;
    let non_finite = NonFinite::default();
    let sums: Vec<Mutex<PairSums>> = inputs.iter().map(|_| Mutex::default()).collect();
    let one = |index: usize, threads: Threads<'_>| -> Result<()> {
        let (name, shape, _) = &plan.tensors[index];
        let tensor = Tensor {
            id: next_id(),
            job: index,
            name,
            shape,
            elements: elements[index],
            inputs: &inputs[index],
            seed: 0,
            level,
            monitor,
            non_finite: &non_finite,
            passes: AtomicUsize::new(0),
        };
        let chunks = tensor.fold::<f64, PairSums, _, _>(
            threads,
            |_| PairSums::default(),
            |sum, tile| {
                ROOM.with_borrow_mut(|[left, right]| {
                    let left = side(&plan.left, tile, left);
                    let right = side(&plan.right, tile, right);
                    sum.merge(&pair_sums(level, left, right));
                });
            },
        )?;
        let mut total = PairSums::default();
        chunks.iter().for_each(|chunk| total.merge(chunk));
        *lock(&sums[index]) = total;
        inputs[index].iter().for_each(|input| input.storage().behind(0..tensor.elements));
        monitor.advance(cost(index));
        Ok(())
    };
    let (large, small): (Vec<usize>, Vec<usize>) = (0..inputs.len()).partition(|index| elements[*index] >= 8 * CHUNK);
    for index in large {
        one(index, Threads::Pool(&pool))?;
    }
    each(&pool, monitor, small.len(), |i| one(small[i], Threads::Alone))?;
    sources.unchanged()?;
    let bad_values = non_finite.counts();
    let mut counts = vec![0; inputs.len()];
    bad_values.iter().for_each(|(job, _, count)| counts[*job] += count);
    let rows = sums.iter().zip(counts).enumerate().map(|(index, (sums, non_finite))| {
        let s = *lock(sums);
        Compared {
            name: &plan.tensors[index].0,
            elements: elements[index],
            left_norm: number(s.left.sqrt()),
            right_norm: number(s.right.sqrt()),
            difference_norm: number(s.difference.sqrt()),
            dot: number(s.dot),
            largest: number(s.largest),
            changed: s.changed,
            left_nonzero: s.left_nonzero,
            right_nonzero: s.right_nonzero,
            both_nonzero: s.both_nonzero,
            same_sign: s.same_sign,
            non_finite,
        }
    });
    let report = Report {
        seconds: started.elapsed().as_secs_f64(),
        bytes_read: monitor.progress().0,
        threads: pool.current_num_threads(),
        cpu_level: level.name(),
        tensors: rows.collect(),
    };
    text(&report)
}

#[derive(Serialize)]
struct Report<'a> {
    seconds: f64,
    bytes_read: u64,
    threads: usize,
    cpu_level: &'a str,
    tensors: Vec<Compared<'a>>,
}

/// The figures of one tensor.
#[derive(Serialize)]
struct Compared<'a> {
    name: &'a str,
    elements: u64,
    left_norm: Option<f64>,
    right_norm: Option<f64>,
    difference_norm: Option<f64>,
    dot: Option<f64>,
    largest: Option<f64>,
    changed: u64,
    left_nonzero: u64,
    right_nonzero: u64,
    both_nonzero: u64,
    same_sign: u64,
    non_finite: u64,
}

thread_local! {
    /// Both sides of a tile: to set them to zero for every tile takes as long as to compare it.
    static ROOM: RefCell<[Vec<f64>; 2]> = RefCell::new([const { [0.0; TILE] }; 2].map(Vec::from));
}

/// The value of one side, in `out` where it is not one of the inputs as it is.
fn side<'a>(terms: &[Term], tile: &'a Tile<'_, f64>, out: &'a mut [f64]) -> &'a [f64] {
    if let [Term { model, reference: None, weight: 1.0 }] = *terms {
        return tile.input(model);
    }
    let out = &mut out[..tile.inputs.first().map_or(0, Vec::len)];
    weighted_sum(tile, terms, out);
    out
}
