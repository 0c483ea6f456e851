//! Normal numbers from uniform ones.

/// A standard normal number from a uniform 32-bit one, by the inverse of the distribution: tabulated and interpolated
/// within, exact in the tails. Plain arithmetic, so the same on every machine.
pub fn normal(draw: u32) -> f64 {
    const CELLS: usize = 4096;
    static TABLE: std::sync::OnceLock<Vec<f64>> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        (0..=CELLS).map(|i| quantile((i as f64).clamp(0.5, CELLS as f64 - 0.5) / CELLS as f64)).collect()
    });
    let (cell, within) = ((draw >> 20) as usize, f64::from(draw & 0xF_FFFF) / 1_048_576.0);
    if (8..CELLS - 8).contains(&cell) {
        table[cell] + (table[cell + 1] - table[cell]) * within
    } else {
        quantile((f64::from(draw) + 0.5) / 4_294_967_296.0)
    }
}

/// The inverse of the normal distribution function, by bisection on libm's erfc.
fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic alone, of 65 536 draws")]
    fn normal_numbers_are_normal() {
        let draws: Vec<f64> = (0..1u32 << 16).map(|i| normal((i << 16) | 0x8000)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-3, "{mean} {variance}");
        assert!((quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-9);
        assert!(draws.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
