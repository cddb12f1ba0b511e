//! Protocol versions and their negotiation.

use thiserror::Error;

/// Oldest protocol version this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol version this build speaks. 1: the first release. 2: hashes first (`HashQuestion`). 3: verify on
/// request (`VerifyRequest`), content of published templates (`HashAnswer.offered`). 4: consistency levels of bookmarks,
/// synchronous mode (`Ping.sync`). 5: barriers of consistency sets (`BarrierOrder`).
pub const PROTOCOL_MAX: u32 = 5;
/// The first version in which pieces are asked about by their hashes.
pub const HASHES_FIRST: u32 = 2;
/// The first version in which the appliance may ask for a verify.
pub const VERIFY: u32 = 3;
/// The first version in which the appliance offers what published templates have.
pub const TEMPLATES: u32 = 3;
/// The first version in which the appliance records promises of synchronous mode.
pub const SYNC: u32 = 4;
/// The first version in which bookmarks are asked for with a consistency level.
pub const CONSISTENCY: u32 = 4;
/// The first version in which a splitter takes part in barriers.
pub const BARRIER: u32 = 5;

/// The peers share no protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the peer speaks protocol {peer_min} to {peer_max}, this side {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade the older one"
)]
pub struct NoCommonVersion {
    /// Oldest version of the peer.
    pub peer_min: u32,
    /// Newest version of the peer.
    pub peer_max: u32,
}

/// The newest version both sides speak.
///
/// # Errors
/// [`NoCommonVersion`] when the ranges do not meet, or the peer's range is empty.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, NoCommonVersion> {
    let version = peer_max.min(PROTOCOL_MAX);
    if peer_min > peer_max || version < peer_min || version < PROTOCOL_MIN {
        return Err(NoCommonVersion { peer_min, peer_max });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        assert_eq!(negotiate(1, 1), Ok(1));
        assert_eq!(negotiate(1, 2), Ok(2));
        assert_eq!(negotiate(1, 9), Ok(PROTOCOL_MAX));
        assert_eq!(negotiate(0, 1), Ok(1));
    }

    #[test]
    fn disjoint_or_empty_ranges_are_refused_with_both_ranges_named() {
        let error = negotiate(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2).unwrap_err();
        let theirs = format!("{} to {}", PROTOCOL_MAX + 1, PROTOCOL_MAX + 2);
        assert!(error.to_string().contains(&theirs) && error.to_string().contains("upgrade"), "{error}");
        assert!(negotiate(0, 0).is_err());
        assert!(negotiate(1, 0).is_err());
    }
}
