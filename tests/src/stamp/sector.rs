//! One stamped sector.
//!
//! | bytes | content (little-endian) |
//! |---|---|
//! | 0..8 | magic `TMSTAMP1` |
//! | 8..16 | run: which workload run wrote it |
//! | 16..24 | sequence number of the write in its run |
//! | 24..32 | the sector's own address on the disk |
//! | 32..40 | microseconds since the run began |
//! | 40..508 | filler derived from the fields above |
//! | 508..512 | CRC-32C of bytes 0..508 |

/// Size of a sector in bytes: the unit of addresses in the whole project.
pub const SECTOR_BYTES: usize = 512;

const MAGIC: u64 = u64::from_le_bytes(*b"TMSTAMP1");
const FILLER: std::ops::Range<usize> = 40..508;
/// Odd multiplier of splitmix64 (Steele, Lea, Flood 2014): neighbouring stamps get unlike fillers.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a stamped sector says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Workload run.
    pub run: u64,
    /// Sequence number of the write within the run.
    pub sequence: u64,
    /// Address of this sector.
    pub sector: u64,
    /// Microseconds since the run began.
    pub time_us: u64,
}

/// What a sector holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sector {
    /// A whole, undamaged stamp.
    Stamped(Stamp),
    /// Nothing but zeroes.
    Zeroes,
    /// Neither: torn, damaged or foreign.
    Garbage,
}

impl Stamp {
    /// Writes the stamp into a sector.
    pub fn encode(&self, sector: &mut [u8; SECTOR_BYTES]) {
        let (head, rest) = sector.split_at_mut(FILLER.start);
        let fields = [MAGIC, self.run, self.sequence, self.sector, self.time_us];
        for (bytes, field) in head.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        let mut filler = self.run ^ self.sequence.wrapping_mul(MIX) ^ self.sector.rotate_left(32);
        for bytes in rest[..FILLER.len()].chunks_mut(8) {
            filler = filler.wrapping_add(MIX);
            let word = (filler ^ (filler >> 29)).to_le_bytes();
            bytes.copy_from_slice(&word[..bytes.len()]);
        }
        let crc = crc32c::crc32c(&sector[..FILLER.end]);
        sector[FILLER.end..].copy_from_slice(&crc.to_le_bytes());
    }
}

impl Sector {
    /// Reads a sector of [`SECTOR_BYTES`]; any other length is garbage.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        if bytes.len() != SECTOR_BYTES {
            return Self::Garbage;
        }
        let word = |at: usize| -> u64 {
            bytes[at..at + 8].iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
        };
        if word(0) != MAGIC {
            return if bytes.iter().all(|byte| *byte == 0) { Self::Zeroes } else { Self::Garbage };
        }
        let crc = crc32c::crc32c(&bytes[..FILLER.end]).to_le_bytes();
        if crc != bytes[FILLER.end..] {
            return Self::Garbage;
        }
        Self::Stamped(Stamp { run: word(8), sequence: word(16), sector: word(24), time_us: word(32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_and_damage_does_not() {
        let stamp = Stamp { run: 7, sequence: u64::MAX - 3, sector: 123_456_789, time_us: 42 };
        let mut bytes = [0; SECTOR_BYTES];
        assert_eq!(Sector::decode(&bytes), Sector::Zeroes);
        stamp.encode(&mut bytes);
        assert_eq!(Sector::decode(&bytes), Sector::Stamped(stamp));
        for at in 0..SECTOR_BYTES {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(Sector::decode(&torn), Sector::Garbage, "byte {at}");
        }
        assert_eq!(Sector::decode(&bytes[..100]), Sector::Garbage);
    }
}
