//! How all tools print numbers, times, sizes and rates: `1,234`, `98.7 µs`, `64 KiB`, `1.5 GiB/s`,
//! `12.3 Mbit/s`.

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

/// A number of things: `1 byte`, `2,048 bytes`.
pub fn count(number: impl TryInto<u64>, what: &str) -> impl fmt::Display {
    let number = number.try_into().unwrap_or(u64::MAX);
    let plural = if number == 1 { "" } else { "s" };
    fmt::from_fn(move |f| write!(f, "{} {what}{plural}", grouped(number)))
}

/// What has happened to a number of things: `1 byte was`, `2,048 bytes were`.
pub fn were(number: impl TryInto<u64>, what: &str) -> impl fmt::Display {
    let number = number.try_into().unwrap_or(u64::MAX);
    let verb = if number == 1 { "was" } else { "were" };
    fmt::from_fn(move |f| write!(f, "{} {verb}", count(number, what)))
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

/// A number that was measured, rounded: whole and with commas, or with at most three digits where it is
/// under 100. What has over 15 digits is in powers of ten.
///
/// ```
/// use evecho::units;
///
/// let texts = [0.333_3, 9.998, 42.27, 1_249.6].map(|number| units::rounded(number).to_string());
/// assert_eq!(texts, ["0.33", "10", "42.3", "1,250"]);
/// ```
pub fn rounded(number: f64) -> impl fmt::Display {
    fmt::from_fn(move |f| match number {
        number if number < 99.95 => f.pad(&three_digits(number)),
        number if number < 1e15 => fmt::Display::fmt(&grouped(number.round() as u64), f),
        number => f.pad(&format!("{number:e}")),
    })
}

/// Bits per second of a payload, in powers of 1,000: `800 bit/s`, `12.3 Mbit/s`.
pub fn bit_rate(bytes_per_second: f64) -> impl fmt::Display {
    let bits = bytes_per_second * 8.0;
    let names = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"];
    // What rounds to 1,000 has the next unit.
    let step = (0..3).find(|&step| bits < 999.5 * 1000_f64.powi(step)).unwrap_or(3);
    Scaled { value: bits / 1000_f64.powi(step), name: names[step as usize] }
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
        f.pad(&format!("{} {}", three_digits(self.value), self.name))
    }
}

/// With three digits, or more before the point, and without zeros at the end of those behind it.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    let number = format!("{value:.decimals$}");
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => number,
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
        assert_eq!(
            [count(1, "byte").to_string(), count(0, "byte").to_string()],
            ["1 byte", "0 bytes"]
        );
        assert_eq!(were(1_u8, "byte").to_string(), "1 byte was");
        assert_eq!(were(2_048_usize, "byte").to_string(), "2,048 bytes were");
        let texts = [0, 999, 1_000, 1_234_567].map(|number| grouped(number).to_string());
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(format!("{:>6}|{:<6}", grouped(1_000), time(Duration::ZERO)), " 1,000|0 ns  ");
    }

    #[test]
    fn what_was_measured_is_rounded_and_not_cut() {
        for (number, expected) in [
            (0.0, "0"),
            (0.004, "0"),
            (0.5, "0.5"),
            (9.994, "9.99"),
            (9.999_6, "10"),
            (99.94, "99.9"),
            (99.96, "100"),
            (1_249.5, "1,250"),
            (1e300, "1e300"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(rounded(number).to_string(), expected, "{number}");
        }
        assert_eq!(format!("{:>7}|{:>5}", rounded(1_999.9), rounded(0.25)), "  2,000| 0.25");
    }

    #[test]
    fn bits_are_those_of_the_bytes_in_powers_of_ten() {
        for (bytes, expected) in [
            (0.0, "0 bit/s"),
            (100.0, "800 bit/s"),
            (124.95, "1 kbit/s"),
            (1_540_000.0, "12.3 Mbit/s"),
            (1.25e9, "10 Gbit/s"),
            (1.25e12, "10000 Gbit/s"),
        ] {
            assert_eq!(bit_rate(bytes).to_string(), expected);
        }
    }

    #[test]
    fn milliseconds_are_exact_to_microseconds() {
        assert_eq!(milliseconds(Duration::from_nanos(127_400)).to_string(), "0.127");
    }
}
