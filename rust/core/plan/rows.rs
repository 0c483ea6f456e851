//! The tensors of a plan, read straight into jobs. A plan may have a hundred thousand of them, most with the same name
//! in every source and one of a few shapes: what is equal is held once.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use super::encoding::Role;
use super::job::{Job, PartOf};
use crate::dtype::{elements as count, Dtype};
use crate::error::shown;

/// For `deserialize_with`.
pub(super) fn jobs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Job>, D::Error> {
    deserializer.deserialize_seq(Rows)
}

struct Rows;

impl<'de> Visitor<'de> for Rows {
    type Value = Vec<Job>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Job>, A::Error> {
        let (mut jobs, mut shapes) = (Vec::new(), HashSet::new());
        while let Some(job) = seq.next_element_seed(Row { shapes: &mut shapes })? {
            jobs.push(job);
        }
        Ok(jobs)
    }
}

/// [name, dtype, shape, shard, operation, inputs], and of a part of a packed tensor
/// [encoding, part, logical name, logical shape].
struct Row<'s> {
    shapes: &'s mut HashSet<Arc<[u64]>>,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Job;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Job, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Job;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor's name, type, shape, shard, operation and inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Job, A::Error> {
        let short = |index| move || A::Error::invalid_length(index, &"six parts of a tensor");
        let name = seq.next_element_seed(Name(None))?.ok_or_else(short(0))?;
        let dtype = seq.next_element::<String>()?.ok_or_else(short(1))?;
        let dtype =
            Dtype::from_name(&dtype).ok_or_else(|| A::Error::custom(format_args!("type `{}`", shown(&dtype))))?;
        let shape = seq.next_element::<Vec<u64>>()?.ok_or_else(short(2))?;
        let overflows = || A::Error::custom(format_args!("shape of `{}` overflows", shown(&name)));
        let elements = dtype.bytes(&shape).and_then(|_| dtype.units(&shape)).ok_or_else(overflows)?;
        let shape = self.held(shape);
        let shard = seq.next_element()?.ok_or_else(short(3))?;
        let operation = seq.next_element()?.ok_or_else(short(4))?;
        let inputs = seq.next_element_seed(Inputs(&name))?.ok_or_else(short(5))?;
        let packed = match seq.next_element::<(usize, Role, String, Vec<u64>)>()? {
            None => None,
            Some((encoding, role, logical, shape)) => {
                // Far below where bytes or offsets of anything computed would overflow.
                let elements = count(&shape).filter(|n| *n < 1 << 56).ok_or_else(overflows)?;
                let name = if *logical == *name { Arc::clone(&name) } else { logical.into() };
                Some(Box::new(PartOf { encoding, role, name, shape: self.held(shape), elements }))
            }
        };
        Ok(Job { name, dtype, shape, shard, operation, inputs, elements, packed })
    }
}

impl Row<'_> {
    /// A shape, held once.
    fn held(&mut self, shape: Vec<u64>) -> Arc<[u64]> {
        if let Some(known) = self.shapes.get(shape.as_slice()) {
            return Arc::clone(known);
        }
        let shape: Arc<[u64]> = shape.into();
        self.shapes.insert(Arc::clone(&shape));
        shape
    }
}

/// A name; where it is that of the tensor, the same one.
struct Name<'n>(Option<&'n Arc<str>>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Arc<str>, E> {
        Ok(match self.0 {
            Some(known) if **known == *name => Arc::clone(known),
            _ => name.into(),
        })
    }
}

/// Pairs of source and stored name.
struct Inputs<'n>(&'n Arc<str>);

impl<'de> DeserializeSeed<'de> for Inputs<'_> {
    type Value = Box<[(usize, Arc<str>)]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = Box<[(usize, Arc<str>)]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut inputs = Vec::new();
        while let Some(input) = seq.next_element_seed(NamedInput(Name(Some(self.0))))? {
            inputs.push(input);
        }
        Ok(inputs.into())
    }
}

struct NamedInput<'n>(Name<'n>);

impl<'de> DeserializeSeed<'de> for NamedInput<'_> {
    type Value = (usize, Arc<str>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for NamedInput<'_> {
    type Value = (usize, Arc<str>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a source and a stored name")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let short = |index| move || A::Error::invalid_length(index, &"a source and a stored name");
        let source = seq.next_element()?.ok_or_else(short(0))?;
        Ok((source, seq.next_element_seed(self.0)?.ok_or_else(short(1))?))
    }
}
