//! The formats of packed tensors as a plan names them: their parameters, and what the names of their parts end in.

use serde::{Deserialize, Deserializer};

use crate::dtype::Dtype;
use crate::error::shown;

/// A type of plain numbers that packed ones are computed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Float(pub Dtype);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match Dtype::from_name(&name) {
            Some(dtype @ (Dtype::BF16 | Dtype::F16 | Dtype::F32)) => Ok(Float(dtype)),
            _ => {
                let message = format!("type `{}`, expected BF16, F16 or F32", shown(&name));
                Err(serde::de::Error::custom(message))
            }
        }
    }
}

/// Declares a format: its parts with the endings of their names, and its parameters.
macro_rules! format {
    (
        $(#[$meta:meta])*
        $name:ident, $parts:ident {
            $($(#[$part_meta:meta])* $part:ident: $part_type:ty,)*
        } {
            $($(#[$field_meta:meta])* $field:ident: $field_type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            /// Type of plain output.
            pub dtype: Float,
            /// Ending of the logical name that parts do not have.
            pub strip: Box<str>,
            /// Endings of the parts.
            pub parts: $parts,
            $($(#[$field_meta])* pub $field: $field_type,)*
        }

        /// What the names of the parts end in.
        #[derive(Clone, Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $parts {
            $($(#[$part_meta])* pub $part: $part_type,)*
        }
    };
}

format! {
    /// Codes that are numbers by themselves, times a scale for each block.
    Scaled, ScaledParts {
        /// The numbers.
        codes: Box<str>,
        /// Their scales.
        scales: Box<str>,
    } {
        /// Rows and columns of one scale; 0 for all.
        block: [u64; 2],
        /// What everything is multiplied by after its scale.
        #[serde(default)]
        factor: Option<f32>,
    }
}

format! {
    /// Four-bit floats, two to a byte, the low half first: MXFP4, NVFP4.
    E2m1, E2m1Parts {
        /// The numbers.
        codes: Box<str>,
        /// Their scales, one for each group of columns.
        scales: Box<str>,
        /// A scale of the scales.
        #[serde(default)]
        global: Option<Box<str>>,
    } {
        /// Columns of one scale.
        group: u64,
        /// What is done with the scale of the scales.
        #[serde(default)]
        global: Option<Global>,
    }
}

/// What is done with the scale of the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Global {
    /// code · (scale · global)
    Multiply,
    /// code · (scale / global)
    Divide,
}

format! {
    /// Integers of a few bits, dense along a row from the lowest bit on, as compressed-tensors packs them.
    PackedInt, PackedIntParts {
        /// The integers.
        codes: Box<str>,
        /// Their scales, one for each group of columns.
        scales: Box<str>,
        /// Zero points, packed along the first axis.
        #[serde(default)]
        zeros: Option<Box<str>>,
        /// The group of each column.
        #[serde(default)]
        order: Option<Box<str>>,
    } {
        /// Bits of one integer.
        bits: u32,
        /// Columns of one scale; 0 for all.
        group: u64,
    }
}

format! {
    /// GPTQ: integers packed along the columns of the weight, stored transposed.
    Gptq, GptqParts {
        /// The integers.
        codes: Box<str>,
        /// Zero points.
        zeros: Box<str>,
        /// Scales.
        scales: Box<str>,
        /// The group of each column.
        #[serde(default)]
        order: Option<Box<str>>,
    } {
        /// Bits of one integer.
        bits: u32,
        /// Columns of one scale; 0 for all.
        group: u64,
        /// What is added to a stored zero point: 1 in the first version of the format, 0 in the second.
        zero_offset: u32,
    }
}

format! {
    /// AWQ: integers of four bits packed along the rows of the weight, stored transposed.
    Awq, AwqParts {
        /// The integers.
        codes: Box<str>,
        /// Zero points.
        zeros: Box<str>,
        /// Scales.
        scales: Box<str>,
    } {
        /// Columns of one scale; 0 for all.
        group: u64,
    }
}

format! {
    /// bitsandbytes: codes of four bits, two to a byte, the high half first, into a table.
    Bnb4, Bnb4Parts {
        /// The codes.
        codes: Box<str>,
        /// The largest magnitude of each block, or codes of those.
        absmax: Box<str>,
        /// The values of the codes.
        table: Box<str>,
        /// The largest magnitude of each block of blocks.
        #[serde(default)]
        nested_absmax: Option<Box<str>>,
        /// The values of the codes of magnitudes.
        #[serde(default)]
        nested_table: Option<Box<str>>,
    } {
        /// Elements of one block.
        block: u64,
        /// Blocks of one block of blocks.
        #[serde(default)]
        nested_block: Option<u64>,
        /// What is added to decoded magnitudes.
        #[serde(default)]
        nested_offset: Option<f32>,
    }
}

format! {
    /// MLX: integers of a few bits, dense along a row from the lowest bit on, times a scale, plus a bias.
    Mlx, MlxParts {
        /// The integers.
        codes: Box<str>,
        /// Their scales.
        scales: Box<str>,
        /// Their biases.
        biases: Box<str>,
    } {
        /// Bits of one integer.
        bits: u32,
        /// Columns of one scale; 0 for all.
        group: u64,
    }
}

/// A format as the plan names it, in snake case.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)]
pub(crate) enum Format {
    Scaled(Scaled),
    E2m1(E2m1),
    PackedInt(PackedInt),
    Gptq(Gptq),
    Awq(Awq),
    Bnb4(Bnb4),
    Mlx(Mlx),
}

impl Format {
    /// The type of plain output, which packed tensors are computed as.
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Format::Scaled(format) => format.dtype.0,
            Format::E2m1(format) => format.dtype.0,
            Format::PackedInt(format) => format.dtype.0,
            Format::Gptq(format) => format.dtype.0,
            Format::Awq(format) => format.dtype.0,
            Format::Bnb4(format) => format.dtype.0,
            Format::Mlx(format) => format.dtype.0,
        }
    }
}
