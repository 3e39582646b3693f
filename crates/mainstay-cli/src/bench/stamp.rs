//! The first bytes of every message: when it was sent, in printable ASCII, so that text and binary look alike.

/// Bytes of a stamp.
pub(super) const LENGTH: usize = 8;

/// Writes nanoseconds since the run began, 6 bits a byte; 2^48 of them are 78 hours.
pub(super) fn write(nanoseconds: u64) -> [u8; LENGTH] {
    std::array::from_fn(|i| b'0' + ((nanoseconds >> (6 * i)) & 63) as u8)
}

/// Reads a stamp, `None` if these bytes are none.
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
    fn a_stamp_is_printable_and_read_back() {
        for nanoseconds in [0, 1, 63, 64, 1_234_567_890_123, (1 << 48) - 1] {
            let stamp = write(nanoseconds);
            assert!(stamp.iter().all(|byte| byte.is_ascii_graphic()), "{stamp:?}");
            assert_eq!(read(&stamp), Some(nanoseconds));
        }
    }

    #[test]
    fn what_is_no_stamp_is_not_read_as_one() {
        assert_eq!(read(b"short"), None);
        assert_eq!(read(b"not one!"), None);
    }
}
