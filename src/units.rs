//! How all tools print numbers, times, sizes and rates: `1,234`, `98.7 µs`, `64 KiB`, `1.5 GiB/s`.

use std::fmt;
use std::time::Duration;

/// A time with at most three digits and the unit that fits: `950 ns`, `98.7 µs`, `1.5 s`, `2 h`.
///
/// ```
/// use std::time::Duration;
/// use evecho::units;
///
/// assert_eq!(units::time(Duration::from_nanos(98_712)).to_string(), "98.7 µs");
/// assert_eq!(units::time(Duration::from_millis(500)).to_string(), "500 ms");
/// ```
pub fn time(time: Duration) -> impl fmt::Display {
    // Up to two minutes in seconds, up to two hours in minutes.
    let (unit, name) = match time.as_nanos() {
        0..1_000 => (1.0, "ns"),
        1_000..999_500 => (1e3, "µs"),
        999_500..999_500_000 => (1e6, "ms"),
        999_500_000..120_000_000_000 => (1e9, "s"),
        120_000_000_000..7_200_000_000_000 => (60e9, "min"),
        _ => (3_600e9, "h"),
    };
    Scaled { value: time.as_nanos() as f64 / unit, name }
}

/// A time in milliseconds, exact to a microsecond and without its unit, as `ping(8)` prints it.
pub fn milliseconds(time: Duration) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{:.3}", time.as_secs_f64() * 1e3))
}

/// A time for programs: nanoseconds, up to 584 years.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A number of things: `1 byte`, `2 bytes`.
pub(crate) fn count<N: fmt::Display + PartialEq + From<u8>>(
    number: N,
    what: &str,
) -> impl fmt::Display {
    let plural = if number == N::from(1) { "" } else { "s" };
    fmt::from_fn(move |f| write!(f, "{number} {what}{plural}"))
}

/// A number of bytes with at most three digits and the unit that fits: `512 B`, `64 KiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> impl fmt::Display {
    scaled_bytes(bytes as f64, ["B", "KiB", "MiB", "GiB"])
}

/// Bytes per second with the unit that fits: `10 B/s`, `1.5 KiB/s`.
pub fn throughput(bytes_per_second: f64) -> impl fmt::Display {
    scaled_bytes(bytes_per_second, ["B/s", "KiB/s", "MiB/s", "GiB/s"])
}

/// A number with commas: `1,234,567`.
pub fn grouped(number: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let digits = number.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    })
}

fn scaled_bytes(bytes: f64, names: [&'static str; 4]) -> Scaled {
    // What rounds to 1,024 has the next unit.
    let step = (0..3).find(|&step| bytes < 1023.5 * 1024_f64.powi(step)).unwrap_or(3);
    Scaled { value: bytes / 1024_f64.powi(step), name: names[step as usize] }
}

/// A value in its unit.
struct Scaled {
    value: f64,
    name: &'static str,
}

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.value {
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        let number = format!("{:.decimals$}", self.value);
        let number = match number.contains('.') {
            true => number.trim_end_matches('0').trim_end_matches('.'),
            false => &number,
        };
        f.pad(&format!("{number} {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_no_trailing_zeros() {
        for (nanoseconds, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10 µs"),
            (98_700, "98.7 µs"),
            (987_000, "987 µs"),
            (999_499, "999 µs"),
            (999_501, "1 ms"),
            (9_870_000, "9.87 ms"),
            (12_345_000_000, "12.3 s"),
            (100_000_000_000, "100 s"),
            (150_000_000_000, "2.5 min"),
            (86_400_000_000_000, "24 h"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanoseconds)).to_string(), expected);
        }
        assert_eq!(time(Duration::MAX).to_string(), "5124095576030431 h");
    }

    #[test]
    fn sizes_have_a_fitting_unit() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (1_536, "1.5 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (8 << 20, "8 MiB"),
            (2_684_354_560, "2.5 GiB"),
            (u64::MAX, "17179869184 GiB"),
        ] {
            assert_eq!(size(bytes).to_string(), expected);
        }
        assert_eq!(throughput(1_536.0).to_string(), "1.5 KiB/s");
    }

    #[test]
    fn numbers_read_easily() {
        let texts = [0, 999, 1_000, 1_234_567].map(|number| grouped(number).to_string());
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(format!("{:>6}|{:<6}", grouped(1_000), time(Duration::ZERO)), " 1,000|0 ns  ");
    }

    #[test]
    fn milliseconds_are_exact_to_microseconds() {
        assert_eq!(milliseconds(Duration::from_nanos(127_400)).to_string(), "0.127");
    }
}
