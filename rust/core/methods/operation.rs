//! What can be done to a tensor: every method by the name that plans have for it.

use serde::Deserialize;

use super::arcee_fusion::ArceeFusion;
use super::control_vector::{ControlVector, Made};
use super::elementwise::{Elementwise, Rule};
use super::fisher::Fisher;
use super::gram::{Gram, Shape};
use super::linear::Linear;
use super::method::{Method, Parameters};
use super::noised::Noised;
use super::sar::Sar;
use super::sce::Sce;
use super::task_arithmetic::TaskArithmetic;
use super::trim::parameters::{Drop, Trim};
use crate::error::{Error, Kind, Result};
use crate::kernels::masked_sum::Sum;
use crate::kernels::Real;

macro_rules! operations {
    ($($kind:ident: $parameters:ident = $variant:expr,)*) => {
        /// An operation as the plan names it, in snake case.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
        #[allow(missing_docs)]
        pub(crate) enum Operation {
            /// The first input's bytes, converted only where the output has another type.
            Copy {
                /// The input is a stored tensor by its own name, whatever logical tensor it is a part of.
                #[serde(default)]
                stored: bool,
            },
            $($kind($parameters),)*
        }

        impl Operation {
            /// The method for compute type `R`; none for a copy.
            pub(crate) fn method<R: Real>(&self) -> Option<Box<dyn Method<R>>> {
                match self {
                    Operation::Copy { .. } => None,
                    $(Operation::$kind(parameters) => Some(parameters.method($variant)),)*
                }
            }

            /// Whether f32 holds its factors, as far as the result depends on nothing else.
            pub(crate) fn is_single(&self) -> bool {
                match self {
                    Operation::Copy { .. } => true,
                    $(Operation::$kind(parameters) => parameters.is_single(&$variant),)*
                }
            }

            /// Whether its input is a stored tensor by its own name.
            pub(crate) fn is_stored(&self) -> bool {
                matches!(self, Operation::Copy { stored: true })
            }

            /// Whether it can be done with that many inputs.
            ///
            /// # Errors
            /// `Kind::Plan` naming what does not fit.
            pub(crate) fn check(&self, inputs: usize) -> Result<()> {
                match self {
                    _ if inputs == 0 => Err(Error::new(Kind::Plan, "no inputs")),
                    Operation::Copy { .. } if inputs == 1 => Ok(()),
                    Operation::Copy { .. } => Err(Error::new(Kind::Plan, format!("a copy has one input, found {inputs}"))),
                    $(Operation::$kind(parameters) => parameters.check($variant, inputs),)*
                }
            }
        }
    };
}

// A line per method: its name in a plan, its parameters, and the variant of them that the name stands for.
operations! {
    TaskArithmetic: TaskArithmetic = (),
    Linear: Linear = (),
    Ties: Trim = (Drop::Smallest, Sum::Elected),
    DareLinear: Trim = (Drop::Random, Sum::Plain),
    DareTies: Trim = (Drop::Random, Sum::Elected),
    Della: Trim = (Drop::Ranked, Sum::Elected),
    DellaLinear: Trim = (Drop::Ranked, Sum::Plain),
    Breadcrumbs: Trim = (Drop::Outliers, Sum::Plain),
    BreadcrumbsTies: Trim = (Drop::Outliers, Sum::Elected),
    Localize: Trim = (Drop::Smallest, Sum::Mean),
    Slerp: Gram = Shape::Slerp,
    Nuslerp: Gram = Shape::NuSlerp,
    Multislerp: Gram = Shape::MultiSlerp,
    Karcher: Gram = Shape::Karcher,
    ModelStock: Gram = Shape::ModelStock,
    Sce: Sce = (),
    Fisher: Fisher = (),
    Sar: Sar = (),
    Ram: Elementwise = Rule::Ram,
    RamplusTl: Elementwise = Rule::RamPlus,
    Nearswap: Elementwise = Rule::NearSwap,
    Consensus: Elementwise = Rule::Consensus,
    Emr: Elementwise = Rule::Emr,
    Passthrough: Elementwise = Rule::Scale,
    ArceeFusion: ArceeFusion = (),
    Noised: Noised = (),
    ControlRandom: ControlVector = Made::Drawn,
    ControlPermute: ControlVector = Made::Permuted,
}
