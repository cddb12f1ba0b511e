//! The order of freeze hooks, and thawing in reverse.

use wildmatch::WildMatch;

use crate::sets::barrier::MemberId;

/// How long a member's thaw hooks are waited for before the next ones run: nothing is held by then but applications, and a
/// splitter's own watchdog thaws those.
const THAW_US: u64 = 10_000_000;

/// The members in the order in which their freeze hooks run: by the first pattern that holds for the name, then those of
/// no pattern; by name among equals.
pub(super) fn order(names: &[&str], patterns: &[String]) -> Vec<MemberId> {
    let patterns: Vec<WildMatch> = patterns.iter().map(|pattern| WildMatch::new(pattern)).collect();
    let rank = |name: &str| patterns.iter().position(|pattern| pattern.matches(name));
    let mut order: Vec<(usize, &str, MemberId)> = names
        .iter()
        .enumerate()
        .map(|(member, name)| (rank(name).unwrap_or(patterns.len()), *name, member))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, member)| member).collect()
}

/// Thaws one member after another, the last that was quiesced first.
#[derive(Debug)]
pub(super) struct Thawing {
    /// Still to be thawed; the next is the last.
    waiting: Vec<MemberId>,
    now: Option<(MemberId, u64)>,
}

impl Thawing {
    /// Of these, in the order in which they were quiesced.
    pub(super) fn of(quiesced: Vec<MemberId>) -> Self {
        Self { waiting: quiesced, now: None }
    }

    /// The member to be told to thaw, if it is time for one.
    pub(super) fn next(&mut self, now_us: u64) -> Option<MemberId> {
        if self.now.is_some_and(|(_, deadline_us)| now_us < deadline_us) {
            return None;
        }
        self.now = None;
        let member = self.waiting.pop()?;
        self.now = Some((member, now_us.saturating_add(THAW_US)));
        Some(member)
    }

    /// A member has thawed, or will not.
    pub(super) fn done(&mut self, member: MemberId) {
        self.now.take_if(|(thawing, _)| *thawing == member);
    }

    /// A member cannot be told anything any more.
    pub(super) fn gone(&mut self, member: MemberId) {
        self.waiting.retain(|waiting| *waiting != member);
        self.done(member);
    }

    pub(super) fn deadline_us(&self) -> Option<u64> {
        self.now.map(|(_, deadline_us)| deadline_us)
    }

    pub(super) fn is_over(&self) -> bool {
        self.now.is_none() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_give_the_order_and_names_the_rest() {
        let names = ["web-2", "db-1", "web-1", "queue"];
        let patterns = ["web-*".to_owned(), "queue".to_owned()];
        assert_eq!(order(&names, &patterns), [2, 0, 3, 1]);
        assert_eq!(order(&names, &[]), [1, 3, 2, 0]);
    }

    #[test]
    fn thawing_goes_backwards_and_waits_for_nobody_for_ever() {
        let mut thawing = Thawing::of(vec![2, 0, 3]);
        assert_eq!((thawing.next(0), thawing.next(1)), (Some(3), None));
        thawing.done(7);
        assert_eq!(thawing.next(1), None);
        thawing.done(3);
        assert_eq!(thawing.next(2), Some(0));
        assert_eq!(thawing.next(2 + THAW_US), Some(2), "it took too long");
        thawing.gone(2);
        assert!(thawing.is_over() && thawing.deadline_us().is_none());
    }
}
