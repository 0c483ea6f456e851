//! What a merge method is: `prepare` (look at the whole tensor: thresholds, norms, dots) and then `tile`; most have
//! nothing to prepare.

use std::any::Any;

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::kernels::Real;
use crate::tensor::{Tensor, Tile};
use crate::threads::Threads;

/// A difference of two inputs, or one input that is a vector already.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Term {
    /// Position among the tensor's inputs.
    pub model: usize,
    /// Position of what is subtracted from it.
    pub reference: Option<usize>,
    /// Factor.
    pub weight: f64,
}

/// What `prepare` found out about a tensor.
pub(crate) type State = Box<dyn Any + Send + Sync>;

/// What `tile` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Computes {
    /// A step Δ from input 0, the target: out = target + α·factor·Δ.
    Step,
    /// The output itself.
    Value,
}

/// The parameters of a method, as a plan has them.
pub(crate) trait Parameters {
    /// The variant that the method's name stands for: several methods may have the same parameters.
    type Variant;

    /// Whether the method can be done with that many inputs.
    ///
    /// # Errors
    /// `Kind::Plan` naming the parameter that does not fit.
    fn check(&self, variant: Self::Variant, inputs: usize) -> Result<()>;

    /// Whether f32 holds the factors of a result that is nothing but a sum of products: with 0.3 as f32 has it, sums
    /// half way between two numbers of the output go the wrong way.
    fn is_single(&self, _variant: &Self::Variant) -> bool {
        true
    }

    /// The method for compute type `R`.
    fn method<R: Real>(&self, variant: Self::Variant) -> Box<dyn Method<R>>;
}

/// An operation on tiles of compute type `R`.
pub(crate) trait Method<R: Real>: Send + Sync {
    /// What [`Method::tile`] computes.
    fn computes(&self) -> Computes;

    /// Factor of the step, next to α.
    fn factor(&self) -> f64 {
        1.0
    }

    /// Whether [`Method::prepare`] has to see the whole tensor first.
    fn prepares(&self) -> bool {
        false
    }

    /// Bytes that [`Method::prepare`] keeps of a tensor of this shape, as far as they grow with it.
    fn keeps(&self, _shape: &[u64]) -> u64 {
        0
    }

    /// Looks at the whole tensor, in fixed chunks reduced in index order.
    ///
    /// # Errors
    /// Unreadable input, or a tensor on which the operation is not defined.
    fn prepare(&self, _tensor: &Tensor<'_>, _crew: Threads<'_>) -> Result<State> {
        Ok(Box::new(()))
    }

    /// Computes the elements `tile.first ..` into `out`.
    ///
    /// # Errors
    /// Unreadable input.
    fn tile(&self, tensor: &Tensor<'_>, state: &State, tile: &Tile<'_, R>, out: &mut [R]) -> Result<()>;

    /// Elements of a tile that matter to none of the models, and are weighed by something else.
    fn unweighted(&self, _tile: &Tile<'_, R>) -> u64 {
        0
    }

    /// The weighted differences that the step is the sum of, where it is nothing else: f64 then repeats what f32
    /// cannot do well.
    fn sum_of(&self) -> Option<&[Term]> {
        None
    }

    /// The weighted models that the value is the sum of, in their order, where it is nothing else.
    fn value_of(&self) -> Option<&[Term]> {
        None
    }
}

/// Every position exists and every weight is a number.
///
/// # Errors
/// `Kind::Plan` naming the position or the weight.
pub(crate) fn check_terms(terms: &[Term], inputs: usize) -> Result<()> {
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

/// As many models as the method takes.
///
/// # Errors
/// `Kind::Plan` naming the count.
pub(crate) fn check_count<T>(terms: &[T], least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&terms.len()) {
        return Ok(());
    }
    Err(Error::new(Kind::Plan, format!("{} models, expected {least} to {most}", terms.len())))
}
