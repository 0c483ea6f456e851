//! One tile of one job: its inputs are widened, the operation is applied, and the result is narrowed and measured for
//! every output.

use std::sync::Arc;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::kernels::philox::Stream;
use crate::kernels::stats::StepSums;
use crate::kernels::{Level, Real, TILE};
use crate::measure::{NonFinite, Survival};
use crate::methods::method::{Computes, Method, State};
use crate::run::program::{Arithmetic, Program};
use crate::storage::chunk::Chunk;
use crate::storage::Storage;
use crate::tensor::Tensor;

mod moved;
mod rounded;
mod through;
pub(crate) mod values;

/// A smaller tensor's sums are all exact: one number less exact would show in them.
const SHORT: u64 = 1 << 16;

/// What is the same for all tiles of one job.
pub(crate) struct Place<'a> {
    pub program: &'a Program<'a>,
    pub tensor: Tensor<'a>,
    pub state: Arc<State>,
    pub non_finite: &'a NonFinite,
    /// The draws of stochastic rounding.
    pub draws: Option<Stream>,
}

impl<'a> Place<'a> {
    /// A job whose `prepare` is done.
    pub(crate) fn new(program: &'a Program<'a>, non_finite: &'a NonFinite, stochastic: bool) -> Self {
        let draws = stochastic.then(|| Stream::new(program.seed, "round", program.job.logical().0));
        Place { program, tensor: program.tensor(), state: program.state(), non_finite, draws }
    }

    /// Whether these elements may be rounded and measured in one loop.
    fn is_short(&self, span: Span) -> bool {
        let target = self.program.job.target();
        let plain = target.plain() == Some(Dtype::BF16);
        let whole = self.program.taken.is_none();
        span.counted && whole && self.draws.is_none() && plain && target.elements >= SHORT
    }
}

/// Which elements a tile holds.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// Index in the tensor of its first element.
    pub first: u64,
    /// Where that stands in the chunks.
    pub at: usize,
    /// Elements; at most [`TILE`].
    pub n: usize,
    /// Whether it is measured: an element that a block boundary cuts is computed on both sides of it.
    pub counted: bool,
}

/// Where one output of a tile goes.
pub(crate) struct Target<'b> {
    pub alpha: f64,
    /// Index of the output.
    pub output: usize,
    /// The bytes of the tile's elements.
    pub bytes: &'b mut [u8],
    /// Gets what became of the step.
    pub survival: Option<&'b mut Survival>,
}

/// One thread's tiles, reused from tile to tile.
pub(crate) struct Tiler {
    level: Level,
    narrow: Tiles<f32>,
    wide: Tiles<f64>,
    draws: Vec<u32>,
    sums: Vec<StepSums>,
    mask: Vec<bool>,
}

/// Widened inputs and results of one tile.
#[derive(Default)]
struct Tiles<R> {
    inputs: Vec<Vec<R>>,
    step: Vec<R>,
    out: Vec<R>,
    /// The target as the output's type holds it, where it is not stored so.
    rounded: Vec<R>,
}

impl<R: Real> Tiles<R> {
    fn new() -> Self {
        Tiles { inputs: Vec::new(), step: vec![R::ZERO; TILE], out: vec![R::ZERO; TILE], rounded: Vec::new() }
    }

    /// Widens the inputs of `n` elements from `at` on; false if any is not finite.
    fn load(&mut self, level: Level, chunks: &[Chunk<'_>], at: usize, n: usize, mut bad: impl FnMut(usize, &[R])) {
        self.inputs.resize_with(chunks.len(), Vec::new);
        for (index, (tile, chunk)) in self.inputs.iter_mut().zip(chunks).enumerate() {
            tile.resize(n, R::ZERO);
            if !chunk.tile(level, at, tile) {
                bad(index, tile);
            }
        }
    }
}

impl Tiler {
    /// Buffers for tiles computed at `level`.
    pub(crate) fn new(level: Level) -> Self {
        Tiler { level, narrow: Tiles::new(), wide: Tiles::new(), draws: Vec::new(), sums: Vec::new(), mask: Vec::new() }
    }

    /// Whether the job's operation is a step from its target, which is measured.
    pub(crate) fn steps(program: &Program<'_>) -> bool {
        match &program.arithmetic {
            Arithmetic::Narrow(method) => method.computes() == Computes::Step,
            Arithmetic::Wide(method) => method.computes() == Computes::Step,
            Arithmetic::Convert { .. } | Arithmetic::Raw | Arithmetic::Aside => false,
        }
    }

    /// Does something in the type that a job computes in, with the buffers for it.
    fn in_type(&mut self, arithmetic: &Arithmetic, work: impl Work) -> Result<()> {
        match arithmetic {
            Arithmetic::Narrow(method) => self.narrow(Some(method.as_ref()), work),
            Arithmetic::Convert { narrow: true } => self.narrow(None, work),
            Arithmetic::Wide(method) => self.wide(Some(method.as_ref()), work),
            Arithmetic::Convert { narrow: false } | Arithmetic::Raw | Arithmetic::Aside => self.wide(None, work),
        }
    }

    fn narrow(&mut self, method: Option<&dyn Method<f32>>, work: impl Work) -> Result<()> {
        let mut tiles = std::mem::take(&mut self.narrow);
        let done = work.run(self, method, &mut tiles);
        self.narrow = tiles;
        done
    }

    fn wide(&mut self, method: Option<&dyn Method<f64>>, work: impl Work) -> Result<()> {
        let mut tiles = std::mem::take(&mut self.wide);
        let done = work.run(self, method, &mut tiles);
        self.wide = tiles;
        done
    }
}

/// What is done with a tile, in either type: rounding it into an output's bytes, or handing out its values.
trait Work {
    /// Does it; `method` is the operation, unless the input is only converted.
    ///
    /// # Errors
    /// Unreadable input.
    fn run<R: Real>(self, tiler: &mut Tiler, method: Option<&dyn Method<R>>, tiles: &mut Tiles<R>) -> Result<()>;
}
