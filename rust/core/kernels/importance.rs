//! Sums weighed element by element by how much each element matters to its model, and which of several changes of one
//! element matters most.

kernel! {
    /// `sum = sum + w·f·x` and `total = total + w·f`, from zeros where `begins`; whether any f is below zero.
    pub fn weigh<R>(x: &[R], importance: &[R], weight: R, begins: bool, sum: &mut [R], total: &mut [R]) -> bool {
        let mut any = 0u32;
        for (((sum, total), x), f) in sum.iter_mut().zip(total).zip(x).zip(importance) {
            let share = weight * *f;
            let (before, totalled) = if begins { (R::ZERO, R::ZERO) } else { (*sum, *total) };
            *sum = before + share * *x;
            *total = totalled + share;
            any |= u32::from(*f < R::ZERO);
        }
        any != 0
    }
}

kernel! {
    /// `sum = sum / total`, and how many of the totals are zero.
    pub fn divide<R>(total: &[R], sum: &mut [R]) -> u64 {
        let mut count = 0u32;
        for (sum, total) in sum.iter_mut().zip(total) {
            *sum = *sum / *total;
            count += u32::from(*total == R::ZERO);
        }
        u64::from(count)
    }
}

kernel! {
    /// `x = otherwise` where the total is zero.
    pub fn fill_zero<R>(total: &[R], otherwise: &[R], x: &mut [R]) {
        for ((x, total), otherwise) in x.iter_mut().zip(total).zip(otherwise) {
            *x = if *total == R::ZERO { *otherwise } else { *x };
        }
    }
}

kernel! {
    /// Elements that are zero.
    pub fn count_zero<R>(x: &[R]) -> u64 {
        let mut count = 0u32;
        for x in x {
            count += u32::from(*x == R::ZERO);
        }
        u64::from(count)
    }
}

kernel! {
    /// Whether any element is below zero.
    pub fn any_negative<R>(x: &[R]) -> bool {
        let mut any = 0u32;
        for x in x {
            any |= u32::from(*x < R::ZERO);
        }
        any != 0
    }
}

/// The change of each element that matters most so far.
pub struct Best<'a, R> {
    /// Which term it is of; none of them where nothing has changed.
    pub term: &'a mut [R],
    /// Its importance; below zero where nothing has changed.
    pub importance: &'a mut [R],
    /// Its size.
    pub size: &'a mut [R],
}

kernel! {
    /// Takes the changes of `term` that matter more than the best so far; of equal importance the larger one, of equal
    /// size the earlier one. Up to `epsilon` nothing has changed.
    pub fn challenge<R>(delta: &[R], importance: &[R], term: R, epsilon: R, best: &mut Best<'_, R>) {
        let places = best.term.iter_mut().zip(best.importance.iter_mut()).zip(best.size.iter_mut());
        for (((slot, most), size), (delta, f)) in places.zip(delta.iter().zip(importance)) {
            let (own, f) = (delta.abs(), *f);
            let more = (f > *most) | ((f == *most) & (own > *size));
            let wins = (own > epsilon) & more;
            *slot = if wins { term } else { *slot };
            *most = if wins { f } else { *most };
            *size = if wins { own } else { *size };
        }
    }
}

kernel! {
    /// Sets what another term has won to zero.
    pub fn keep_won<R>(winners: &[R], term: R, delta: &mut [R]) {
        for (delta, winner) in delta.iter_mut().zip(winners) {
            *delta = if *winner == term { *delta } else { R::ZERO };
        }
    }
}

