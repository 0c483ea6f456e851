//! Kernels on one tile, per CPU level: cargo bench --bench kernels.

#![allow(missing_docs)] // of what the macros make

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use std::hint::black_box;
use taskvec_core::dtype::Dtype;
use taskvec_core::kernels::codes::{e2m1, from_zero_in_runs, multiply_runs, nibbles, scaled_runs, widen_codes};
use taskvec_core::kernels::combine::{difference, step, Single};
use taskvec_core::kernels::masked::Masked;
use taskvec_core::kernels::masked_sum::{add_up, Sum};
use taskvec_core::kernels::narrow::{narrow, Rounding};
use taskvec_core::kernels::philox::{fill, Stream};
use taskvec_core::kernels::stats::step_sums;
use taskvec_core::kernels::widen::widen;
use taskvec_core::kernels::{Level, TILE};

/// Values of trained weights' size, as bf16 bytes.
fn weights() -> Vec<u8> {
    let value = |i: usize| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 0.04;
    (0..TILE).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect()
}

fn kernels(c: &mut Criterion) {
    let bytes = weights();
    let mut t = vec![0f32; TILE];
    widen(Level::SCALAR, Dtype::BF16, &bytes, &mut t);
    let d: Vec<f32> = t.iter().map(|x| x * 1.01).collect();
    let (mut out, mut narrowed, mut draws) = (vec![0f32; TILE], bytes.clone(), vec![0u32; TILE]);
    for level in Level::available() {
        let mut group = c.benchmark_group(level.name());
        group.throughput(Throughput::Elements(TILE as u64));
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F8E4M3] {
            let stored = &bytes[..TILE * dtype.size()];
            group.bench_function(format!("widen {dtype}"), |b| {
                b.iter(|| widen(level, dtype, black_box(stored), &mut out))
            });
            let place = &mut narrowed[..TILE * dtype.size()];
            group.bench_function(format!("narrow {dtype}"), |b| {
                b.iter(|| narrow(level, dtype, black_box(&mut out), Rounding::Nearest, place));
            });
        }
        let (codes, scales) = (&bytes[..TILE], [0.01f32; TILE / 128]);
        group.bench_function("copy", |b| b.iter(|| out.copy_from_slice(black_box(&t))));
        group.bench_function("decode block FP8", |b| {
            b.iter(|| scaled_runs(level, Dtype::F8E4M3, black_box(codes), &scales, (0, 128), &mut out));
        });
        group.bench_function("decode block FP8, in two loops", |b| {
            b.iter(|| {
                widen_codes(level, Dtype::F8E4M3, black_box(codes), &mut out);
                multiply_runs(level, &scales, (0, 128), &mut out)
            });
        });
        group.bench_function("decode block FP8, by a table", |b| {
            b.iter(|| {
                widen(level, Dtype::F8E4M3, black_box(codes), &mut out);
                multiply_runs(level, &scales, (0, 128), &mut out)
            });
        });
        group.bench_function("decode MXFP4", |b| {
            let (mut fields, scales) = ([0; TILE], [0.5f32; TILE / 32]);
            b.iter(|| {
                nibbles(level, black_box(codes), 0, false, &mut fields);
                e2m1(level, &fields, &mut out);
                multiply_runs(level, &scales, (0, 32), &mut out)
            });
        });
        group.bench_function("decode INT4 g32", |b| {
            let (mut fields, scales, zeros) = ([0; TILE], [0.5f32; TILE / 32], [8f32; TILE / 32]);
            b.iter(|| {
                nibbles(level, black_box(codes), 0, false, &mut fields);
                from_zero_in_runs(level, &fields, &zeros, &scales, (0, 32), &mut out)
            });
        });
        group.bench_function("subtract", |b| b.iter(|| difference(level, black_box(&d), black_box(&t), &mut out)));
        group.bench_function("step", |b| {
            b.iter(|| step(level, black_box(&t), black_box(&d), 0.8, Single::Odd, &mut out))
        });
        group.bench_function("step sums", |b| b.iter(|| step_sums(level, black_box(&t), black_box(&d), 0.8, &out)));
        group.bench_function("elect two, half of each", |b| {
            let words = [0x5555_5555_5555_5555; TILE / 64];
            let terms = [Masked::whole(&t, None, &words), Masked::whole(&d, Some(&t), &words)];
            b.iter(|| add_up(level, black_box(&terms), Sum::ElectedMean, &mut out));
        });
        let stream = Stream::new(0, "bench", "tensor");
        group.bench_function("philox", |b| b.iter(|| fill(level, &stream, black_box(0), &mut draws)));
        group.bench_function("narrow BF16 stochastic", |b| {
            b.iter(|| narrow(level, Dtype::BF16, black_box(&mut out), Rounding::Stochastic(&draws), &mut narrowed));
        });
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
