//! The tensors of a checkpoint by name and in order. Three checkpoints of a hundred thousand tensors may be open at
//! once, so a tensor takes little more than its name: all names are one text, equal shapes are one, and the index by
//! name holds numbers.

use std::collections::hash_map::RandomState;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::sync::Arc;

use crate::dtype::Dtype;

/// Where one tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Empty for a scalar.
    pub shape: &'a [u64],
    /// Position in [`Checkpoint::files`](super::Checkpoint::files).
    pub file: usize,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

#[derive(Debug)]
struct Entry {
    /// Where its name begins in the text; it ends where the next one begins.
    name: usize,
    offset: u64,
    len: u64,
    shape: Arc<[u64]>,
    file: u32,
    dtype: Dtype,
}

/// Tensors in the order in which they were entered.
#[derive(Debug, Default)]
pub(super) struct Table {
    text: String,
    entries: Vec<Entry>,
    shapes: HashSet<Arc<[u64]>>,
    /// Open addressing, at most half full: position in `entries` plus one, 0 where there is none. The hash is keyed,
    /// because whoever wrote the file chose the names.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Makes room for `more` tensors whose names have so many bytes.
    pub(super) fn reserve(&mut self, more: usize, names: usize) {
        self.entries.reserve_exact(more);
        self.text.reserve_exact(names);
        self.index((self.entries.len() + more) * 2);
    }

    /// Enters a tensor, unless there is one of this name: then its file.
    pub(super) fn insert(&mut self, name: &str, tensor: TensorRef<'_>) -> Result<(), usize> {
        if (self.entries.len() + 1) * 2 > self.slots.len() {
            self.index((self.entries.len() + 1) * 4);
        }
        let slot = self.slot(name);
        if self.slots[slot] > 0 {
            return Err(self.entries[self.slots[slot] as usize - 1].file as usize);
        }
        let shape = match self.shapes.get(tensor.shape) {
            Some(shape) => Arc::clone(shape),
            None => {
                let shape: Arc<[u64]> = tensor.shape.into();
                self.shapes.insert(Arc::clone(&shape));
                shape
            }
        };
        let (TensorRef { dtype, offset, len, .. }, file) = (tensor, tensor.file as u32);
        self.entries.push(Entry { name: self.text.len(), offset, len, shape, file, dtype });
        self.text.push_str(name);
        self.slots[slot] = self.entries.len() as u32;
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<TensorRef<'_>> {
        if self.slots.is_empty() {
            return None;
        }
        match self.slots[self.slot(name)] {
            0 => None,
            number => Some(self.at(number as usize - 1)),
        }
    }

    pub(super) fn name(&self, position: usize) -> &str {
        let end = self.entries.get(position + 1).map_or(self.text.len(), |next| next.name);
        &self.text[self.entries[position].name..end]
    }

    pub(super) fn at(&self, position: usize) -> TensorRef<'_> {
        let Entry { offset, len, shape, file, dtype, .. } = &self.entries[position];
        TensorRef { dtype: *dtype, shape, file: *file as usize, offset: *offset, len: *len }
    }

    /// The slot of a name, or the empty one that it would take.
    fn slot(&self, name: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(name) as usize & mask;
        while self.slots[slot] > 0 && self.name(self.slots[slot] as usize - 1) != name {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Makes the index again with at least as many slots, where it has fewer.
    fn index(&mut self, least: usize) {
        let count = least.next_power_of_two();
        if count <= self.slots.len() {
            return;
        }
        self.slots = vec![0; count];
        for position in 0..self.entries.len() {
            let slot = self.slot(self.name(position));
            self.slots[slot] = position as u32 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_is_found_in_order_and_by_name() {
        let mut table = Table::default();
        assert_eq!(table.get("0"), None);
        let count = if cfg!(miri) { 60 } else { 1000 };
        let names: Vec<String> = (0..count).map(|i| format!("{i}")).chain([String::new()]).collect();
        let shapes = [vec![], vec![2], vec![2, 3]];
        for (i, name) in names.iter().enumerate() {
            let tensor = TensorRef { dtype: Dtype::F32, shape: &shapes[i % 3], file: i, offset: 7, len: i as u64 };
            assert_eq!(table.insert(name, tensor), Ok(()));
            assert_eq!(table.insert(name, TensorRef { file: 5, ..tensor }), Err(i));
        }
        assert_eq!((table.len(), table.shapes.len()), (count + 1, 3));
        for (i, name) in names.iter().enumerate() {
            assert_eq!((table.name(i), table.at(i).file, table.at(i).shape), (name.as_str(), i, &shapes[i % 3][..]));
            assert_eq!(table.get(name), Some(table.at(i)));
        }
        assert_eq!(table.get(&count.to_string()), None);
    }
}
