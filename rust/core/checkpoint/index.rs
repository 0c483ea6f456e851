//! The index of a sharded checkpoint: which tensor is in which file. Trusted for names and nothing else.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::result::Result as Parsed;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{shown, Error, Kind, Result};
use crate::file::regular;
use crate::header::LIMIT;

/// Which file holds which tensor. A hundred thousand tensors share a few hundred file names.
#[derive(Debug, Default)]
pub(super) struct WeightMap {
    /// Each once, as the index first names them: bare names that end in `.safetensors`.
    pub(super) files: Vec<String>,
    /// Tensor to position in `files`.
    pub(super) tensors: HashMap<String, usize>,
}

/// What an index says.
#[derive(Debug)]
pub(super) struct Index {
    /// Its own file name.
    pub(super) name: String,
    pub(super) weight_map: WeightMap,
}

impl Index {
    /// Reads and checks `folder/name`.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Index> {
        let path = folder.join(name);
        let (file, stamp) = regular::open(&path)?;
        if stamp.size > LIMIT {
            let message = format!("the index has {} bytes, more than the {LIMIT} that are read", stamp.size);
            return Err(Error::new(Kind::Format, message).at(&path));
        }
        let mut bytes = regular::buffer(stamp.size, &path)?;
        regular::read_at(&file, &path, &mut bytes, 0)?;
        let weight_map = parse(&bytes).map_err(|error| error.at(&path))?;
        Ok(Index { name: name.to_owned(), weight_map })
    }
}

/// The weight map of an index.
fn parse(json: &[u8]) -> Result<WeightMap> {
    let wrong = |message: String| Error::new(Kind::Format, message);
    let text = std::str::from_utf8(json)
        .map_err(|error| wrong(format!("the index is not UTF-8 at byte {}", error.valid_up_to())))?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let weight_map = Top
        .deserialize(&mut deserializer)
        .and_then(|weight_map| deserializer.end().map(|()| weight_map))
        .map_err(|error| match text.starts_with("version https://git-lfs.github.com/spec/") {
            true => wrong("the index is a git-lfs pointer and not the file itself".into())
                .hint("run `git lfs pull` in its folder, or download it again"),
            false => wrong(format!("the index is not the JSON expected: {}", shown(&error.to_string()))),
        })?;
    if weight_map.tensors.is_empty() {
        return Err(wrong("the index lists no tensors".into()));
    }
    if let Some(file) = weight_map.files.iter().find(|file| !is_bare(file)) {
        let message =
            format!("the index names the file `{}`, which is not a bare name that ends in `.safetensors`", shown(file));
        return Err(
            wrong(message).hint("shards lie next to their index; a path could lead anywhere and is not followed")
        );
    }
    Ok(weight_map)
}

/// A file name that cannot leave its folder, of the one format that is read.
fn is_bare(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.starts_with("..") && !file.contains(['/', '\\', '\0'])
}

fn twice<E: serde::de::Error>(key: &str) -> E {
    E::custom(format_args!("the key `{}` comes twice", shown(key)))
}

/// The object; the other keys than `weight_map` are looked through for duplicates only.
struct Top;

impl<'de> DeserializeSeed<'de> for Top {
    type Value = WeightMap;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<WeightMap, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Parsed<WeightMap, A::Error> {
        let mut weight_map = None;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "weight_map" => weight_map = Some(map.next_value_seed(Files)?),
                _ => map.next_value_seed(Distinct)?,
            }
            if let Some(key) = seen.replace(key) {
                return Err(twice(&key));
            }
        }
        weight_map.ok_or_else(|| A::Error::custom("there is no `weight_map`"))
    }
}

/// The weight map.
struct Files;

impl<'de> DeserializeSeed<'de> for Files {
    type Value = WeightMap;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<WeightMap, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Files {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names under `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Parsed<WeightMap, A::Error> {
        let mut weight_map = WeightMap::default();
        let mut known = HashMap::new();
        while let Some(tensor) = map.next_key::<String>()? {
            match weight_map.tensors.entry(tensor) {
                Entry::Occupied(entry) => return Err(twice(entry.key())),
                Entry::Vacant(entry) => entry.insert(map.next_value_seed(File { known: &mut known })?),
            };
        }
        weight_map.files = vec![String::new(); known.len()];
        known.into_iter().for_each(|(file, position)| weight_map.files[position] = file);
        Ok(weight_map)
    }
}

/// A file name, as its position among those known. `./` in front of it leads to the index's own folder, where
/// whoever joins the two finds the file.
struct File<'k> {
    known: &'k mut HashMap<String, usize>,
}

impl<'de> DeserializeSeed<'de> for File<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for File<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file name")
    }

    fn visit_str<E>(self, file: &str) -> Parsed<usize, E> {
        let file = file.trim_start_matches("./");
        Ok(match self.known.get(file) {
            Some(position) => *position,
            None => {
                let position = self.known.len();
                self.known.insert(file.to_owned(), position);
                position
            }
        })
    }
}

/// Any value in which no object has a key twice.
struct Distinct;

impl<'de> DeserializeSeed<'de> for Distinct {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Distinct {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Parsed<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Distinct)?;
            if let Some(key) = seen.replace(key) {
                return Err(twice(&key));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Parsed<(), A::Error> {
        while seq.next_element_seed(Distinct)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Parsed<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Parsed<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Parsed<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Parsed<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Parsed<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Parsed<(), E> {
        Ok(())
    }
}
