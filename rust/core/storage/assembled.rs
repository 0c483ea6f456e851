//! A tensor that its source stores in another layout: assembled of pieces of stored tensors, as the plan says.
//!
//! Experts one by one or fused, transposed, interleaved; queries, keys and values in one tensor: each is a few boxes of
//! elements with strides. A piece without a name is zero. A range that lies in one piece, in order, is that tensor's
//! own; any other is gathered into the scratch when it is opened, and with it those elements of a saved vector that its
//! values do not give back.

use std::collections::HashMap;
use std::ops::Range;

use super::chunk::{Chunk, Scratch};
use super::part::Part;
use super::source::{Assembled, SourceKind};
use super::wanted::Wanted;
use super::Storage;
use crate::dtype::Dtype;
use crate::error::{shown, Error, Kind, Result};
use crate::kernels::{Level, Real, TILE};

mod exact;
mod gather;
mod piece;

use exact::Gathered;
use gather::{gather, zero};
use piece::{Piece, Plane};

/// Elements of a stored tensor that are opened together, at most, where they are gathered.
const STRIP: u64 = 1 << 18;

/// A tensor made of pieces of others.
struct Layout<'a> {
    stored: Vec<Box<dyn Storage + 'a>>,
    pieces: Vec<Piece>,
    elements: u64,
    /// The type that the elements have while they are gathered.
    gathered: Dtype,
}

/// What the plan says of a tensor that its source stores in another layout.
pub(crate) fn wanted<'w>(wanted: &Wanted<'w, '_>) -> Option<&'w Assembled> {
    wanted.source.assembled.get(wanted.name)
}

/// The tensor, of stored ones that `open` finds by name and shape.
///
/// # Errors
/// A stored tensor is missing, or the pieces do not make up the tensor.
pub(crate) fn assemble<'w, 'a>(
    wanted: &Wanted<'w, 'a>,
    Assembled(shape, rows, shapes): &'w Assembled,
    open: &dyn Fn(&Wanted<'_, 'a>) -> Result<Box<dyn Storage + 'a>>,
) -> Result<Box<dyn Storage + 'a>> {
    wanted.check_shape(shape)?;
    let (mut numbers, mut stored) = (HashMap::new(), Vec::<Box<dyn Storage + 'a>>::new());
    let mut pieces = Vec::with_capacity(rows.len());
    for row in rows {
        let name = row.0.as_str();
        if name.is_empty() {
            pieces.push(Piece::new(row, None, wanted.elements, u64::MAX)?);
            continue;
        }
        let number = *numbers.entry(name).or_insert(stored.len());
        if number == stored.len() {
            let shape = shapes.get(name).map_or_else(|| wanted.stored_shape(name), |shape| Ok(shape.clone()))?;
            let elements = crate::dtype::elements(&shape).unwrap_or(0);
            stored.push(open(&Wanted { name, shape: &shape, elements, ..*wanted })?);
        }
        pieces.push(Piece::new(row, Some(number), wanted.elements, stored[number].elements())?);
    }
    let found: u64 = pieces.iter().map(Piece::elements).sum();
    if found != wanted.elements {
        let (name, elements) = (shown(wanted.name), wanted.elements);
        let message = format!("unusable plan: `{name}` has {elements} elements, its pieces {found}");
        return Err(Error::new(Kind::Plan, message));
    }
    let gathered = match wanted.source.kind {
        // Differences are wider than the models' values.
        SourceKind::Vector => Dtype::F64,
        _ => gathered_as(&stored),
    };
    Ok(Box::new(Layout { stored, pieces, elements: wanted.elements, gathered }))
}

/// The stored type where all have the same one, else the compute type.
pub(super) fn gathered_as(stored: &[Box<dyn Storage + '_>]) -> Dtype {
    let first = stored.first().and_then(|storage| storage.plain());
    match first {
        Some(dtype) if stored.iter().all(|storage| storage.plain() == first) => dtype,
        _ if stored.iter().any(|storage| storage.plain() == Some(Dtype::F64)) => Dtype::F64,
        _ => Dtype::F32,
    }
}

impl Layout<'_> {
    /// Where `elements` lie in one stored tensor, in order.
    fn run(&self, elements: &Range<u64>) -> Option<(&dyn Storage, Range<u64>)> {
        let (source, range) = self.pieces.iter().find_map(|piece| piece.run(elements))?;
        Some((&*self.stored[source], range))
    }

    fn plane(&self, source: Option<usize>, plane: &Plane, first: u64, buffers: Buffers<'_>) -> Result<()> {
        let Buffers { level, out, decoded, exact: [donor, reference], under } = buffers;
        let [outer, inner] = plane.dims;
        let Some(storage) = source.map(|source| &*self.stored[source]) else {
            zero(self.gathered.size(), plane.dims, (plane.to - first) as usize, out);
            return Ok(());
        };
        // Along the dimension that is further apart in the stored tensor, as much at a time as is opened together.
        let (slow, fast) = if outer.from >= inner.from { (outer, inner) } else { (inner, outer) };
        let width = (fast.n - 1) * fast.from + 1;
        let most = (STRIP.saturating_sub(width) / slow.from.max(1) + 1).min(slow.n);
        let mut at = 0;
        while at < slow.n {
            let n = most.min(slow.n - at);
            let from = plane.from + at * slow.from;
            let range = from..from + (n - 1) * slow.from + width;
            let chunk = storage.open(range.clone(), &mut *under)?;
            let count = (range.end - range.start) as usize;
            let bytes = match chunk.stored(self.gathered, 0, count) {
                Some(bytes) => bytes,
                None => {
                    widened(level, &chunk, count, self.gathered, decoded);
                    decoded.as_slice()
                }
            };
            let to = (plane.to + at * slow.to - first) as usize;
            let dims = [piece::Dim { n, ..slow }, fast];
            gather(self.gathered.size(), bytes, dims, to, out);
            if let Some(found) = chunk.exact() {
                let length = out.len() / self.gathered.size();
                exact::gathered(level, &found, count, decoded, (dims, to), [&mut *donor, &mut *reference], length);
            }
            at += n;
        }
        Ok(())
    }
}

