//! What the fuzz targets began with and what they have found, tried again.

use std::fs;
use std::path::Path;

#[path = "fuzz/properties/mod.rs"]
mod properties;

/// Every kept input of a target, each as it is and cut short.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut tried = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        println!("{}", path.display());
        check(&bytes);
        let step = (bytes.len() / 40).max(1);
        (0..bytes.len()).step_by(step).for_each(|length| check(&bytes[..length]));
        tried += 1;
    }
    assert!(tried > 2, "only {tried} inputs of {target}");
}

#[test]
fn header() {
    replay("header", properties::header::check);
}

#[test]
fn index() {
    replay("index", properties::index::check);
}

#[test]
fn journal() {
    replay("journal", properties::journal::check);
}

#[test]
fn plan() {
    replay("plan", properties::plan::check);
}

#[test]
fn vector() {
    replay("vector", properties::vector::check);
}
