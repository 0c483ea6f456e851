//! A LoRA adapter's change of one weight, scale·B·A (Hu et al., 2106.09685), computed tile by tile: the product is
//! never held as a whole.

use std::ops::Range;

use super::chunk::{Chunk, Scratch, Tiles};
use super::dense::Dense;
use super::part::Part;
use super::source::{Factors, SourceKind};
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::combine::{add_product, add_scaled};
use crate::kernels::factor::Factor;
use crate::kernels::widen::widen;
use crate::kernels::{Floats, Level, Real, TILE};

/// The two factors of one weight.
#[derive(Clone, Copy)]
pub(crate) struct Lora<'a> {
    /// A, of shape [rank, inputs].
    a: Part<'a>,
    /// B, of shape [outputs, rank].
    b: Part<'a>,
    rank: usize,
    /// Length of the weight's last dimension.
    columns: usize,
    scale: f64,
    /// The weight is stored as [inputs, outputs].
    transposed: bool,
}

/// The factors' bytes, in memory.
pub(crate) struct LoraChunk<'a> {
    lora: &'a Lora<'a>,
    a: &'a [u8],
    b: &'a [u8],
    first: u64,
}

impl<'a> Lora<'a> {
    /// The factors of a weight of `shape`.
    ///
    /// # Errors
    /// `Kind::Format` where their shapes or types do not make up that weight.
    pub(crate) fn new(
        name: &str,
        shape: &[u64],
        a: (Part<'a>, &[u64]),
        b: (Part<'a>, &[u64]),
        scale: f64,
        transposed: bool,
    ) -> Result<Lora<'a>> {
        let ((a, a_shape), (b, b_shape)) = (a, b);
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            _ => (0, 0),
        };
        let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
        let fits = matches!((a_shape, b_shape), ([r, i], [o, s]) if r == s && *i == inputs && *o == outputs);
        if !fits || !a.dtype.is_float() || !b.dtype.is_float() {
            let message = format!(
                "the adapter's factors of `{}` are {} {a_shape:?} and {} {b_shape:?}, the weight is {shape:?}",
                shown(name),
                a.dtype,
                b.dtype
            );
            return Err(Error::new(Kind::Format, message).hint("use the model that the adapter was trained for"));
        }
        let (rank, columns) = (b_shape[1] as usize, columns as usize);
        Ok(Lora { a, b, rank, columns, scale, transposed })
    }
}

/// A weight with an adapter's change on top, or that change alone.
struct Adapted<'a> {
    lora: Lora<'a>,
    base: Option<Box<dyn Storage + 'a>>,
    elements: u64,
}

struct AdaptedChunk<'a> {
    lora: LoraChunk<'a>,
    base: Option<Chunk<'a>>,
}

/// Of a tensor of an adapter: where its factors are, if it has any of this tensor. None where the source is none.
///
/// # Errors
/// `Kind::Plan` where it is added to something that is not a checkpoint.
pub(crate) fn factors<'w>(wanted: &Wanted<'w, '_>) -> Result<Option<Option<&'w Factors>>> {
    if wanted.source.kind != SourceKind::Lora {
        return Ok(None);
    }
    wanted.base()?;
    Ok(Some(wanted.source.factors.get(wanted.name)))
}

/// The tensor of an adapter that takes the place of the base's, if it has one for this.
///
/// # Errors
/// It is not there, or has another shape.
pub(crate) fn whole<'a>(wanted: &Wanted<'_, 'a>) -> Result<Option<Dense<'a>>> {
    let stored = wanted.source.whole.get(wanted.name);
    stored.map(|name| Dense::find(&Wanted { name, ..*wanted })).transpose()
}

