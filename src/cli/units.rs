//! Sizes and times as people write them: `64k`, `10s`.

use std::time::Duration;

use evecho::client::target::LONGEST_WAIT;

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

/// Parses a time: a number of seconds, or a number with its unit (`50us`, `200ms`, `1.5h`), or
/// several of them (`1h 30m`). What is longer than any time is the longest.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let seconds = match unit.trim_start() {
        "" | "s" => 1.0,
        "ns" => 1e-9,
        // The micro sign, and the Greek letter.
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return humantime::parse_duration(text).map_err(|_| no_time()),
    };
    let number: f64 = text[..text.len() - unit.len()].parse().map_err(|_| no_time())?;
    Ok(Duration::try_from_secs_f64(number * seconds).unwrap_or(Duration::MAX))
}

fn no_time() -> String {
    "a time is a number, in seconds or with its unit, like 0.2, 50us, 200ms or 5m".to_string()
}

/// Parses how long to wait for something: a time over zero, of a day at most.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be longer than nothing".to_string()),
        time if time > LONGEST_WAIT => Err("the longest is a day, 24h".to_string()),
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
        assert_eq!(duration("50µs"), Ok(Duration::from_micros(50)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1.5 ms"), Ok(Duration::from_micros(1_500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("1day"), duration("24h"));
        assert_eq!(duration("5min"), duration("5m"));
        for bad in ["", ".", "s", "-1", "-1s", "soon", "1..2", "1e3", "inf", "NaN", "5 apples"] {
            let error = duration(bad).unwrap_err();
            assert!(error.starts_with("a time is a number"), "{bad}: {error}");
        }
        assert_eq!(duration("99999999999999999999"), Ok(Duration::MAX));
    }

    #[test]
    fn a_time_without_a_unit_is_in_seconds() {
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(duration(".5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0.000001"), Ok(Duration::from_micros(1)));
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
