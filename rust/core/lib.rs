//! The engine of taskvec: reads safetensors checkpoints through memory maps, computes on them tile by tile and
//! writes the result safely. It knows nothing of Python, recipes, model families or the network.
//!
//! The rooms stand in the order in which they may use each other: each uses those above it and none below, which
//! `tests/test_rooms_rust.py` holds.
#![deny(unsafe_code)]

pub mod error;

pub mod dtype;
pub mod file;
pub mod header;
pub mod kernels;

mod workers;

pub mod checkpoint;

pub mod monitor;
mod threads;

mod measure;
pub mod storage;
mod tensor;

mod methods;
mod plan;

pub mod output;
pub mod run;

pub mod compare;
pub mod evaluate;
pub mod extract;
pub mod in_place;
pub mod throughput;
