//! A LoRA adapter's change of one weight, scale·B·A (Hu et al., 2106.09685), computed tile by tile: the product is
//! never held as a whole.

use std::ops::Range;

use super::chunk::{Chunk, Scratch, Tiles};
use super::dense::Dense;
use super::lines::{Axis, Line, Lines};
use super::part::Part;
use super::source::{Factors, FactorsPart, SourceKind};
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::combine::{add_product, add_scaled};
use crate::kernels::factor::Factor;
use crate::kernels::widen::widen;
use crate::kernels::{Floats, Level, Real, TILE};

/// The two factors of one weight, and the elements of a stored tensor that it is.
pub(crate) struct Lora<'a> {
    /// A, of shape [rank, inputs].
    a: Part<'a>,
    /// B, of shape [outputs, rank].
    b: Part<'a>,
    rank: usize,
    scale: f64,
    /// Elements between the ranks of A and of B.
    ranks: [u64; 2],
    /// The elements, and where the first rank of A and B lies for each.
    lines: Lines,
}

impl<'a> Lora<'a> {
    /// The factors of a weight of `shape`.
    ///
    /// # Errors
    /// `Kind::Format` where their shapes or types do not make up that weight.
    fn whole(wanted: &Wanted<'_, 'a>, Factors(a, b, scale, transposed): &Factors) -> Result<Lora<'a>> {
        let Wanted { name, shape, elements, opened, .. } = *wanted;
        let ((a, a_shape), (b, b_shape)) = (opened.get(a)?, opened.get(b)?);
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            _ => (0, 0),
        };
        let (outputs, inputs) = if *transposed { (columns, rows) } else { (rows, columns) };
        let fits = matches!((a_shape, b_shape), ([r, i], [o, s]) if r == s && *i == inputs && *o == outputs);
        let unfit = || {
            let (name, a, b) = (shown(name), a.dtype, b.dtype);
            let message = format!(
                "the adapter's factors of `{name}` are {a} {a_shape:?} and {b} {b_shape:?}, the weight is {shape:?}"
            );
            Error::new(Kind::Format, message).hint("use the model that the adapter was trained for")
        };
        if !fits || !a.dtype.is_float() || !b.dtype.is_float() {
            return Err(unfit());
        }
        let rank = b_shape[1];
        let (input, output) = (if *transposed { columns } else { 1 }, if *transposed { 1 } else { columns });
        let axes = vec![Axis { n: outputs, to: output, from: [0, rank] }, Axis { n: inputs, to: input, from: [1, 0] }];
        let is_empty = elements == 0 || rank == 0;
        let axes = if elements == 0 { Vec::new() } else { axes };
        let stored = if is_empty { [u64::MAX; 2] } else { [a.elements, b.elements] };
        let lines = Lines::new(0, [0; 2], axes, elements.max(1), stored).map_err(|_| unfit())?;
        Ok(Lora { a, b, rank: rank as usize, scale: *scale, ranks: [inputs, 1], lines })
    }

    /// The factors of one of the weights that a stored tensor has, as the plan says where it lies.
    ///
    /// # Errors
    /// `Kind::Plan` where that goes beyond the tensor or the factors.
    fn part(wanted: &Wanted<'_, 'a>, part: &FactorsPart) -> Result<Lora<'a>> {
        let FactorsPart(a, b, scale, rank, from, ranks, to, rows) = part;
        let ((a, _), (b, _)) = (wanted.opened.get(a)?, wanted.opened.get(b)?);
        let bad = |what: &str| {
            let name = shown(wanted.name);
            Error::new(Kind::Plan, format!("unusable plan: a part of `{name}` that an adapter changes {what}"))
        };
        if !a.dtype.is_float() || !b.dtype.is_float() {
            return Err(bad("has factors that are not floats"));
        }
        let axes: Vec<Axis> = rows.iter().map(|(n, to, from)| Axis { n: *n, to: *to, from: *from }).collect();
        // A line has one element of a factor against several of the other.
        if axes.iter().any(|axis| axis.from[0] > 0 && axis.from[1] > 0) {
            return Err(bad("has a dimension of inputs and outputs"));
        }
        let stored = [a.elements, b.elements];
        let last = |factor: usize| from[factor].checked_add(rank.saturating_sub(1).checked_mul(ranks[factor])?);
        let behind = [last(0), last(1)].map(|last| last.unwrap_or(u64::MAX));
        Lines::new(*to, behind, axes.clone(), wanted.elements, stored).map_err(bad)?;
        let lines = Lines::new(*to, *from, axes, wanted.elements, stored).map_err(bad)?;
        Ok(Lora { a, b, rank: *rank as usize, scale: *scale, ranks: *ranks, lines })
    }
}

