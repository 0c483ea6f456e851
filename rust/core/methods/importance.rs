//! Models with a map that says how much each of their elements matters.

use serde::Deserialize;

use super::difference::{Loan, Pair};
use super::method::{check_count, Term};
use crate::error::{shown, shown_path, Error, Kind, Result};
use crate::kernels::importance::any_negative;
use crate::kernels::Real;
use crate::methods::method::check_terms;
use crate::tensor::{Tensor, Tile};

/// One model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weighed {
    /// Position among the inputs.
    pub model: usize,
    /// Position of what is subtracted.
    pub reference: Option<usize>,
    /// Factor.
    pub weight: f64,
    /// Position of its map.
    #[serde(default)]
    pub importance: Option<usize>,
    /// What every element matters where there is no map.
    #[serde(default)]
    pub default_importance: Option<f64>,
    /// Share of its changes that is kept.
    #[serde(default = "one")]
    pub density: f64,
}

fn one() -> f64 {
    1.0
}

impl Weighed {
    /// Where its difference comes from.
    pub(crate) fn pair(&self) -> Pair {
        (self.model, self.reference)
    }

    /// How much the elements of a tile matter.
    ///
    /// # Errors
    /// Something in the map is below zero.
    pub(crate) fn importance<'t, R: Real>(
        &self,
        tensor: &Tensor<'_>,
        tile: &'t Tile<'_, R>,
        own: &'t mut Option<Loan<R>>,
    ) -> Result<&'t [R]> {
        let map = self.map(tile, own);
        self.hold(tensor, tile, self.importance.is_some() && any_negative(tile.level, map))?;
        Ok(map)
    }

    /// The same without a look at it.
    pub(crate) fn map<'t, R: Real>(&self, tile: &'t Tile<'_, R>, own: &'t mut Option<Loan<R>>) -> &'t [R] {
        match self.importance {
            Some(index) => tile.input(index),
            None => {
                let value = R::from_f64(self.default_importance.unwrap_or(1.0));
                let filled = Loan::one(tile.input(self.model).len(), |out| out.fill(value));
                &own.insert(filled)[0]
            }
        }
    }

    /// Return if nothing in the map of a tile is below zero, as was seen.
    ///
    /// # Errors
    /// Something is.
    pub(crate) fn hold<R: Real>(&self, tensor: &Tensor<'_>, tile: &Tile<'_, R>, is_negative: bool) -> Result<()> {
        match self.importance {
            Some(index) if is_negative => Err(negative(tensor, tile, index)),
            _ => Ok(()),
        }
    }
}

/// The models are there, and each has exactly one measure of what matters.
///
/// # Errors
/// `Kind::Plan` naming what does not fit.
pub(crate) fn check_weighed(terms: &[Weighed], inputs: usize) -> Result<()> {
    check_count(terms, 1, usize::MAX)?;
    for term in terms {
        let plain = Term { model: term.model, reference: term.reference, weight: term.weight };
        check_terms(&[plain], inputs)?;
        let map = match (term.importance, term.default_importance) {
            (Some(index), None) => index < inputs,
            (None, Some(value)) => value.is_finite() && value >= 0.0,
            _ => false,
        };
        if !map || !(0.0..=1.0).contains(&term.density) {
            return Err(Error::new(Kind::Plan, format!("parameters out of range: {term:?}")));
        }
    }
    Ok(())
}

fn negative<R: Real>(tensor: &Tensor<'_>, tile: &Tile<'_, R>, index: usize) -> Error {
    let map = tile.input(index);
    let at = map.iter().position(|x| *x < R::ZERO).unwrap_or_default();
    let parts = tensor.inputs[index].storage().parts();
    let from = parts.first().map(|part| format!(" in `{}`", shown_path(part.file.path())));
    let message = format!(
        "the importance of `{}`{} is negative: {} at element {}",
        shown(tensor.name),
        from.unwrap_or_default(),
        map[at].to_f64(),
        tile.first + at as u64,
    );
    Error::new(Kind::Format, message).hint(
        "importance is a mean of squares: make the map again (`taskvec importance`), or leave the tensor out (`exclude`)",
    )
}
