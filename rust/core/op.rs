//! What can be done to a tensor. An operation is `prepare` (look at the whole tensor: thresholds, norms, dots) and
//! then `tile`; most have nothing to prepare.

use std::any::Any;

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::kernels::kept::Sum;
use crate::kernels::{Level, Real};
use crate::methods::arcee_fusion::ArceeFusion;
use crate::methods::control::{Control, ControlMethod};
use crate::methods::elementwise::{Elementwise, ElementwiseMethod, Rule};
use crate::methods::gram::{Gram, GramMethod, Shape};
use crate::methods::linear::Linear;
use crate::methods::sce::Sce;
use crate::methods::task_arithmetic::TaskArithmetic;
use crate::methods::trimmed::{Drop, Trimmed, TrimmedMethod};
use crate::tensor::{Crew, Tensor};

/// An operation as the plan names it; what each does is said where it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Operation {
    /// The first input's bytes, converted only where the output has another type.
    Copy {},
    /// target + α·λ·Σ w·(model − reference); a transfer is its one-term case.
    TaskArithmetic(TaskArithmetic),
    Linear(Linear),
    Ties(Trimmed),
    DareLinear(Trimmed),
    DareTies(Trimmed),
    Della(Trimmed),
    DellaLinear(Trimmed),
    Breadcrumbs(Trimmed),
    BreadcrumbsTies(Trimmed),
    Localize(Trimmed),
    Slerp(Gram),
    Nuslerp(Gram),
    Multislerp(Gram),
    Karcher(Gram),
    ModelStock(Gram),
    Sce(Sce),
    Ram(Elementwise),
    RamplusTl(Elementwise),
    Nearswap(Elementwise),
    Consensus(Elementwise),
    Emr(Elementwise),
    Passthrough(Elementwise),
    ArceeFusion(ArceeFusion),
    ControlRandom(Control),
    ControlPermute(Control),
}

/// A difference of two inputs, or one input that is a vector already.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Position among the tensor's inputs.
    pub model: usize,
    /// Position of what is subtracted from it.
    pub reference: Option<usize>,
    /// Factor.
    pub weight: f64,
}

/// What `prepare` found out about a tensor.
pub type State = Box<dyn Any + Send + Sync>;

/// What `tile` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Computes {
    /// A step Δ from input 0, the target: out = target + α·factor·Δ.
    Step,
    /// The output itself.
    Value,
}

/// An operation on tiles of compute type `R`.
pub trait Method<R: Real>: Send + Sync {
    /// What [`Method::tile`] computes.
    fn computes(&self) -> Computes;

    /// Factor of the step beside α.
    fn factor(&self) -> f64 {
        1.0
    }

    /// Whether [`Method::prepare`] has to see the whole tensor first.
    fn prepares(&self) -> bool {
        false
    }

    /// Looks at the whole tensor, in fixed chunks reduced in index order.
    ///
    /// # Errors
    /// Unreadable input, or a tensor on which the operation is not defined.
    fn prepare(&self, _tensor: &Tensor<'_>, _crew: Crew<'_>) -> Result<State> {
        Ok(Box::new(()))
    }

    /// Computes the elements `tile.first ..` into `out`.
    ///
    /// # Errors
    /// Unreadable input.
    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()>;

    /// The weighted differences that the step is the sum of, where it is nothing else: f64 then repeats what f32
    /// cannot do well.
    fn sum_of(&self) -> Option<&[Term]> {
        None
    }
}

/// The inputs of one tile, widened.
pub struct Tile<'a, R> {
    /// CPU level for kernels.
    pub level: Level,
    /// Index in the tensor of the tile's first element.
    pub first: u64,
    /// One slice per input, all of the tile's length.
    pub inputs: &'a [Vec<R>],
}

impl<R: Real> Tile<'_, R> {
    /// Input `index` of this tile.
    pub fn input(&self, index: usize) -> &[R] {
        &self.inputs[index]
    }
}