/// What a range is gathered with: where it goes, elements in the compute type, the stored tensors' own buffers.
struct Buffers<'s> {
    level: Level,
    out: &'s mut [u8],
    decoded: &'s mut Vec<u8>,
    /// Donor and reference of what the values of a saved vector do not give back; empty where there is none.
    exact: [&'s mut Vec<u8>; 2],
    under: &'s mut Scratch,
}

/// The elements of a chunk as numbers of the compute type.
pub(super) fn widened(level: Level, chunk: &Chunk<'_>, count: usize, dtype: Dtype, out: &mut Vec<u8>) {
    out.resize(count * dtype.size(), 0);
    let mut at = 0;
    for bytes in out.chunks_mut(TILE * dtype.size()) {
        let n = bytes.len() / dtype.size();
        match dtype {
            Dtype::F64 => tile::<f64, 8>(level, chunk, at, bytes, f64::to_le_bytes),
            _ => tile::<f32, 4>(level, chunk, at, bytes, f32::to_le_bytes),
        }
        at += n;
    }
}

fn tile<R: Real, const N: usize>(level: Level, chunk: &Chunk<'_>, at: usize, out: &mut [u8], bytes: fn(R) -> [u8; N]) {
    let mut values = [R::ZERO; TILE];
    let values = &mut values[..out.len() / N];
    chunk.tile(level, at, values);
    for (slot, value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *slot = bytes(*value);
    }
}

impl Storage for Layout<'_> {
    fn parts(&self) -> Vec<Part<'_>> {
        self.stored.iter().flat_map(|storage| storage.parts()).collect()
    }

    fn elements(&self) -> u64 {
        self.elements
    }

    fn dtype(&self) -> Dtype {
        // Of several types the one that needs the widest compute type.
        let types = self.stored.iter().map(|storage| storage.dtype());
        types.max_by_key(|dtype| (!dtype.is_float(), !dtype.is_narrow(), dtype.size())).unwrap_or(self.gathered)
    }

    fn plain(&self) -> Option<Dtype> {
        self.stored.iter().all(|storage| storage.plain() == Some(self.gathered)).then_some(self.gathered)
    }

    fn bytes(&self, elements: &Range<u64>) -> u64 {
        let bytes = |piece: &Piece| Some(self.stored[piece.source?].bytes(&(0..piece.elements())));
        let used: u64 = self.pieces.iter().filter_map(bytes).sum();
        let count = elements.end - elements.start;
        (u128::from(used) * u128::from(count) / u128::from(self.elements.max(1))) as u64
    }

    fn open<'s>(&'s self, elements: Range<u64>, scratch: &'s mut Scratch) -> Result<Chunk<'s>> {
        let ([out, decoded, donor, reference], under) = scratch.layers();
        if let Some((storage, range)) = self.run(&elements) {
            return storage.open(range, under);
        }
        let level = Level::chosen()?;
        out.clear();
        // An element that no piece gives is not a number.
        out.resize((elements.end - elements.start) as usize * self.gathered.size(), 0xff);
        donor.clear();
        for piece in &self.pieces {
            piece.planes(&elements, &mut |plane| {
                let exact = [&mut *donor, &mut *reference];
                let buffers = Buffers { level, out: &mut *out, decoded: &mut *decoded, exact, under: &mut *under };
                self.plane(piece.source, &plane, elements.start, buffers)
            })?;
        }
        if !donor.is_empty() {
            return Ok(Chunk::Tiles(Box::new(Gathered::new(self.gathered, out, donor, reference))));
        }
        Ok(Chunk::Plain { dtype: self.gathered, bytes: out })
    }

    fn ahead(&self, elements: Range<u64>) {
        if let Some((storage, range)) = self.run(&elements) {
            storage.ahead(range);
        }
    }

    fn behind(&self, elements: Range<u64>) {
        if let Some((storage, range)) = self.run(&elements) {
            storage.behind(range);
        }
    }
}
