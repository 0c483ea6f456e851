//! One job made ready: its inputs, its method in the compute type that it needs, and what `prepare` found.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::Level;
use crate::measure::NonFinite;
use crate::methods::method::{Method, State, Term};
use crate::methods::operation::Operation;
use crate::monitor::Monitor;
use crate::plan::job::Job;
use crate::plan::Plan;
use crate::run::taken::Taken;
use crate::storage::input::Input;
use crate::storage::sources::Sources;
use crate::tensor::{next_id, Tensor, CHUNK};
use crate::threads::Threads;

/// One job made ready.
pub(crate) struct Program<'a> {
    /// Index in the plan.
    pub index: usize,
    /// The job.
    pub job: &'a Job,
    /// What it reads.
    pub inputs: Box<[Input<'a>]>,
    /// How it computes.
    pub arithmetic: Arithmetic,
    /// The part of the tensor that is taken, where it is not all of it.
    pub taken: Option<Arc<Taken>>,
    /// The differences that the step is a sum of, where they are to be measured: where models are packed.
    pub pairs: Vec<Pair>,
    id: usize,
    state: RwLock<Option<Arc<State>>>,
    read: AtomicBool,
    level: Level,
    /// Seed of every random draw.
    pub(crate) seed: u64,
    monitor: &'a Monitor,
    non_finite: &'a NonFinite,
}

/// A method in its compute type.
#[derive(Clone)]
pub(crate) enum Arithmetic {
    /// The input's bytes as they are.
    Raw,
    /// The input's values in another type, by way of f32 where that holds them, or of f64.
    Convert {
        /// Whether f32 holds them.
        narrow: bool,
    },
    /// f32: every input and the output has at most eight significant bits, and f32 holds the factors of a plain sum.
    Narrow(Arc<dyn Method<f32>>),
    /// f64: everything else.
    Wide(Arc<dyn Method<f64>>),
    /// A part of a packed tensor that another job computes.
    Aside,
}

impl Arithmetic {
    /// The differences of two models that the step is a weighted sum of.
    fn pairs(&self) -> Vec<Pair> {
        let terms = match self {
            Arithmetic::Narrow(method) => method.sum_of(),
            Arithmetic::Wide(method) => method.sum_of(),
            Arithmetic::Raw | Arithmetic::Convert { .. } | Arithmetic::Aside => None,
        };
        let terms = terms.unwrap_or_default();
        let weight = |term: &Term| if terms.len() > 1 { term.weight } else { 1.0 };
        let pair = |term: &Term| Some(Pair { donor: term.model, reference: term.reference?, weight: weight(term) });
        terms.iter().filter_map(pair).collect()
    }
}

/// A difference of two inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// What the difference is of.
    pub donor: usize,
    /// What it is against.
    pub reference: usize,
    /// Its weight against those of other pairs: 1 where it is the only one.
    pub weight: f64,
}

/// One output of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Its α.
    pub alpha: f64,
    /// Its index in the plan.
    pub output: usize,
}

impl<'a> Program<'a> {
    /// All jobs of a plan.
    ///
    /// # Errors
    /// Inputs that are missing or do not fit.
    pub(crate) fn all(
        plan: &'a Plan,
        sources: &'a Sources<'_>,
        level: Level,
        monitor: &'a Monitor,
        non_finite: &'a NonFinite,
    ) -> Result<Vec<Program<'a>>> {
        let mut methods = Methods::default();
        let make = |(index, job): (usize, &'a Job)| {
            if job.is_aside() {
                return Program::with(plan, index, Box::default(), Arithmetic::Aside, level, monitor, non_finite);
            }
            let stored = plan.operations[job.operation].is_stored();
            let (_, shape, elements) = job.logical();
            let open = |(source, name): &(usize, Arc<str>)| {
                sources.input(&plan.sources, (*source, name), (shape, elements), stored)
            };
            let inputs: Box<[Input<'a>]> = job.inputs.iter().map(open).collect::<Result<_>>()?;
            let arithmetic = methods.arithmetic(plan, job, &inputs)?;
            Program::with(plan, index, inputs, arithmetic, level, monitor, non_finite)
        };
        plan.jobs.iter().enumerate().map(make).collect()
    }

    /// One job of a plan, with its inputs.
    ///
    /// # Errors
    /// Inputs that the operation is not defined on.
    pub(crate) fn new(
        plan: &'a Plan,
        index: usize,
        inputs: Box<[Input<'a>]>,
        level: Level,
        monitor: &'a Monitor,
        non_finite: &'a NonFinite,
    ) -> Result<Program<'a>> {
        let arithmetic = Methods::default().arithmetic(plan, &plan.jobs[index], &inputs)?;
        Program::with(plan, index, inputs, arithmetic, level, monitor, non_finite)
    }

    fn with(
        plan: &'a Plan,
        index: usize,
        inputs: Box<[Input<'a>]>,
        arithmetic: Arithmetic,
        level: Level,
        monitor: &'a Monitor,
        non_finite: &'a NonFinite,
    ) -> Result<Program<'a>> {
        let (job, id, state) = (&plan.jobs[index], next_id(), RwLock::new(None));
        let read = AtomicBool::new(false);
        let packed = plan.sources.iter().any(|source| !source.packed.is_empty());
        let pairs = if packed { arithmetic.pairs() } else { Vec::new() };
        let is_computed = matches!(arithmetic, Arithmetic::Narrow(_) | Arithmetic::Wide(_));
        let taken = if is_computed { Taken::of(plan, job)?.map(Arc::new) } else { None };
        let seed = plan.seed;
        Ok(Program { index, job, inputs, arithmetic, taken, pairs, id, state, read, level, seed, monitor, non_finite })
    }