/// An operation's parameters together with what its name stands for.
enum Named<'a> {
    Copy,
    TaskArithmetic(&'a TaskArithmetic),
    Linear(&'a Linear),
    Trimmed(&'a Trimmed, Drop, Sum),
    Gram(&'a Gram, Shape),
    Sce(&'a Sce),
    Elementwise(&'a Elementwise, Rule),
    ArceeFusion(&'a ArceeFusion),
    Control(&'a Control, bool),
}

impl Operation {
    fn named(&self) -> Named<'_> {
        match self {
            Operation::Copy {} => Named::Copy,
            Operation::TaskArithmetic(p) => Named::TaskArithmetic(p),
            Operation::Linear(p) => Named::Linear(p),
            Operation::Ties(p) => Named::Trimmed(p, Drop::Smallest, Sum::Elected),
            Operation::DareLinear(p) => Named::Trimmed(p, Drop::Random, Sum::Plain),
            Operation::DareTies(p) => Named::Trimmed(p, Drop::Random, Sum::Elected),
            Operation::Della(p) => Named::Trimmed(p, Drop::Ranked, Sum::Elected),
            Operation::DellaLinear(p) => Named::Trimmed(p, Drop::Ranked, Sum::Plain),
            Operation::Breadcrumbs(p) => Named::Trimmed(p, Drop::Ends, Sum::Plain),
            Operation::BreadcrumbsTies(p) => Named::Trimmed(p, Drop::Ends, Sum::Elected),
            Operation::Localize(p) => Named::Trimmed(p, Drop::Smallest, Sum::Mean),
            Operation::Slerp(p) => Named::Gram(p, Shape::Slerp),
            Operation::Nuslerp(p) => Named::Gram(p, Shape::NuSlerp),
            Operation::Multislerp(p) => Named::Gram(p, Shape::MultiSlerp),
            Operation::Karcher(p) => Named::Gram(p, Shape::Karcher),
            Operation::ModelStock(p) => Named::Gram(p, Shape::ModelStock),
            Operation::Sce(p) => Named::Sce(p),
            Operation::Ram(p) => Named::Elementwise(p, Rule::Ram),
            Operation::RamplusTl(p) => Named::Elementwise(p, Rule::RamPlus),
            Operation::Nearswap(p) => Named::Elementwise(p, Rule::NearSwap),
            Operation::Consensus(p) => Named::Elementwise(p, Rule::Consensus),
            Operation::Emr(p) => Named::Elementwise(p, Rule::Emr),
            Operation::Passthrough(p) => Named::Elementwise(p, Rule::Scale),
            Operation::ArceeFusion(p) => Named::ArceeFusion(p),
            Operation::ControlRandom(p) => Named::Control(p, false),
            Operation::ControlPermute(p) => Named::Control(p, true),
        }
    }

    /// The method for compute type `R`; none for a copy.
    pub fn method<R: Real>(&self) -> Option<Box<dyn Method<R>>> {
        Some(match self.named() {
            Named::Copy => return None,
            Named::TaskArithmetic(p) => Box::new(p.clone()),
            Named::Linear(p) => Box::new(p.clone()),
            Named::Trimmed(p, drop, sum) => Box::new(TrimmedMethod { parameters: p.clone(), drop, sum }),
            Named::Gram(p, shape) => Box::new(GramMethod { parameters: p.clone(), shape }),
            Named::Sce(p) => Box::new(p.clone()),
            Named::Elementwise(p, rule) => Box::new(ElementwiseMethod { parameters: p.clone(), rule }),
            Named::ArceeFusion(p) => Box::new(p.clone()),
            Named::Control(p, permute) => Box::new(ControlMethod { parameters: p.clone(), permute }),
        })
    }

    /// Whether it can be done with that many inputs.
    ///
    /// # Errors
    /// `Kind::Plan` naming what does not fit.
    pub fn check(&self, inputs: usize) -> Result<()> {
        let at_least = |terms: usize, least: usize, most: usize| {
            if (least..=most).contains(&terms) {
                return Ok(());
            }
            Err(Error::new(Kind::Plan, format!("{terms} models, expected {least} to {most}")))
        };
        if inputs == 0 {
            return Err(Error::new(Kind::Plan, "no inputs"));
        }
        match self.named() {
            Named::Copy if inputs == 1 => Ok(()),
            Named::Copy => Err(Error::new(Kind::Plan, format!("a copy has one input, found {inputs}"))),
            Named::TaskArithmetic(p) => check_terms(&p.terms, inputs),
            Named::Linear(p) => at_least(p.terms.len(), 1, usize::MAX).and_then(|()| check_terms(&p.terms, inputs)),
            Named::Trimmed(p, _, _) => p.check(inputs),
            Named::Gram(p, shape) => {
                let (least, most) = match shape {
                    Shape::Slerp | Shape::NuSlerp => (2, 2),
                    Shape::ModelStock => (2, usize::MAX),
                    Shape::MultiSlerp | Shape::Karcher => (1, usize::MAX),
                };
                at_least(p.terms.len(), least, most).and_then(|()| p.check(inputs))
            }
            Named::Sce(p) => at_least(p.terms.len(), 1, usize::MAX).and_then(|()| check_terms(&p.terms, inputs)),
            Named::Elementwise(p, rule) => {
                let most = if matches!(rule, Rule::NearSwap | Rule::Scale) { 1 } else { usize::MAX };
                at_least(p.terms.len(), 1, most).and_then(|()| p.check(inputs))
            }
            Named::ArceeFusion(p) => at_least(p.terms.len(), 1, 1).and_then(|()| check_terms(&p.terms, inputs)),
            Named::Control(p, _) => p.check(inputs),
        }
    }
}

/// Every position exists and every weight is a number.
///
/// # Errors
/// `Kind::Plan` naming the position or the weight.
pub fn check_terms(terms: &[Term], inputs: usize) -> Result<()> {
    for term in terms {
        let out_of_range = [Some(term.model), term.reference].into_iter().flatten().find(|i| *i >= inputs);
        if let Some(index) = out_of_range {
            return Err(Error::new(Kind::Plan, format!("input {index} of {inputs}")));
        }
        if !term.weight.is_finite() {
            return Err(Error::new(Kind::Plan, format!("weight {}", term.weight)));
        }
    }
    Ok(())
}