/// A weight with an adapter's change on top, or that change alone.
struct Adapted<'a> {
    loras: Vec<Lora<'a>>,
    base: Option<Box<dyn Storage + 'a>>,
    elements: u64,
}

/// The factors' bytes, in memory.
struct LoraChunk<'a> {
    lora: &'a Lora<'a>,
    a: &'a [u8],
    b: &'a [u8],
}

struct AdaptedChunk<'a> {
    loras: Vec<LoraChunk<'a>>,
    first: u64,
    base: Option<Chunk<'a>>,
}

/// The factors that an adapter has of a tensor.
#[derive(Clone, Copy)]
pub(crate) enum Found<'w> {
    /// Of all of it.
    Whole(&'w Factors),
    /// Of some of the weights that it is made of.
    Parts(&'w [FactorsPart]),
}

/// Of a tensor of an adapter: where its factors are, if it has any of this tensor. None where the source is none.
///
/// # Errors
/// `Kind::Plan` where it is added to something that is not a checkpoint.
pub(crate) fn factors<'w>(wanted: &Wanted<'w, '_>) -> Result<Option<Option<Found<'w>>>> {
    if wanted.source.kind != SourceKind::Lora {
        return Ok(None);
    }
    wanted.base()?;
    let parts = wanted.source.parts.get(wanted.name).map(|parts| Found::Parts(parts));
    Ok(Some(parts.or_else(|| wanted.source.factors.get(wanted.name).map(Found::Whole))))
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
    factors: Option<Found<'_>>,
    base: Option<Box<dyn Storage + 'a>>,
) -> Result<Box<dyn Storage + 'a>> {
    let loras = match factors {
        Some(Found::Whole(factors)) => vec![Lora::whole(wanted, factors)?],
        Some(Found::Parts(parts)) => parts.iter().map(|part| Lora::part(wanted, part)).collect::<Result<_>>()?,
        None => {
            let name = shown(wanted.name);
            return Err(Error::new(Kind::Plan, format!("the adapter has no factors of `{name}`")));
        }
    };
    Ok(Box::new(Adapted { loras, base, elements: wanted.elements }))
}

impl<'a> Adapted<'a> {
    /// The factors that change anything in `elements`, in memory.
    fn factors<'s>(&'s self, elements: &Range<u64>, buffers: &'s mut [Vec<u8>; 4]) -> Result<Vec<LoraChunk<'s>>> {
        let [a, b, one, _] = buffers;
        let loras: Vec<&Lora<'a>> = self.loras.iter().filter(|lora| lora.lines.touches(elements)).collect();
        if let [lora] = loras.as_slice() {
            let (a, b) = (lora.a.read(0..lora.a.elements, a)?, lora.b.read(0..lora.b.elements, b)?);
            return Ok(vec![LoraChunk { lora, a, b }]);
        }
        // One behind the other: how many there are is not known here.
        a.clear();
        b.clear();
        for lora in &loras {
            a.extend_from_slice(lora.a.read(0..lora.a.elements, one)?);
            b.extend_from_slice(lora.b.read(0..lora.b.elements, one)?);
        }
        let (mut a, mut b) = (a.as_slice(), b.as_slice());
        let mut cut = |lora: &'s Lora<'a>| {
            let own = (a.split_at(lora.a.bytes() as usize), b.split_at(lora.b.bytes() as usize));
            (a, b) = (own.0 .1, own.1 .1);
            LoraChunk { lora, a: own.0 .0, b: own.1 .0 }
        };
        Ok(loras.into_iter().map(&mut cut).collect())
    }
}

