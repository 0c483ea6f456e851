//! A LoRA adapter's change of one weight, scale·B·A (Hu et al., 2106.09685), computed tile by tile: the product is
//! never held as a whole.

use std::ops::Range;

use crate::error::{Error, Kind, Result};
use crate::kernels::combine::add_scaled;
use crate::kernels::widen::widen;
use crate::kernels::{Level, Real, TILE};
use crate::storage::sparse::Stored;

/// The two factors of one weight.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// A, of shape [rank, inputs].
    a: Stored<'a>,
    /// B, of shape [outputs, rank].
    b: Stored<'a>,
    rank: usize,
    /// Length of the weight's last dimension.
    columns: usize,
    scale: f64,
    /// The weight is stored as [inputs, outputs].
    transposed: bool,
}

/// The factors' bytes, in memory.
pub struct LoraChunk<'a> {
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
    pub fn new(
        name: &str,
        shape: &[u64],
        a: (Stored<'a>, &[u64]),
        b: (Stored<'a>, &[u64]),
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
                name.escape_debug(),
                a.dtype,
                b.dtype
            );
            return Err(Error::new(Kind::Format, message).hint("use the model that the adapter was trained for"));
        }
        let (rank, columns) = (b_shape[1] as usize, columns as usize);
        Ok(Lora { a, b, rank, columns, scale, transposed })
    }

    /// Bytes of both factors.
    pub fn bytes(&self) -> u64 {
        [self.a, self.b].iter().map(|stored| stored.elements * stored.dtype.size() as u64).sum()
    }

    /// Brings both factors into memory for `elements` of the weight.
    ///
    /// # Errors
    /// Where the file was truncated or cannot be read.
    pub fn open<'s>(
        &'s self,
        elements: Range<u64>,
        a_scratch: &'s mut Vec<u8>,
        b_scratch: &'s mut Vec<u8>,
    ) -> Result<LoraChunk<'s>> {
        let all = |stored: &Stored<'_>| stored.range(0..stored.elements);
        let a = self.a.file.read(all(&self.a), a_scratch)?;
        let b = self.b.file.read(all(&self.b), b_scratch)?;
        Ok(LoraChunk { lora: self, a, b, first: elements.start })
    }
}

impl LoraChunk<'_> {
    /// Adds scale·B·A of the elements from `at` of this chunk on to `out`; true if all factors are finite.
    pub fn add<R: Real>(&self, level: Level, at: usize, out: &mut [R]) -> bool {
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
                add_scaled(level, part, factor, sum);
            }
            add_scaled(level, sum, R::from_f64(scale), &mut out[done..done + n]);
            done += n;
        }
        finite
    }

    fn inputs(&self) -> usize {
        self.lora.a.elements as usize / self.lora.rank.max(1)
    }
}

fn run<R: Real>(level: Level, stored: &Stored<'_>, bytes: &[u8], from: usize, out: &mut [R]) -> bool {
    let size = stored.dtype.size();
    widen(level, stored.dtype, &bytes[from * size..(from + out.len()) * size], out)
}

fn strided<R: Real>(level: Level, stored: &Stored<'_>, bytes: &[u8], from: usize, step: usize, out: &mut [R]) -> bool {
    let mut finite = true;
    for (i, slot) in out.iter_mut().enumerate() {
        finite &= run(level, stored, bytes, from + i * step, std::slice::from_mut(slot));
    }
    finite
}

fn one<R: Real>(level: Level, stored: &Stored<'_>, bytes: &[u8], at: usize) -> R {
    let mut value = [R::ZERO];
    run(level, stored, bytes, at, &mut value);
    value[0]
}
