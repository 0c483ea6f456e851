//! The engine of taskvec: reads safetensors checkpoints through memory maps, computes on them tile by tile and
//! writes the result safely. It knows nothing of Python, recipes, model families or the network.
#![deny(unsafe_code)]

pub mod block;
pub mod checkpoint;
pub mod compare;
pub mod control;
pub mod dtype;
pub mod encoding;
pub mod error;
pub mod evaluate;
pub mod exact;
pub mod extract;
pub mod floor;
pub mod header;
pub mod input;
pub mod kernels;
pub mod lora;
pub mod mapped;
pub mod measure;
pub mod memory;
pub mod methods;
pub mod op;
pub mod output;
pub mod plan;
pub mod program;
pub mod regular;
mod report;
pub mod run;
pub mod sample;
mod shards;
pub mod sources;
pub mod sparse;
pub mod tensor;
mod tile;
