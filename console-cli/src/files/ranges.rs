//! Sorted ranges of bytes or blocks.

/// Ranges kept at most: 64 MiB. Beyond it neighbours are joined over what lies between them; that makes more count as
/// changed than did, never less. What is subtracted has fewer.
pub(super) const RANGES_MAX: usize = 4 << 20;

/// Half-open ranges, by their start, that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// From ranges in any order.
    pub(crate) fn of(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.sort_unstable();
        let mut all = Self::default();
        ranges.into_iter().for_each(|(start, end)| all.push(start, end));
        all
    }

    /// Adds a range that begins no earlier than the last one.
    pub(crate) fn push(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((_, last)) = self.0.last_mut().filter(|(_, last)| start <= *last) {
            *last = end.max(*last);
            return;
        }
        self.0.push((start, end));
        if self.0.len() >= RANGES_MAX {
            let joined = self.0.chunks(2).filter_map(|pair| Some((pair.first()?.0, pair.last()?.1)));
            self.0 = joined.collect();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The parts inside `[start, end)`.
    pub(crate) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.0.partition_point(|(_, last)| *last <= start);
        let parts = self.0.get(first..).unwrap_or_default().iter();
        parts
            .take_while(move |(from, _)| *from < end && start < end)
            .map(move |(from, to)| ((*from).max(start), (*to).min(end)))
    }

    pub(crate) fn intersects(&self, start: u64, end: u64) -> bool {
        self.within(start, end).next().is_some()
    }

    /// What is in these and not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for (start, end) in self.iter() {
            let mut at = start;
            for (from, to) in other.within(start, end) {
                left.push(at, from);
                at = to;
            }
            left.push(at, end);
        }
        left
    }

    /// What is in either.
    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self::of(self.iter().chain(other.iter()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(start, end)| start..end).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_sets(one in prop::collection::vec((0_u64..200, 0_u64..20), 0..20),
                           two in prop::collection::vec((0_u64..200, 0_u64..20), 0..20),
                           from in 0_u64..200, length in 0_u64..60) {
            let numbers = |ranges: &[(u64, u64)]| -> BTreeSet<u64> {
                ranges.iter().flat_map(|(start, length)| *start..start + length).collect()
            };
            let make = |ranges: &[(u64, u64)]| {
                Ranges::of(ranges.iter().map(|(start, length)| (*start, start + length)).collect())
            };
            let (a, b) = (make(&one), make(&two));
            prop_assert_eq!(set(&a), numbers(&one));
            prop_assert_eq!(set(&a.minus(&b)), &numbers(&one) - &numbers(&two));
            prop_assert_eq!(set(&a.plus(&b)), &numbers(&one) | &numbers(&two));
            let inside: BTreeSet<u64> = a.within(from, from + length).flat_map(|(s, e)| s..e).collect();
            let expected: BTreeSet<u64> =
                numbers(&one).into_iter().filter(|n| (from..from + length).contains(n)).collect();
            prop_assert_eq!(a.intersects(from, from + length), !expected.is_empty());
            prop_assert_eq!(inside, expected);
        }
    }
}
