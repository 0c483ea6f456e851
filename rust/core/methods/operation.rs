//! What can be done to a tensor: every method by the name that plans have for it.

use serde::Deserialize;

use super::arcee_fusion::ArceeFusion;
use super::control_vector::{Control, ControlMethod};
use super::elementwise::{Elementwise, ElementwiseMethod, Rule};
use super::gram::{Gram, GramMethod, Shape};
use super::linear::Linear;
use super::method::{check_terms, Method};
use super::sce::Sce;
use super::task_arithmetic::TaskArithmetic;
use super::trim::parameters::{Drop, Trimmed, TrimmedMethod};
use crate::error::{Error, Kind, Result};
use crate::kernels::masked_sum::Sum;
use crate::kernels::Real;

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
            Operation::Breadcrumbs(p) => Named::Trimmed(p, Drop::Outliers, Sum::Plain),
            Operation::BreadcrumbsTies(p) => Named::Trimmed(p, Drop::Outliers, Sum::Elected),
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
