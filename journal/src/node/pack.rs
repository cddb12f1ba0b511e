//! Columns of integers: the lowest value, a width in bits, and the differences to the lowest packed one after another.

use crate::wire::{Put, Reader};

/// Appends a column.
pub(super) fn pack(values: &[u64], out: &mut Vec<u8>) {
    let lowest = values.iter().copied().min().unwrap_or(0);
    let highest = values.iter().copied().max().unwrap_or(0);
    let bits = u64::BITS - (highest - lowest).leading_zeros();
    out.u64(lowest);
    out.u8(u8::try_from(bits).unwrap_or(0));
    let mut held: u128 = 0;
    let mut held_bits = 0;
    for value in values {
        held |= u128::from(value - lowest) << held_bits;
        held_bits += bits;
        while held_bits >= 8 {
            out.put(held.to_le_bytes().get(..1).unwrap_or_default());
            held >>= 8;
            held_bits -= 8;
        }
    }
    if held_bits > 0 {
        out.put(held.to_le_bytes().get(..1).unwrap_or_default());
    }
}

/// Reads a column of `count` values. `None`: it is cut off or no column.
pub(super) fn unpack(reader: &mut Reader<'_>, count: usize) -> Option<Vec<u64>> {
    let lowest = reader.u64()?;
    let bits = u32::from(reader.u8()?);
    if bits > u64::BITS {
        return None;
    }
    let bytes = reader.take(count.checked_mul(usize::try_from(bits).ok()?)?.div_ceil(8))?;
    let mask = if bits == 0 { 0 } else { u64::MAX >> (u64::BITS - bits) };
    let mut bytes = bytes.iter();
    let mut held: u128 = 0;
    let mut held_bits = 0;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        while held_bits < bits {
            held |= u128::from(*bytes.next()?) << held_bits;
            held_bits += 8;
        }
        let low = u64::try_from(held & u128::from(mask)).ok()?;
        values.push(lowest.checked_add(low)?);
        held >>= bits;
        held_bits -= bits;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_back_and_take_no_more_bits_than_they_need() {
        let columns: [(&[u64], usize); 5] = [
            (&[], 9),
            (&[7, 7, 7], 9),
            (&[0, 1, 0, 1, 1, 1, 1, 1, 1], 9 + 2),
            (&[u64::MAX, 0, 5], 9 + 24),
            (&[1 << 40, (1 << 40) + 1000], 9 + 3),
        ];
        for (values, bytes) in columns {
            let mut out = Vec::new();
            pack(values, &mut out);
            assert_eq!(out.len(), bytes, "{values:?}");
            let mut reader = Reader::new(&out);
            assert_eq!(unpack(&mut reader, values.len()).as_deref(), Some(values));
            assert_eq!(reader.rest(), 0);
            assert_eq!(unpack(&mut Reader::new(&out[..out.len() - 1]), values.len()), None);
        }
    }
}
