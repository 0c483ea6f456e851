//! The JSON of a header, read by serde_json with visitors that look for what it would let pass: keys that come twice,
//! keys and types that the format does not know.

use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::entry::{TensorEntry, METADATA, PREFIX};
use super::error::Lie;
use crate::dtype::Dtype;

type Contents = (Vec<TensorEntry>, BTreeMap<String, String>);

/// Tensors in the order of the text, and the metadata.
pub(super) fn read(text: &str) -> Result<Contents, Lie> {
    let found = Found::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let result = Top(&found).deserialize(&mut deserializer).and_then(|contents| {
        deserializer.end()?;
        Ok(contents)
    });
    result.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let detail = error.to_string();
        let detail = detail.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&detail).to_owned();
        match found.lie.take() {
            Some(lie) => lie,
            None => match found.inside.take() {
                Some(name) => Lie::Entry { name, detail, line, column },
                None => Lie::Json { detail, line, column },
            },
        }
    })
}

/// What a visitor knows and serde's error cannot carry.
#[derive(Default)]
struct Found {
    /// The lie, where it is one and not a slip of syntax or type.
    lie: RefCell<Option<Lie>>,
    /// The tensor in whose description reading stopped.
    inside: RefCell<Option<String>>,
}

impl Found {
    fn lie<E: serde::de::Error>(&self, lie: Lie) -> E {
        self.lie.replace(Some(lie));
        E::custom("")
    }
}

struct Top<'f>(&'f Found);

impl<'de> DeserializeSeed<'de> for Top<'_> {
    type Value = Contents;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Contents, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = Contents;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Contents, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if metadata.is_some() {
                    return Err(self.0.lie(Lie::DuplicateKey { key: name }));
                }
                metadata = Some(map.next_value_seed(Metadata(self.0))?);
                continue;
            }
            match map.next_value_seed(Tensor { found: self.0, name: &name }) {
                Ok((dtype, shape, [begin, end])) => tensors.push(TensorEntry { name, dtype, shape, begin, end }),
                Err(error) => {
                    self.0.inside.replace(Some(name));
                    return Err(error);
                }
            }
        }
        Ok((tensors, metadata.unwrap_or_default()))
    }
}

struct Metadata<'f>(&'f Found);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings under `__metadata__`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            match metadata.entry(key) {
                Entry::Occupied(entry) => {
                    return Err(self.0.lie(Lie::DuplicateMetadata { key: entry.key().clone() }));
                }
                Entry::Vacant(entry) => entry.insert(map.next_value::<String>()?),
            };
        }
        Ok(metadata)
    }
}

/// The description of one tensor.
struct Tensor<'f> {
    found: &'f Found,
    name: &'f str,
}

impl Tensor<'_> {
    fn set<E: serde::de::Error, T>(&self, slot: &mut Option<T>, field: &'static str, value: T) -> Result<(), E> {
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.found.lie(Lie::DuplicateField { name: self.name.to_owned(), field })),
        }
    }

    fn have<E: serde::de::Error, T>(&self, slot: Option<T>, field: &'static str) -> Result<T, E> {
        slot.ok_or_else(|| self.found.lie(Lie::MissingField { name: self.name.to_owned(), field }))
    }
}

impl<'de> DeserializeSeed<'de> for Tensor<'_> {
    type Value = (Dtype, Vec<u64>, [u64; 2]);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = (Dtype, Vec<u64>, [u64; 2]);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key_seed(Field(&self))? {
            match field {
                "dtype" => self.set(&mut dtype, field, map.next_value_seed(Type(&self))?)?,
                "shape" => self.set(&mut shape, field, map.next_value::<Vec<u64>>()?)?,
                _ => self.set(&mut offsets, field, map.next_value_seed(Offsets)?)?,
            }
        }
        Ok((self.have(dtype, "dtype")?, self.have(shape, "shape")?, self.have(offsets, "data_offsets")?))
    }
}

/// One of the three keys of a tensor. An unknown one is refused: it may change what the bytes mean.
struct Field<'t>(&'t Tensor<'t>);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Field<'_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<&'static str, E> {
        match ["dtype", "shape", "data_offsets"].into_iter().find(|field| *field == key) {
            Some(field) => Ok(field),
            None => Err(self.0.found.lie(Lie::UnknownField { name: self.0.name.to_owned(), key: key.to_owned() })),
        }
    }
}

struct Type<'t>(&'t Tensor<'t>);

impl<'de> DeserializeSeed<'de> for Type<'_> {
    type Value = Dtype;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Dtype, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Type<'_> {
    type Value = Dtype;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a dtype")
    }

    fn visit_str<E: serde::de::Error>(self, dtype: &str) -> Result<Dtype, E> {
        Dtype::from_name(dtype).ok_or_else(|| {
            let (name, dtype) = (self.0.name.to_owned(), dtype.to_owned());
            let packed = Dtype::is_packed(&dtype);
            self.0.found.lie(if packed { Lie::PackedDtype { name, dtype } } else { Lie::UnknownDtype { name, dtype } })
        })
    }
}

struct Offsets;

impl<'de> DeserializeSeed<'de> for Offsets {
    type Value = [u64; 2];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<[u64; 2], D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Offsets {
    type Value = [u64; 2];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two `data_offsets`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<[u64; 2], A::Error> {
        let mut next = |index| seq.next_element()?.ok_or_else(|| A::Error::invalid_length(index, &self));
        let offsets = [next(0)?, next(1)?];
        match seq.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::invalid_length(3, &self)),
            None => Ok(offsets),
        }
    }
}

/// See [`super::encode`].
pub(super) fn write<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [u64])>,
    metadata: &[(&str, &str)],
    align: usize,
) -> Vec<u8> {
    let mut out = vec![0; PREFIX];
    out.push(b'{');
    if !metadata.is_empty() {
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        key(&mut out, METADATA);
        serde_json::to_writer(&mut out, &metadata).expect("strings are JSON and memory takes them");
    }
    let mut begin = 0u64;
    for (name, dtype, shape) in tensors {
        let end = dtype.bytes(shape).and_then(|bytes| begin.checked_add(bytes)).expect("a layout of 64-bit offsets");
        key(&mut out, name);
        let description = format!(r#"{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#);
        out.extend(description.bytes().filter(|byte| *byte != b' '));
        begin = end;
    }
    out.push(b'}');
    out.resize(out.len().next_multiple_of(align), b' ');
    let length = (out.len() - PREFIX) as u64;
    out[..PREFIX].copy_from_slice(&length.to_le_bytes());
    out
}

/// Starts the member `name` of the object at the end of `out`.
fn key(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, name).expect("a string is JSON and memory takes it");
    out.push(b':');
}
