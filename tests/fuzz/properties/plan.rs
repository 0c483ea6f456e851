//! A plan over three small models in memory: what can be computed is as long as the plan says, and the same again. So
//! are plans of an extraction and a comparison refused or carried out.

use std::collections::HashMap;

use serde_json::Value;
use taskvec_core::compare::compare;
use taskvec_core::dtype::Dtype;
use taskvec_core::evaluate::evaluate;
use taskvec_core::extract::extract;
use taskvec_core::monitor::Monitor;
use taskvec_core::run::Options;
use taskvec_core::storage::source::{Buffer, Buffers};

use super::plans;

/// Elements of a plan's tensors up to which it is carried out.
const MOST: u64 = 1 << 16;

pub(crate) fn check(input: &[u8]) {
    if is_large(input) {
        return;
    }
    let files: Vec<Vec<u8>> = (0..3).map(plans::data).collect();
    let memories: Vec<Buffers<'_>> = files.iter().map(|bytes| tensors(bytes)).collect();
    let monitor = Monitor::default();
    match evaluate(input, &memories, 1, true, &monitor) {
        Ok(data) => {
            assert_eq!(Some(data.len() as u64), expected(input));
            assert!(evaluate(input, &memories, 1, true, &monitor).is_ok_and(|again| again == data));
        }
        Err(error) => super::assert_told(&error),
    }
    if let Err(error) = compare(input, &memories, 1, &monitor) {
        super::assert_told(&error);
    }
    if input.windows(16).any(|window| window == b"\"max_shard_size\"") {
        let out = super::place();
        let options = Options { threads: 1, ..Options::default() };
        if let Err(error) = extract(input, &memories, &out.path().join("out"), &options, &monitor) {
            super::assert_told(&error);
        }
    }
}

fn tensors(bytes: &[u8]) -> Buffers<'_> {
    let mut at = 0;
    let mut found = HashMap::new();
    for (name, dtype, shape) in plans::TENSORS {
        let length = dtype.bytes(shape).expect("a small tensor") as usize;
        let buffer = Buffer { dtype, shape: shape.to_vec(), bytes: &bytes[at..at + length] };
        found.insert(name.to_owned(), buffer);
        at += length;
    }
    found
}

/// The bytes that a plan's tensors take.
fn expected(input: &[u8]) -> Option<u64> {
    let plan: Value = serde_json::from_slice(input).ok()?;
    let bytes = |row: &Value| {
        let shape: Vec<u64> = row[2].as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        Dtype::from_name(row[1].as_str()?)?.bytes(&shape)
    };
    plan["tensors"].as_array()?.iter().map(bytes).sum()
}

/// A plan may ask for as much as it likes; that is not what is tried here.
fn is_large(input: &[u8]) -> bool {
    let Ok(plan) = serde_json::from_slice::<Value>(input) else { return false };
    let shape = |row: &Value| {
        let shape = row.as_array()?.iter().find_map(Value::as_array)?.iter();
        shape.map(|length| length.as_u64().unwrap_or(0)).try_fold(1u64, u64::checked_mul)
    };
    let rows = plan["tensors"].as_array().map_or(&[][..], Vec::as_slice);
    rows.len() > 64 || rows.iter().filter_map(shape).any(|elements| elements > MOST && elements < 1 << 60)
}
