//! The first bytes of every message: when it was sent, in printable ASCII, valid in text and binary messages.

/// Length of a stamp in bytes.
pub(super) const LENGTH: usize = 8;

/// Encodes nanoseconds since the start of the run, 6 bits per byte; 2^48 are 78 hours.
pub(super) fn write(nanoseconds: u64) -> [u8; LENGTH] {
    std::array::from_fn(|i| b'0' + ((nanoseconds >> (6 * i)) & 63) as u8)
}

/// Decodes a stamp; `None` if the payload begins with none.
pub(super) fn read(payload: &[u8]) -> Option<u64> {
    let bytes: &[u8; LENGTH] = payload.first_chunk()?;
    let mut nanoseconds = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let six = byte.wrapping_sub(b'0');
        if six > 63 {
            return None;
        }
        nanoseconds |= u64::from(six) << (6 * i);
    }
    Some(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_printable_and_decodes_to_the_same_time() {
        for nanoseconds in [0, 1, 63, 64, 1_234_567_890_123, (1 << 48) - 1] {
            let stamp = write(nanoseconds);
            assert!(stamp.iter().all(|byte| byte.is_ascii_graphic()), "{stamp:?}");
            assert_eq!(read(&stamp), Some(nanoseconds));
        }
    }

    #[test]
    fn other_bytes_are_not_a_stamp() {
        assert_eq!(read(b"short"), None);
        assert_eq!(read(b"not one!"), None);
    }
}