kernel! {
    /// The same of two terms at once, of which each element keeps the change that matters more; whether anything in
    /// either map is below zero.
    pub fn duel<R>(maps: (&[R], &[R]), epsilon: R, first: &mut [R], second: &mut [R]) -> (bool, bool) {
        let none = R::from_f64(-1.0);
        let (mut any, mut any_other) = (0u32, 0u32);
        for (((x, y), f), g) in first.iter_mut().zip(second).zip(maps.0).zip(maps.1) {
            let (own, other) = (x.abs(), y.abs());
            let has = (own > epsilon) & (*f > none);
            let (most, size) = (if has { *f } else { none }, if has { own } else { R::ZERO });
            let wins = (other > epsilon) & ((*g > most) | ((*g == most) & (other > size)));
            *x = if has & !wins { *x } else { R::ZERO };
            *y = if wins { *y } else { R::ZERO };
            any |= u32::from(*f < R::ZERO);
            any_other |= u32::from(*g < R::ZERO);
        }
        (any != 0, any_other != 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::Level;

    proptest! {
        /// Against one element after the other, at every level.
        #[test]
        fn every_level_weighs_and_arbitrates_alike(
            n in 0usize..100,
            count in 1usize..5,
            numbers in prop::collection::vec(0u8..5, 800),
            epsilon in 0u8..2,
        ) {
            let list = |k: usize| -> Vec<f64> { (0..n).map(|i| f64::from(numbers[(k * 100 + i) % 800])).collect() };
            let deltas: Vec<Vec<f64>> = (0..count).map(|k| list(k).iter().map(|x| x - 2.0).collect()).collect();
            let maps: Vec<Vec<f64>> = (0..count).map(|k| list(k + 4)).collect();
            let epsilon = f64::from(epsilon);
            for level in Level::available() {
                let (mut sum, mut total) = (vec![f64::NAN; n], vec![f64::NAN; n]);
                let (mut term, mut most, mut size) = (vec![-1.0; n], vec![-1.0; n], vec![0.0; n]);
                for k in 0..count {
                    prop_assert!(!weigh(level, &deltas[k], &maps[k], 0.5, k == 0, &mut sum, &mut total));
                    let mut best = Best { term: &mut term, importance: &mut most, size: &mut size };
                    challenge(level, &deltas[k], &maps[k], k as f64, epsilon, &mut best);
                }
                prop_assert_eq!(count_zero(level, &total), total.iter().filter(|x| **x == 0.0).count() as u64);
                let zeros = divide(level, &total, &mut sum);
                prop_assert_eq!(zeros, total.iter().filter(|x| **x == 0.0).count() as u64);
                fill_zero(level, &total, &vec![7.0; n], &mut sum);
                for i in 0..n {
                    let all: f64 = maps.iter().map(|map| 0.5 * map[i]).sum();
                    let products: f64 = (0..count).map(|k| 0.5 * maps[k][i] * deltas[k][i]).sum();
                    prop_assert_eq!(sum[i], if all == 0.0 { 7.0 } else { products / all });
                    let key = |k: &usize| (maps[*k][i], deltas[*k][i].abs());
                    let changed = (0..count).filter(|k| deltas[*k][i].abs() > epsilon);
                    let winner = changed.reduce(|a, b| if key(&b) > key(&a) { b } else { a });
                    prop_assert_eq!(term[i], winner.map_or(-1.0, |k| k as f64));
                }
                for (k, delta) in deltas.iter().enumerate() {
                    let mut kept = delta.clone();
                    keep_won(level, &term, k as f64, &mut kept);
                    for i in 0..n {
                        prop_assert_eq!(kept[i], if term[i] == k as f64 { delta[i] } else { 0.0 });
                    }
                    prop_assert_eq!(any_negative(level, delta), delta.iter().any(|x| *x < 0.0));
                }
                if count == 2 {
                    let (mut one, mut other) = (deltas[0].clone(), deltas[1].clone());
                    let negative = duel(level, (&maps[0], &maps[1]), epsilon, &mut one, &mut other);
                    prop_assert_eq!(negative, (false, false));
                    for i in 0..n {
                        prop_assert_eq!(one[i], if term[i] == 0.0 { deltas[0][i] } else { 0.0 });
                        prop_assert_eq!(other[i], if term[i] == 1.0 { deltas[1][i] } else { 0.0 });
                    }
                }
                prop_assert!(!any_negative(level, &[-0.0f64, f64::NAN, 0.0]));
                let (low, high, mut two) = ([1.0, -1.0, 0.0], [-0.0, f64::NAN, 0.0], ([0.0; 3], [0.0; 3]));
                prop_assert_eq!(duel(level, (&low, &high), 0.0, &mut two.0, &mut two.1), (true, false));
                prop_assert_eq!(duel(level, (&high, &low), 0.0, &mut two.0, &mut two.1), (false, true));
                prop_assert!(weigh(level, &high, &low, 1.0, true, &mut two.0, &mut two.1));
                prop_assert!(!weigh(level, &low, &high, 1.0, false, &mut two.0, &mut two.1));
            }
        }
    }
}
