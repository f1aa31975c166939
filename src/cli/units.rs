//! Numbers, sizes and times as people write them: `64k`, `10s`.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use evecho::client::target::LONGEST_WAIT;

/// A whole number.
pub(crate) trait Number:
    FromStr + PartialOrd + Display + Copy + Send + Sync + 'static
{
}

impl<T: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static> Number for T {}

/// Parses a whole number within these bounds.
pub(crate) fn number<T: Number>(
    least: T,
    most: T,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if least <= number && number <= most => Ok(number),
        _ => Err(format!("give a whole number from {least} to {most}")),
    }
}

/// Parses how many there are of something: the same, alone or with `k`, `m` or `g` (powers of 1,000).
pub(crate) fn count<T: Number>(
    least: T,
    most: T,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = number(least, most)(expanded(text).as_deref().unwrap_or(text));
        number.map_err(|error| error + ", like 100 or 10k")
    }
}

/// Parses how many messages are in flight: for some programs, `-d` is the duration.
pub(crate) fn depth(text: &str) -> Result<u16, String> {
    count(1, u16::MAX)(text).map_err(|error| error + "; how long to measure is --time")
}

/// Parses how often something happens in a second: a number above 0, alone or with `k`, `m` or `g`,
/// and with `/s` behind it or without.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let (number, power) = scaled(per_second(text));
    let rate = number.parse().ok().map(|number: f64| number * 1e3_f64.powi(power as i32));
    rate.filter(|rate| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "give a number above 0 for each second, like 20000, 10k or 0.5".to_owned())
}

/// The same for a limit, which is whole, or 0 for none.
pub(crate) fn limit(text: &str) -> Result<u32, String> {
    count(0, u32::MAX)(per_second(text))
}

fn per_second(text: &str) -> &str {
    text.strip_suffix("/s").unwrap_or(text)
}

/// A number without the letter of its unit, and which power of the base that stands for.
fn scaled(text: &str) -> (&str, usize) {
    let power = match text.as_bytes().last() {
        Some(b'k' | b'K') => 1,
        Some(b'm' | b'M') => 2,
        Some(b'g' | b'G') => 3,
        _ => return (text, 0),
    };
    (&text[..text.len() - 1], power)
}

/// The digits of a whole number such as `10k` or `1.5m`.
fn expanded(text: &str) -> Option<String> {
    let (number, power) = scaled(text);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let zeros = 3 * power;
    let is_whole = part.len() <= zeros && number.contains(|c: char| c.is_ascii_digit());
    is_whole.then(|| format!("{whole}{part:0<zeros$}"))
}

/// Parses the value of a variable that stands for a flag without a value.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "1" | "y" | "yes" | "on" | "t" | "true" => Ok(true),
        "0" | "n" | "no" | "off" | "f" | "false" => Ok(false),
        _ => Err("give 1, yes, on or true, or else 0, no, off or false".to_owned()),
    }
}

/// Parses a size in bytes: a number, alone or with `k`, `m` or `g` (powers of 1,024). What is longer than any size
/// is the longest.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let no_size = || "a size is a number of bytes, like 4096, 64k or 1.5m".to_owned();
    let (number, power) = scaled(text.trim().trim_end_matches(['b', 'B', 'i']));
    let is_plain = number.bytes().all(|digit| digit.is_ascii_digit() || digit == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_plain).ok_or_else(no_size)?;
    let bytes = number * 1024_f64.powi(power as i32);
    match bytes {
        _ if bytes.fract() > 0.0 => Err(no_size()),
        _ if bytes >= u64::MAX as f64 => {
            Err("that is too large; give a size like 4096, 64k or 1.5m".to_owned())
        }
        _ => Ok(bytes as usize),
    }
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
        Duration::ZERO => Err("give a time above 0, like 200ms or 5s".to_string()),
        time if time > LONGEST_WAIT => Err("the longest is a day, 24h".to_string()),
        time => Ok(time),
    }
}

/// Parses an address to send from.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "give an IP address of this machine, like 127.0.0.2".to_owned())
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
        assert_eq!(size("1.5k"), Ok(1_536));
        for bad in ["", "k", ".", "-1", "1.0001k", "ten", "1e3", "inf", "64kk", "99999999999g"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_read_as_people_write_them() {
        let count = count(1_u32, 2_000_000);
        for (text, number) in
            [("1", 1), ("10k", 10_000), ("2M", 2_000_000), ("1.25k", 1_250), (".5k", 500)]
        {
            assert_eq!(count(text), Ok(number), "{text}");
        }
        for bad in ["", "k", ".k", "0", "-1", "-1k", "1.5", "1.2345k", "3m", "10q", "30s", "inf"] {
            let error = count(bad).unwrap_err();
            assert_eq!(error, "give a whole number from 1 to 2000000, like 100 or 10k", "{bad}");
        }
        assert_eq!(
            depth("30s").unwrap_err().split("; ").last(),
            Some("how long to measure is --time")
        );
    }

    #[test]
    fn rates_read_as_people_write_them() {
        for (text, per_second) in [
            ("20000", 2e4),
            ("10k", 1e4),
            ("1/s", 1.0),
            ("2.5K/s", 2_500.0),
            ("0.5", 0.5),
            ("1e3", 1e3),
        ] {
            assert_eq!(rate(text), Ok(per_second), "{text}");
        }
        for bad in ["", "/s", "k", "0", "-1", "1/m", "inf", "infk", "NaN", "1e999", "fast"] {
            let error = rate(bad).unwrap_err();
            assert!(error.ends_with("like 20000, 10k or 0.5"), "{bad}: {error}");
        }
        assert_eq!(["0", "10k", "5/s"].map(limit), [Ok(0), Ok(10_000), Ok(5)]);
        assert!(limit("1.5").is_err());
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
