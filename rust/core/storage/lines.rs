//! Boxes of elements of a tensor, taken apart into lines: where a part of it lies, and where what belongs to each of its
//! elements is stored.

use std::ops::Range;

/// One dimension: its length, the elements between two neighbours in the tensor, and in two stored parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub n: u64,
    pub to: u64,
    pub from: [u64; 2],
}

/// A box of elements; of its dimensions those that are far apart in the tensor come first.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    to: u64,
    from: [u64; 2],
    axes: Vec<Axis>,
}

/// Elements one behind the other along the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The first one in the tensor.
    pub to: u64,
    /// How many.
    pub n: usize,
    /// Elements between two neighbours in the tensor.
    pub step: usize,
    /// Where the first one lies in two stored parts.
    pub from: [u64; 2],
    /// Elements between two neighbours there.
    pub along: [u64; 2],
}

impl Lines {
    /// A box of a tensor of `elements`, whose parts have as many as `stored` says; or why it is none.
    pub(crate) fn new(
        to: u64,
        from: [u64; 2],
        mut axes: Vec<Axis>,
        elements: u64,
        stored: [u64; 2],
    ) -> Result<Lines, &'static str> {
        if axes.iter().any(|axis| axis.n == 0) {
            return Err("is empty");
        }
        axes.retain(|axis| axis.n > 1);
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.to));
        let last = |start: u64, stride: &dyn Fn(&Axis) -> u64| {
            let steps = axes.iter().map(|axis| u128::from(axis.n - 1) * u128::from(stride(axis)));
            steps.fold(u128::from(start), u128::saturating_add)
        };
        let beyond = last(to, &|axis| axis.to) >= u128::from(elements)
            || (0..2).any(|part| last(from[part], &|axis| axis.from[part]) >= u128::from(stored[part]));
        if beyond {
            return Err("goes beyond its tensor");
        }
        if (0..axes.len()).any(|at| axes[at].to < extent(&axes[at + 1..])) {
            return Err("goes over itself");
        }
        Ok(Lines { to, from, axes: joined(axes) })
    }

    /// Whether any element may lie in `range` of the tensor.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        self.to < range.end && self.to + extent(&self.axes) > range.start
    }

    /// The lines, or parts of them, that lie in `range` of the tensor, in order.
    pub(crate) fn within(&self, range: &Range<u64>, each: &mut impl FnMut(Line)) {
        if self.touches(range) {
            walk(&self.axes, self.to, self.from, range, each);
        }
    }
}

fn walk(axes: &[Axis], to: u64, from: [u64; 2], range: &Range<u64>, each: &mut impl FnMut(Line)) {
    const ONE: Axis = Axis { n: 1, to: 1, from: [0; 2] };
    let (axis, rest) = axes.split_first().map_or((ONE, axes), |(axis, rest)| (*axis, rest));
    let places = steps(axis, to, extent(rest), range);
    if places.is_empty() {
        return;
    }
    let at = |i: u64| (to + i * axis.to, [0, 1].map(|part| from[part] + i * axis.from[part]));
    if !rest.is_empty() {
        for i in places {
            let (to, from) = at(i);
            walk(rest, to, from, range, each);
        }
        return;
    }
    let (to, from) = at(places.start);
    each(Line { to, n: (places.end - places.start) as usize, step: axis.to as usize, from, along: axis.from });
}

/// Elements from the first to the last of these dimensions in the tensor, both included.
fn extent(axes: &[Axis]) -> u64 {
    1 + axes.iter().map(|axis| (axis.n - 1) * axis.to).sum::<u64>()
}

/// Which steps of a dimension, each with `width` elements from its place on, have any of them in `range`.
fn steps(axis: Axis, to: u64, width: u64, range: &Range<u64>) -> Range<u64> {
    if range.is_empty() || to >= range.end {
        return 0..0;
    }
    let first = (range.start + 1).saturating_sub(to + width).div_ceil(axis.to);
    let end = ((range.end - 1 - to) / axis.to + 1).min(axis.n);
    first.min(end)..end
}

/// The same dimensions with neighbours made one where they follow each other without a gap everywhere.
fn joined(axes: Vec<Axis>) -> Vec<Axis> {
    let mut joined: Vec<Axis> = Vec::with_capacity(axes.len());
    for axis in axes {
        match joined.last_mut() {
            Some(outer) if outer.to == axis.to * axis.n && (0..2).all(|i| outer.from[i] == axis.from[i] * axis.n) => {
                *outer = Axis { n: outer.n * axis.n, ..axis };
            }
            _ => joined.push(axis),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(n: u64, to: u64, from: [u64; 2]) -> Axis {
        Axis { n, to, from }
    }

    /// Every element that lies in a range, with its places in the parts.
    fn all(lines: &Lines, range: Range<u64>) -> Vec<(u64, [u64; 2])> {
        let mut found = Vec::new();
        lines.within(&range, &mut |line| {
            found.extend(
                (0..line.n as u64).map(|i| {
                    (line.to + i * line.step as u64, [0, 1].map(|part| line.from[part] + i * line.along[part]))
                }),
            );
        });
        found
    }

    #[test]
    fn every_element_of_a_range_once() {
        let axes = vec![axis(3, 1, [0, 5]), axis(4, 10, [1, 0]), axis(2, 40, [7, 1])];
        let lines = Lines::new(2, [1, 2], axes, 100, [50, 50]).unwrap();
        let mut expected = Vec::new();
        for i in 0..2 {
            for j in 0..4 {
                for k in 0..3 {
                    expected.push((2 + 40 * i + 10 * j + k, [1 + 7 * i + j, 2 + i + 5 * k]));
                }
            }
        }
        // Under Miri some ranges: from every seventh element, and all that end near an edge of the box.
        let step = if cfg!(miri) { 7 } else { 1 };
        for start in (0..100).step_by(step) {
            for end in (start..=100).step_by(step).chain([43, 77, 84, 85, 100].into_iter().filter(|end| *end >= start))
            {
                let wanted: Vec<_> = expected.iter().copied().filter(|(to, _)| (start..end).contains(to)).collect();
                assert_eq!(all(&lines, start..end), wanted);
            }
        }
    }

    #[test]
    fn what_is_no_box_of_the_tensor() {
        let box_of = |axes| Lines::new(0, [0; 2], axes, 10, [10; 2]).err();
        assert_eq!(box_of(vec![axis(0, 1, [0; 2])]), Some("is empty"));
        assert_eq!(box_of(vec![axis(11, 1, [0; 2])]), Some("goes beyond its tensor"));
        assert_eq!(box_of(vec![axis(2, 1, [0, 10])]), Some("goes beyond its tensor"));
        assert_eq!(box_of(vec![axis(3, 1, [0; 2]), axis(2, 2, [0; 2])]), Some("goes over itself"));
        assert_eq!(box_of(vec![axis(2, 0, [0; 2])]), Some("goes over itself"));
        assert_eq!(box_of(Vec::new()), None);
    }
}
