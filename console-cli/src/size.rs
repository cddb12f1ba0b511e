//! Byte counts as people read them.

const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];

/// Decimal units, three digits: `3.1 MB`.
pub(crate) fn show(bytes: u64) -> String {
    let mut unit = 0;
    // Tenths of the present unit; exact until the last division.
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 || tenths >= 1000 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let shown: Vec<_> = [0, 999, 1000, 3_140_000, 512_000_000, 1 << 40, u64::MAX].map(show).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 KB", "3.1 MB", "512 MB", "1.0 TB", "18446 PB"]);
    }
}
