//! What signatures prove about a journal.

use std::collections::BTreeMap;

use tidemark_proto::ids::{DiskId, Lsn};

use super::key::PublicKey;
use super::statement::{Head, Statement, StatementKind, state_digest};
use crate::error::OpenError;
use crate::manifest::{MANIFEST_FILE, Read, Record};
use crate::recovery::Damage;
use crate::segment::segment_name;
use crate::storage::Storage;
use crate::verify::{VerifyReport, verify_with};

/// What is proven of a journal by one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Whose signatures count.
    pub public_key: PublicKey,
    /// The last signed head that the log leads to, byte for byte; every point up to it is as it was written.
    pub proven: Option<Head>,
    /// The first point there is: what lies below it is only in images.
    pub from_lsn: Lsn,
    /// LSNs of bookmarks with a signature of their own that holds.
    pub bookmarks: Vec<Lsn>,
    /// By disk, what names the image at `from_lsn`; the last 32 bytes of an image's descriptor are its root hash.
    pub images: Vec<(DiskId, Vec<u8>)>,
    /// Signatures of that key.
    pub statements: u64,
    /// The first place that is not as it was signed; nothing from there on is proven.
    pub broken: Option<Damage>,
    /// The last LSN that the log holds, proven or not.
    pub end_lsn: Lsn,
}

impl Proof {
    /// Whether a recovery point is proven; that it is one is for the timeline to say.
    #[must_use]
    pub fn covers(&self, lsn: Lsn) -> bool {
        self.proven.is_some_and(|proven| lsn <= proven.lsn)
    }
}

/// Checks every byte as [`crate::verify`] does, and what the signatures of one key say of them. Needs nothing but the
/// files and the public key; changes nothing.
///
/// # Errors
/// As [`crate::verify`]. A journal that is not as it was signed is no error but a finding.
pub fn prove(storage: &dyn Storage, public_key: &PublicKey) -> Result<(VerifyReport, Proof), OpenError> {
    let (report, proof) = verify_with(storage, Some(*public_key))?;
    let damage = report.damage.first().cloned();
    let proof = proof.unwrap_or_else(|| Proof {
        public_key: *public_key,
        proven: None,
        from_lsn: Lsn::ZERO,
        bookmarks: Vec::new(),
        images: Vec::new(),
        statements: 0,
        broken: damage,
        end_lsn: Lsn::ZERO,
    });
    Ok((report, proof))
}

/// Follows the log from its beginning and compares it with what was signed.
#[derive(Debug)]
pub(crate) struct Trail {
    public_key: PublicKey,
    /// By place; all signatures hold.
    statements: BTreeMap<(u64, u64), Statement>,
    bookmarks: Vec<Lsn>,
    proven: Option<Head>,
    broken: Option<Damage>,
    /// Segment and byte up to which the log is proven.
    proven_to: (u64, u64),
    end_lsn: Lsn,
}

impl Trail {
    pub(crate) fn new(read: &Read, public_key: PublicKey) -> Self {
        let mut trail = Self {
            public_key,
            statements: BTreeMap::new(),
            bookmarks: Vec::new(),
            proven: None,
            broken: None,
            proven_to: (0, 0),
            end_lsn: Lsn::ZERO,
        };
        for statement in read.state.statements.values().filter(|found| found.public_key == public_key) {
            if statement.is_signed(read.vm, &read.key) {
                trail.statements.insert(statement.head.place(), *statement);
            } else {
                trail.broken.get_or_insert_with(|| forged(read, statement));
            }
        }
        let newest = trail.statements.last_key_value().map(|(_, newest)| *newest);
        let last = read.state.statements.values().next_back().map(|last| last.public_key);
        let problem = match newest {
            None => Some(format!("nothing is signed by {public_key}: is it the key of this appliance?")),
            Some(_) if last != Some(public_key) => {
                Some("another key signed later: give that one, if it is the appliance's".to_owned())
            }
            Some(newest) if newest.state != state_digest(&read.state) => {
                Some("disks, images or hashes of older segments are not those that were signed".to_owned())
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let file = MANIFEST_FILE.to_owned();
            trail.broken.get_or_insert(Damage { file, offset: 0, bytes: read.end, problem });
        }
        // A log to which nothing was ever appended has no place to reach.
        let empty = trail.statements.values().find(|found| found.head.segment == 0).map(|found| found.head);
        trail.proven = empty.filter(|_| trail.broken.is_none());
        trail
    }

    /// The log up to byte `offset` of a segment leads to this hash.
    pub(crate) fn reach(&mut self, place: (u64, u64), lsn: Lsn, hash: [u8; 32], offset: u64) {
        self.end_lsn = self.end_lsn.max(lsn);
        if self.broken.is_some() {
            return;
        }
        let Some(statement) = self.statements.get(&place) else { return };
        let head = statement.head;
        if head.hash == hash {
            if statement.kind == StatementKind::Bookmark {
                self.bookmarks.push(head.lsn);
            }
            self.proven = Some(head);
            self.proven_to = (place.0, offset);
            return;
        }
        let from = if self.proven_to.0 == place.0 { self.proven_to.1 } else { 0 };
        let problem = format!("it is not what was signed at LSN {}", head.lsn);
        self.broken =
            Some(Damage { file: segment_name(place.0), offset: from, bytes: offset - from, problem });
    }

    /// The log cannot be followed beyond this.
    pub(crate) fn breaks(&mut self, damage: &Damage) {
        if self.broken.is_none() {
            self.broken = Some(damage.clone());
        }
    }

    pub(crate) fn finish(self, read: &Read) -> Proof {
        let base = read.state.base.as_deref();
        let mut proof = Proof {
            public_key: self.public_key,
            proven: self.proven,
            from_lsn: base.map_or(Lsn::ZERO, |base| base.lsn),
            bookmarks: self.bookmarks,
            images: base.map(|base| base.images.clone()).unwrap_or_default(),
            statements: self.statements.len() as u64,
            broken: self.broken,
            end_lsn: self.end_lsn,
        };
        // What was signed later and is not there any more is missing.
        if let Some((_, newest)) = self.statements.last_key_value()
            && proof.broken.is_none()
            && proof.proven.is_none_or(|proven| proven.place() < newest.head.place())
        {
            let problem = format!("the log ends before LSN {}, up to which it was signed", newest.head.lsn);
            let file = segment_name(newest.head.segment);
            proof.broken = Some(Damage { file, offset: 0, bytes: 0, problem });
        }
        proof
    }
}

fn forged(read: &Read, statement: &Statement) -> Damage {
    let mut records = read.records.iter();
    let offset = records.find(|(_, _, record)| matches!(record, Record::Statement(of) if of == statement));
    Damage {
        file: MANIFEST_FILE.to_owned(),
        offset: offset.map_or(0, |(offset, _, _)| *offset),
        bytes: 0,
        problem: format!("the signature at LSN {} does not hold", statement.head.lsn),
    }
}
