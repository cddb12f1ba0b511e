//! Finding what need not be written or stored.

/// Whether all bytes are zero. Compares machine words, so that data is dismissed at once and zeroes at memory speed.
pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_counts() {
        assert!(all_zero(&[]) && all_zero(&[0; 4096]) && all_zero(&[0; 65]));
        for at in [0, 63, 64, 4095, 4096] {
            let mut bytes = [0; 4097];
            bytes[at] = 1;
            assert!(!all_zero(&bytes), "{at}");
        }
    }
}
