//! Sizes and times as people write them: `64k`, `10s`.

use std::time::Duration;

/// Parses a size in bytes: a whole number, alone or with `k`, `m` or `g` (powers of 1,024).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(['b', 'i']);
    let (digits, shift) = match digits.as_bytes().last() {
        Some(b'k') => (&digits[..digits.len() - 1], 10),
        Some(b'm') => (&digits[..digits.len() - 1], 20),
        Some(b'g') => (&digits[..digits.len() - 1], 30),
        _ => (digits, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| "a size is a whole number, like 4096, 64k or 1m".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that size is too large to count".to_string())
}

/// Parses a time: a whole number with its unit, like `50us`, `200ms`, `10s`, `5m`; `0` is zero.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|_| "a time is a number with its unit, like 50us, 200ms, 10s or 5m".to_string())
}

/// Parses how long to wait for something: a time over zero, of a day at most.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("without any time to wait nothing can come back".to_string()),
        time if time > Duration::from_secs(86_400) => Err("the longest wait is 1day".to_string()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64k"), Ok(65_536));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("2M"), Ok(2 << 20));
        assert_eq!(size("1g"), Ok(1 << 30));
        for bad in ["", "k", "-1", "1.5k", "ten", "64kk", "99999999999g"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        for bad in ["", "10", "s", "-1s", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_is_neither_nothing_nor_forever() {
        assert_eq!(timeout("1ns"), Ok(Duration::from_nanos(1)));
        assert_eq!(timeout("1day"), Ok(Duration::from_secs(86_400)));
        for bad in ["0", "0s", "86401s", "10000years", ""] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }
}