    /// The tensor as its method sees it.
    pub(crate) fn tensor(&self) -> Tensor<'_> {
        let (name, shape, elements) = self.job.logical();
        Tensor {
            id: self.id,
            job: self.index,
            name,
            shape,
            elements,
            inputs: &self.inputs,
            seed: self.seed,
            level: self.level,
            monitor: self.monitor,
            non_finite: self.non_finite,
            passes: AtomicUsize::new(0),
        }
    }

    /// Whether the method has to see the whole tensor first.
    pub(crate) fn prepares(&self) -> bool {
        self.job.elements > 0
            && match &self.arithmetic {
                Arithmetic::Raw | Arithmetic::Convert { .. } | Arithmetic::Aside => false,
                Arithmetic::Narrow(method) => method.prepares(),
                Arithmetic::Wide(method) => method.prepares(),
            }
    }

    /// Bytes that are kept of what the method finds when it sees the whole tensor.
    pub(crate) fn keeps(&self) -> u64 {
        let (_, shape, elements) = self.job.logical();
        match &self.arithmetic {
            _ if elements == 0 => 0,
            Arithmetic::Raw | Arithmetic::Convert { .. } | Arithmetic::Aside => 0,
            Arithmetic::Narrow(method) => method.keeps(shape),
            Arithmetic::Wide(method) => method.keeps(shape),
        }
    }

    /// Whether the target is not what it would be in the type of the output, although it is of that type.
    pub(crate) fn rounds_target(&self) -> bool {
        let target = self.inputs[0].storage();
        target.plain().is_none() && target.exact().is_some_and(|exact| exact != self.job.dtype)
    }

    /// Whether it is worth all threads.
    pub(crate) fn is_large(&self) -> bool {
        self.job.logical().2 >= 8 * CHUNK
    }

    /// Whether `prepare` has read all of the inputs: it may have found that there is nothing to look for.
    pub(crate) fn has_read(&self) -> bool {
        self.read.load(Relaxed)
    }

    /// Whether `prepare` has been done.
    pub(crate) fn ready(&self) -> bool {
        self.state.read().is_ok_and(|state| state.is_some())
    }

    /// Lets the method look at the whole tensor.
    ///
    /// # Errors
    /// As [`Method::prepare`].
    pub(crate) fn prepare(&self, threads: Threads<'_>) -> Result<()> {
        let tensor = self.tensor();
        let made = match &self.arithmetic {
            Arithmetic::Raw | Arithmetic::Convert { .. } | Arithmetic::Aside => return Ok(()),
            Arithmetic::Narrow(method) => method.prepare(&tensor, threads)?,
            Arithmetic::Wide(method) => method.prepare(&tensor, threads)?,
        };
        self.read.store(tensor.passes.load(Relaxed) > 0, Relaxed);
        self.set(Some(Arc::new(made)));
        Ok(())
    }

    /// Drops what `prepare` found: all blocks are done.
    pub(crate) fn forget(&self) {
        self.set(None);
    }

    fn set(&self, state: Option<Arc<State>>) {
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }

    /// What `prepare` found.
    pub(crate) fn state(&self) -> Arc<State> {
        let state = self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        state.unwrap_or_else(|| Arc::new(Box::new(()) as State))
    }

    /// Input bytes.
    pub(crate) fn cost(&self) -> u64 {
        self.inputs.iter().map(|input| input.cost(self.job.logical().2)).sum()
    }
}

/// The methods made so far, by operation and by whether they are narrow: a method keeps nothing of a tensor, so that all
/// tensors of an operation can have one.
#[derive(Default)]
struct Methods {
    made: HashMap<(usize, bool), Arithmetic>,
}

impl Methods {
    fn arithmetic(&mut self, plan: &Plan, job: &Job, inputs: &[Input<'_>]) -> Result<Arithmetic> {
        let operation = &plan.operations[job.operation];
        let packed = job.packed.as_ref().map(|part| plan.encodings[part.encoding].format.dtype());
        let types = || inputs.iter().map(|input| input.dtype).chain([packed.unwrap_or(job.dtype)]);
        if matches!(operation, Operation::Copy { .. }) {
            if packed.is_none() && inputs[0].is_plain(job.dtype) {
                return Ok(Arithmetic::Raw);
            }
            if operation.is_stored() {
                let (name, dtype, found) = (shown(&job.name), job.dtype, inputs[0].dtype);
                let message = format!("`{name}` is to be copied as it is stored, as {dtype}, but is {found}");
                return Err(Error::new(Kind::Plan, message));
            }
            let narrow = inputs[0].storage().exact().is_some_and(|dtype| dtype != Dtype::F64);
            let convert = Arithmetic::Convert { narrow };
            return types().all(Dtype::is_float).then_some(convert).ok_or_else(|| not_float(job));
        }
        if !types().all(Dtype::is_float) {
            return Err(not_float(job));
        }
        let narrow = types().all(Dtype::is_narrow) && operation.is_single();
        if let Some(made) = self.made.get(&(job.operation, narrow)) {
            return Ok(made.clone());
        }
        let method = if narrow {
            operation.method::<f32>().map(|method| Arithmetic::Narrow(method.into()))
        } else {
            operation.method::<f64>().map(|method| Arithmetic::Wide(method.into()))
        };
        let method = method.ok_or_else(|| Error::new(Kind::Engine, "an operation without arithmetic"))?;
        self.made.insert((job.operation, narrow), method.clone());
        Ok(method)
    }
}

fn not_float(job: &Job) -> Error {
    Error::new(Kind::Plan, format!("`{}` is not of a floating-point type", shown(&job.name)))
}