impl Storage for Adapted<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.base.as_ref().map_or_else(Vec::new, |base| base.parts());
        parts.extend(self.loras.iter().flat_map(|lora| [lora.a, lora.b]));
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
        let (buffers, under) = scratch.layers();
        let (first, loras) = (elements.start, self.factors(&elements, buffers)?);
        let base = self.base.as_ref().map(|base| base.open(elements, under)).transpose()?;
        Ok(Chunk::Tiles(Box::new(AdaptedChunk { loras, first, base })))
    }
}

impl AdaptedChunk<'_> {
    fn compute<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
        let mut finite = match &self.base {
            Some(base) => base.tile(level, at, out),
            None => {
                out.fill(R::ZERO);
                true
            }
        };
        for lora in &self.loras {
            finite &= lora.add(level, self.first + at as u64, out);
        }
        finite
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
    /// Adds scale·B·A of the elements from `first` of the tensor on to `out`; true if all factors are finite.
    fn add<R: Real>(&self, level: Level, first: u64, out: &mut [R]) -> bool {
        let (mut finite, range) = (true, first..first + out.len() as u64);
        self.lora.lines.within(&range, &mut |line| finite &= self.line(level, &line, (line.to - first) as usize, out));
        finite
    }

    /// The same of a line, which begins at element `at` of `out`.
    fn line<R: Real>(&self, level: Level, line: &Line, at: usize, out: &mut [R]) -> bool {
        let Lora { a, b, rank, scale, ranks, .. } = self.lora;
        let (mut sum, mut part) = ([R::ZERO; TILE], [R::ZERO; TILE]);
        let (sum, part) = (&mut sum[..line.n], &mut part[..line.n]);
        let (a, b) = ((a, self.a, line.along[0]), (b, self.b, line.along[1]));
        let mut finite = true;
        for k in 0..*rank as u64 {
            let from = [0, 1].map(|factor| (line.from[factor] + k * ranks[factor]) as usize);
            // B stands still along a line of inputs, A along one of outputs.
            let factor = if line.along[1] == 0 {
                finite &= values(level, a, from[0], part);
                one(level, b, from[1])
            } else {
                finite &= values(level, b, from[1], part);
                one(level, a, from[0])
            };
            add_product(level, part, factor, sum);
        }
        if line.step == 1 {
            add_scaled(level, sum, Factor::new(*scale), &mut out[at..at + line.n]);
            return finite;
        }
        let places = (at..).step_by(line.step);
        part.iter_mut().zip(places.clone()).for_each(|(slot, place)| *slot = out[place]);
        add_scaled(level, sum, Factor::new(*scale), part);
        part.iter().zip(places).for_each(|(value, place)| out[place] = *value);
        finite
    }
}

/// A factor: where it is stored, its bytes, and the elements between two neighbours.
type Stored<'s> = (&'s Part<'s>, &'s [u8], u64);

fn values<R: Real>(level: Level, (stored, bytes, step): Stored<'_>, from: usize, out: &mut [R]) -> bool {
    if step <= 1 {
        return run(level, stored, bytes, from, out);
    }
    let mut finite = true;
    for (i, slot) in out.iter_mut().enumerate() {
        finite &= run(level, stored, bytes, from + i * step as usize, std::slice::from_mut(slot));
    }
    finite
}

fn run<R: Real>(level: Level, stored: &Part<'_>, bytes: &[u8], from: usize, out: &mut [R]) -> bool {
    let size = stored.dtype.size();
    widen(level, stored.dtype, &bytes[from * size..(from + out.len()) * size], out)
}

fn one<R: Real>(level: Level, (stored, bytes, _): Stored<'_>, at: usize) -> R {
    let mut value = [R::ZERO];
    run(level, stored, bytes, at, &mut value);
    value[0]
}
