//! What a run says of itself at its end, and what its journal keeps of each shard for that. Written as text from typed
//! rows: as a tree of JSON values, a hundred thousand tensors take a hundred times the memory of their figures.

use std::borrow::Cow;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::measure::{Figures, Noise, NoiseFigures, Survival};
use crate::output::folder::OutputFolder;
use crate::plan::{Output, Plan};
use crate::run::contents::Content;

/// What a run finds out about a shard.
pub(crate) struct Found {
    /// Job, and what was measured of it.
    pub tensors: Vec<(usize, Survival)>,
    /// Values that are not finite: tensor, place, count.
    pub non_finite: Vec<(String, String, u64)>,
    /// Elements that matter to no model: tensor, count.
    pub unweighted: Vec<(String, u64)>,
}

/// The same as the journal keeps it, by the tensors' names.
#[derive(Default, Deserialize)]
#[serde(default)]
struct FromJournal<'a> {
    #[serde(borrow)]
    tensors: Vec<Measured<'a>>,
    non_finite: Vec<(String, String, u64)>,
    unweighted: Vec<(String, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Measured<'a>(#[serde(borrow)] Cow<'a, str>, Survival);

/// Whether what earlier runs have noted of the folder's shards can be read.
///
/// # Errors
/// A journal that is damaged.
pub(crate) fn check(folder: &OutputFolder) -> Result<()> {
    for record in folder.done().values() {
        let found = record.extra.as_ref().map(|extra| serde_json::from_str::<FromJournal<'_>>(extra.get()));
        if let Some(Err(error)) = found {
            return Err(folder.damaged(&format!("the entry of `{}`: {error}", record.shard)));
        }
    }
    Ok(())
}

/// What the journal is given.
pub(crate) struct Journaled<'a> {
    pub found: &'a Found,
    pub plan: &'a Plan,
}

impl Serialize for Journaled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Extra<'a, T> {
            tensors: T,
            non_finite: &'a [(String, String, u64)],
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            unweighted: &'a [(String, u64)],
        }
        let row = |(job, sum): &(usize, Survival)| Measured((&*self.plan.jobs[*job].name).into(), sum.clone());
        let Found { tensors, non_finite, unweighted } = self.found;
        Extra { tensors: Each(tensors, &row), non_finite, unweighted }.serialize(serializer)
    }
}

/// A run as a whole, and its outputs.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    pub bytes_read: u64,
    pub bytes_written: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<Content>,
    pub cpu_level: &'a str,
    pub outputs: Vec<Written<'a>>,
    pub plan: &'a str,
    pub resumed_shards: usize,
    pub seconds: f64,
    pub threads: usize,
}

/// One output folder.
pub(crate) struct Written<'a> {
    pub output: &'a Output,
    pub folder: &'a OutputFolder,
    pub plan: &'a Plan,
    /// By shard: what this run found out, where it wrote it.
    pub found: Vec<Option<&'a Found>>,
}

#[derive(Serialize)]
struct Folder<'a> {
    alpha: f64,
    folder: &'a str,
    /// Only where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<Differences<'a>>,
    non_finite: Vec<(String, String, u64)>,
    /// Whether it was made in the state folder of the output that it is to replace.
    replaces: bool,
    shards: Vec<Shard<'a>>,
    survival: Tensors<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unweighted: Vec<(String, u64)>,
}

#[derive(Serialize)]
struct Tensors<'a> {
    tensors: Each<'a, (&'a str, &'a Survival), Figures<'a>>,
    total: Figures<'a>,
}

/// What the differences of donor and reference are like.
#[derive(Serialize)]
struct Differences<'a> {
    tensors: Each<'a, (&'a str, &'a Noise), NoiseFigures<'a>>,
    /// Of all that are packed, and of all that are plain.
    total: Vec<NoiseFigures<'a>>,
}

#[derive(Serialize)]
struct Shard<'a> {
    digest: &'a str,
    name: &'a str,
    size: u64,
}

/// A list made from another while it is written.
struct Each<'a, T, R>(&'a [T], &'a dyn Fn(&T) -> R);

impl<T, R: Serialize> Serialize for Each<'_, T, R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let shards = self.plan.shards.iter().zip(&self.found);
        let records: Vec<_> = shards.filter_map(|(name, found)| Some((self.folder.record(name)?, *found))).collect();
        let kept = records.iter().map(|(record, found)| match (found, &record.extra) {
            (None, Some(extra)) => serde_json::from_str(extra.get()).map_err(S::Error::custom),
            _ => Ok(FromJournal::default()),
        });
        let kept = kept.collect::<std::result::Result<Vec<_>, _>>()?;
        let (mut total, mut rows) = (Survival::default(), Vec::new());
        let (mut non_finite, mut unweighted) = (Vec::new(), Vec::new());
        for ((_, found), kept) in records.iter().zip(&kept) {
            if let Some(found) = found {
                rows.extend(found.tensors.iter().map(|(job, sum)| (&*self.plan.jobs[*job].name, sum)));
                non_finite.extend_from_slice(&found.non_finite);
                unweighted.extend_from_slice(&found.unweighted);
            }
            rows.extend(kept.tensors.iter().map(|Measured(name, sum)| (&**name, sum)));
            non_finite.extend_from_slice(&kept.non_finite);
            unweighted.extend_from_slice(&kept.unweighted);
        }
        rows.iter().for_each(|(_, sum)| total.merge(sum));
        let noises: Vec<(&str, &Noise)> =
            rows.iter().flat_map(|(name, sum)| sum.noises.iter().map(|noise| (*name, noise))).collect();
        Folder {
            alpha: self.output.alpha,
            folder: &self.output.folder,
            noise: (!noises.is_empty()).then(|| Differences {
                tensors: Each(&noises, &|(name, noise)| noise.figures(Some(name))),
                total: [true, false].into_iter().filter_map(|packed| in_all(&noises, packed)).collect(),
            }),
            non_finite,
            replaces: self.folder.replaces(),
            shards: records.iter().map(|(r, _)| Shard { digest: &r.digest, name: &r.shard, size: r.size }).collect(),
            survival: Tensors {
                tensors: Each(&rows, &|(name, sum)| sum.figures(Some(name))),
                total: total.figures(None),
            },
            unweighted,
        }
        .serialize(serializer)
    }
}

/// The sums of all tensors that are packed, or of all that are not, if there are any.
fn in_all<'n>(noises: &[(&str, &Noise)], packed: bool) -> Option<NoiseFigures<'n>> {
    let mut total = None::<Noise>;
    for (_, noise) in noises.iter().filter(|(_, noise)| noise.packed == packed) {
        total.get_or_insert_default().merge(noise);
    }
    total.map(|total| total.figures(None))
}

/// A report as JSON.
///
/// # Errors
/// None but a defect of the program.
pub(crate) fn text(report: &impl Serialize) -> Result<String> {
    serde_json::to_string(report).map_err(|error| Error::engine(format!("the report: {error}")))
}
