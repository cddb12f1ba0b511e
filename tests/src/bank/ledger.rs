//! What a member knows, and what the ledgers of one moment must agree on.

use anyhow::{Result, ensure};

use super::MEMBERS_MAX;

/// Bytes of a ledger: a sector, which no disk tears.
pub const LEDGER_BYTES: usize = 512;
/// What each member has at the beginning.
pub const CAPITAL: u64 = 1_000_000;

const MAGIC: u64 = 0x6b6e_6162_6b72_616d;
const WORDS: usize = LEDGER_BYTES / 8;
const HEAD_WORDS: usize = 4;
const PASSED_WORDS: usize = 3;
/// What passed between two members, in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Messages.
    pub count: u64,
    /// Money.
    pub amount: u64,
    /// When the ledger that sent the last of them was about to be written: `CLOCK_BOOTTIME`, microseconds.
    pub sent_us: u64,
}

/// A member's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// How often it was written.
    pub sequence: u64,
    /// When it was about to be written: `CLOCK_BOOTTIME`, microseconds.
    pub written_us: u64,
    /// Money.
    pub balance: u64,
    /// To each member.
    pub sent: [Passed; MEMBERS_MAX],
    /// From each member.
    pub received: [Passed; MEMBERS_MAX],
}

impl Default for Ledger {
    fn default() -> Self {
        let none = [Passed::default(); MEMBERS_MAX];
        Self { sequence: 0, written_us: 0, balance: CAPITAL, sent: none, received: none }
    }
}

impl Ledger {
    /// The sector that holds it.
    #[must_use]
    pub fn encode(&self) -> [u8; LEDGER_BYTES] {
        let mut words = vec![MAGIC, self.sequence, self.written_us, self.balance];
        for passed in self.sent.iter().chain(&self.received) {
            words.extend([passed.count, passed.amount, passed.sent_us]);
        }
        words.resize(WORDS - 1, 0);
        let mut sector = [0; LEDGER_BYTES];
        for (bytes, word) in sector.chunks_exact_mut(8).zip(&words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let (content, sum) = sector.split_at_mut(LEDGER_BYTES - 8);
        sum.copy_from_slice(&u64::from(crc32c::crc32c(content)).to_le_bytes());
        sector
    }

    /// The ledger in a sector.
    ///
    /// # Errors
    /// When it is none, is damaged, or contradicts itself.
    pub fn decode(sector: &[u8]) -> Result<Self> {
        ensure!(sector.len() == LEDGER_BYTES, "a ledger has {LEDGER_BYTES} bytes");
        let words: Vec<u64> = sector
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
            .collect();
        let sum = crc32c::crc32c(sector.get(..LEDGER_BYTES - 8).unwrap_or_default());
        ensure!(words.first() == Some(&MAGIC) && words.last() == Some(&u64::from(sum)), "this is no ledger");
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let passed = |index: usize| {
            let at = HEAD_WORDS + index * PASSED_WORDS;
            Passed { count: word(at), amount: word(at + 1), sent_us: word(at + 2) }
        };
        let ledger = Self {
            sequence: word(1),
            written_us: word(2),
            balance: word(3),
            sent: std::array::from_fn(passed),
            received: std::array::from_fn(|index| passed(MEMBERS_MAX + index)),
        };
        let (got, gave) = (sum_of(&ledger.received), sum_of(&ledger.sent));
        ensure!(CAPITAL + got == ledger.balance + gave, "a ledger whose sums are wrong: {ledger:?}");
        Ok(ledger)
    }
}

fn sum_of(passed: &[Passed]) -> u64 {
    passed.iter().map(|passed| passed.amount).sum()
}

/// Somebody has what was not sent to it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Early {
    /// Who has not sent it.
    pub from: usize,
    /// Who has it.
    pub to: usize,
    /// How many messages.
    pub messages: u64,
    /// From the time the last of them was about to be sent until its receiver's ledger was about to be written,
    /// microseconds: by so much the two members' moments differ at least.
    pub apart_us: u64,
}

/// What was received before it was sent, in ledgers of one point.
///
/// # Errors
/// When money was lost or made.
pub fn check(ledgers: &[Ledger]) -> Result<Vec<Early>> {
    let mut early = Vec::new();
    for (to, receiver) in ledgers.iter().enumerate() {
        for (from, sender) in ledgers.iter().enumerate() {
            let (Some(got), Some(sent)) = (receiver.received.get(from), sender.sent.get(to)) else {
                continue;
            };
            if got.count > sent.count {
                let apart_us = receiver.written_us.saturating_sub(got.sent_us);
                early.push(Early { from, to, messages: got.count - sent.count, apart_us });
            }
        }
    }
    let there: i128 = ledgers.iter().map(|ledger| i128::from(ledger.balance)).sum();
    let gone: i128 = ledgers.iter().map(|ledger| i128::from(sum_of(&ledger.sent))).sum();
    let come: i128 = ledgers.iter().map(|ledger| i128::from(sum_of(&ledger.received))).sum();
    let capital = i128::from(CAPITAL) * i128::try_from(ledgers.len())?;
    ensure!(
        there + gone - come == capital,
        "{there} in ledgers and {gone} - {come} under way are not {capital}"
    );
    ensure!(!early.is_empty() || gone >= come, "more came than went, and nobody has it early");
    Ok(early)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test states what must hold and stops where it does not"
)]
mod tests {
    use super::*;

    /// Two members between which a message was sent, and received or not.
    fn two(sent: u64, received: u64) -> [Ledger; 2] {
        let mut ledgers = [Ledger::default(), Ledger::default()];
        ledgers[0].sent[1] = Passed { count: sent, amount: sent, sent_us: 10 };
        ledgers[0].balance -= sent;
        ledgers[1].received[0] = Passed { count: received, amount: received, sent_us: 10 };
        ledgers[1].balance += received;
        ledgers[1].written_us = 17;
        ledgers
    }

    #[test]
    fn a_ledger_comes_back_from_its_sector_and_damage_is_seen() {
        let [ledger, _] = two(3, 3);
        let sector = ledger.encode();
        assert_eq!(Ledger::decode(&sector).unwrap(), ledger);
        for at in [0, 8, 100, LEDGER_BYTES - 1] {
            let mut damaged = sector;
            damaged[at] ^= 1;
            assert!(Ledger::decode(&damaged).is_err(), "byte {at}");
        }
        let wrong = Ledger { balance: 1, ..ledger };
        assert!(Ledger::decode(&wrong.encode()).unwrap_err().to_string().contains("sums"));
    }

    #[test]
    fn what_is_under_way_is_legal_and_what_came_before_it_went_is_not() {
        assert_eq!(check(&two(5, 5)).unwrap(), []);
        assert_eq!(check(&two(5, 2)).unwrap(), []);
        let early = Early { from: 0, to: 1, messages: 1, apart_us: 7 };
        assert_eq!(check(&two(5, 6)).unwrap(), [early]);
        let mut lost = two(5, 5);
        lost[1].balance -= 1;
        assert!(check(&lost).is_err());
    }
}