/// The change that these factors make, on top of `base` or alone.
///
/// # Errors
/// Factors that are not there, or do not make up a weight of that shape.
pub(crate) fn over<'a>(
    wanted: &Wanted<'_, 'a>,
    factors: Option<&Factors>,
    base: Option<Box<dyn Storage + 'a>>,
) -> Result<Box<dyn Storage + 'a>> {
    let Wanted { name, shape, elements, opened, .. } = *wanted;
    let Some(Factors(a, b, scale, transposed)) = factors else {
        return Err(Error::new(Kind::Plan, format!("the adapter has no factors of `{}`", shown(name))));
    };
    let lora = Lora::new(name, shape, opened.get(a)?, opened.get(b)?, *scale, *transposed)?;
    Ok(Box::new(Adapted { lora, base, elements }))
}

impl Storage for Adapted<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.base.as_ref().map_or_else(Vec::new, |base| base.parts());
        parts.extend([self.lora.a, self.lora.b]);
        parts
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        // Alone it leaves the compute type to the target.
        self.base.as_ref().map_or(Dtype::BF16, |base| base.dtype())
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let ([a, b, ..], under) = scratch.layers();
        let Lora { a: first, b: second, .. } = &self.lora;
        let lora = LoraChunk {
            lora: &self.lora,
            a: first.read(0..first.elements, a)?,
            b: second.read(0..second.elements, b)?,
            first: elements.start,
        };
        let base = self.base.as_ref().map(|base| base.open(elements, under)).transpose()?;
        Ok(Chunk::Tiles(Box::new(AdaptedChunk { lora, base })))
    }
}

impl AdaptedChunk<'_> {
    fn compute<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        let finite = match &self.base {
            Some(base) => base.tile(level, at, out),
            None => {
                out.fill(R::ZERO);
                true
            }
        };
        self.lora.add(level, at, out) && finite
    }
}

impl Tiles for AdaptedChunk<'_> {
    fn tile(&self, level: Level, at: usize, out: Floats<'_>) -> bool {
        match out {
            Floats::F32(out) => self.compute(level, at, out),
            Floats::F64(out) => self.compute(level, at, out),
        }
    }
}

impl LoraChunk<'_> {
    /// Adds scale·B·A of the elements from `at` of this chunk on to `out`; true if all factors are finite.
    pub(crate) fn add<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        let Lora { rank, columns, scale, transposed, .. } = *self.lora;
        let mut finite = true;
        let mut done = 0;
        let (mut sum, mut part) = ([R::ZERO; TILE], [R::ZERO; TILE]);
        while done < out.len() {
            let element = self.first as usize + at + done;
            let (row, column) = (element / columns, element % columns);
            let n = (out.len() - done).min(columns - column);
            let (sum, part) = (&mut sum[..n], &mut part[..n]);
            sum.fill(R::ZERO);
            for k in 0..rank {
                let factor = if transposed {
                    finite &= strided(level, &self.lora.b, self.b, column * rank + k, rank, part);
                    one(level, &self.lora.a, self.a, k * self.inputs() + row)
                } else {
                    finite &= run(level, &self.lora.a, self.a, k * columns + column, part);
                    one(level, &self.lora.b, self.b, row * rank + k)
                };
                add_product(level, part, factor, sum);
            }
            add_scaled(level, sum, Factor::new(scale), &mut out[done..done + n]);
            done += n;
        }
        finite
    }

    fn inputs(&self) -> usize {
        self.lora.a.elements as usize / self.lora.rank.max(1)
    }
}

fn run<R: Real>(level: Level, stored: &Part<'_>, bytes: &[u8], from: usize, out: &mut [R]) -> bool {
    let size = stored.dtype.size();
    widen(level, stored.dtype, &bytes[from * size..(from + out.len()) * size], out)
}

fn strided<R: Real>(level: Level, stored: &Part<'_>, bytes: &[u8], from: usize, step: usize, out: &mut [R]) -> bool {
    let mut finite = true;
    for (i, slot) in out.iter_mut().enumerate() {
        finite &= run(level, stored, bytes, from + i * step, std::slice::from_mut(slot));
    }
    finite
}

fn one<R: Real>(level: Level, stored: &Part<'_>, bytes: &[u8], at: usize) -> R {
    let mut value = [R::ZERO];
    run(level, stored, bytes, at, &mut value);
    value[0]
}
