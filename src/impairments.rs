//! What a server does to its answers on purpose: it loses, delays, repeats, reorders and spoils them, so
//! that clients can be tried on a path that is worse than the one there is.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{ConfigError, ParseError};

/// The longest that [`Impairments::delay`] may be.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// What becomes of answers on purpose, in the terms of tc-netem(8). Default: nothing, they leave as they
/// are, at once.
///
/// Only [`delay`](Impairments::delay) and [`jitter`](Impairments::jitter) are for TCP too, in the event
/// loop. The others are for datagrams: TCP sends again what is lost and puts in order what is not, so
/// that a client would only see a delay.
///
/// ```
/// use std::time::Duration;
/// use evecho::{Config, Transport};
///
/// let mut config = Config::default();
/// config.transport = Transport::Udp;
/// config.impairments.loss = "30%".parse()?;
/// config.impairments.delay = Duration::from_millis(50);
/// config.impairments.seed = Some(7);
/// # Ok::<(), evecho::ParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Impairments {
    /// How many answers are not sent.
    pub loss: Probability,
    /// How much later answers leave; at most [`MAX_DELAY`].
    pub delay: Duration,
    /// How much less or more than `delay` it is for each answer, evenly spread; at most `delay`. So
    /// datagrams overtake each other; the bytes of a stream never do.
    pub jitter: Duration,
    /// How many answers are sent twice.
    pub duplicate: Probability,
    /// How many answers do not wait for `delay`, so that they overtake others.
    pub reorder: Probability,
    /// How many answers have one bit changed, anywhere in the data. The checksum is right, or nobody
    /// would see them.
    pub corrupt: Probability,
    /// What chance starts from. The same seed makes the same of the same answers again. Default: a
    /// seed is drawn, and logged when the server starts.
    pub seed: Option<u64>,
}

impl Impairments {
    /// Whether answers leave as they are.
    pub fn is_none(&self) -> bool {
        Impairments { seed: None, ..*self } == Impairments::default()
    }

    /// Those that TCP would hide from its clients, by the names of the fields.
    pub(crate) fn hidden_by_tcp(&self) -> impl Iterator<Item = &'static str> {
        self.shares().map(|(name, _)| name)
    }

    /// What happens to a share of answers, by the names of the fields.
    fn shares(&self) -> impl Iterator<Item = (&'static str, Probability)> {
        let Impairments { loss, duplicate, reorder, corrupt, .. } = *self;
        [("loss", loss), ("duplicate", duplicate), ("reorder", reorder), ("corrupt", corrupt)]
            .into_iter()
            .filter(|(_, probability)| !probability.is_zero())
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Impairments { delay, jitter, reorder, .. } = *self;
        if delay > MAX_DELAY {
            return Err(ConfigError::new(format!(
                "`delay` is {delay:?}; give at most {MAX_DELAY:?}"
            )));
        }
        if jitter > delay {
            return Err(ConfigError::new(format!(
                "`jitter` is {jitter:?} and `delay` {delay:?}; an answer cannot leave before it is there, so give a `jitter` of at most the `delay`"
            )));
        }
        if !reorder.is_zero() && delay.is_zero() {
            return Err(ConfigError::new(
                "`reorder` lets answers overtake those that wait for `delay`; give a `delay`, too",
            ));
        }
        Ok(())
    }
}

/// As in a sentence: `loss 30%, delay 50ms ± 10ms`.
impl fmt::Display for Impairments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Impairments { delay, jitter, .. } = *self;
        let mut parts: Vec<String> =
            self.shares().map(|(name, probability)| format!("{name} {probability}")).collect();
        match (delay.is_zero(), jitter.is_zero()) {
            (true, _) => {}
            (false, true) => parts.push(format!("delay {delay:?}")),
            (false, false) => parts.push(format!("delay {delay:?} ± {jitter:?}")),
        }
        f.write_str(&parts.join(", "))
    }
}

/// How probable something is, from never to always. Reads and prints as a percentage: `30%`, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Probability {
    /// In billionths.
    billionths: u32,
}

impl Probability {
    const ALWAYS: u32 = 1_000_000_000;

    /// Whether it never happens.
    pub fn is_zero(self) -> bool {
        self.billionths == 0
    }

    /// As a fraction: 0.3 for 30 %.
    pub fn fraction(self) -> f64 {
        f64::from(self.billionths) / f64::from(Self::ALWAYS)
    }

    /// Whether it happens this time, by a number that may be any.
    pub(crate) fn holds(self, any: u64) -> bool {
        any % u64::from(Self::ALWAYS) < u64::from(self.billionths)
    }
}

impl FromStr for Probability {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || {
            ParseError::new(format!(
                "'{text}' is not a percentage; give 0% to 100%, with up to seven decimals, like 30% or 0.1%"
            ))
        };
        let number = text.trim().strip_suffix('%').ok_or_else(bad)?.trim_end();
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_number(whole) || !is_number(decimals) || decimals.len() > 7 {
            return Err(bad());
        }
        let whole: u32 = whole.parse().map_err(|_| bad())?;
        let decimals: u32 = format!("{decimals:0<7}").parse().map_err(|_| bad())?;
        let billionths =
            whole.checked_mul(Self::ALWAYS / 100).and_then(|all| all.checked_add(decimals));
        match billionths {
            Some(billionths @ 0..=Self::ALWAYS) => Ok(Probability { billionths }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = Self::ALWAYS / 100;
        let text = format!("{}.{:07}", self.billionths / percent, self.billionths % percent);
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probability(text: &str) -> Probability {
        text.parse().unwrap()
    }

    #[test]
    fn a_probability_reads_as_it_prints() {
        for text in ["0%", "30%", "0.1%", "99.9999999%", "100%", "12.5%"] {
            assert_eq!(probability(text).to_string(), text);
        }
        assert_eq!(probability(" 1.50 %").to_string(), "1.5%");
        assert_eq!(probability("30%").fraction(), 0.3);
        for bad in
            ["", "30", "%", "101%", "100.0000001%", "-1%", "1e1%", ".5%", "0.00000001%", "x%"]
        {
            let error = bad.parse::<Probability>().unwrap_err().to_string();
            assert!(error.contains("is not a percentage"), "{bad}: {error}");
        }
    }

    #[test]
    fn it_holds_as_often_as_it_says() {
        let third = probability("33%");
        let often = (0..1_000_000_000).step_by(1_000).filter(|&any| third.holds(any)).count();
        assert_eq!(often, 330_000);
        assert!(probability("100%").holds(u64::MAX) && !probability("0%").holds(0));
    }

    #[test]
    fn impairments_are_told_in_a_sentence() {
        let mut impairments = Impairments { seed: Some(3), ..Impairments::default() };
        assert!(impairments.is_none());
        impairments.loss = probability("30%");
        impairments.delay = Duration::from_millis(50);
        assert_eq!(impairments.to_string(), "loss 30%, delay 50ms");
        impairments.jitter = Duration::from_millis(10);
        impairments.corrupt = probability("0.1%");
        assert_eq!(impairments.to_string(), "loss 30%, corrupt 0.1%, delay 50ms ± 10ms");
        assert_eq!(impairments.hidden_by_tcp().collect::<Vec<_>>(), ["loss", "corrupt"]);
        assert!(!impairments.is_none());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let millis = Duration::from_millis;
        let none = Impairments::default();
        let often = probability("5%");
        let late = Impairments { delay: millis(60_001), ..none };
        let early = Impairments { delay: millis(5), jitter: millis(6), ..none };
        let nothing_to_overtake = Impairments { reorder: often, ..none };
        for (impairments, word) in
            [(late, "at most"), (early, "jitter"), (nothing_to_overtake, "give a `delay`")]
        {
            assert!(impairments.check().unwrap_err().to_string().contains(word));
        }
        let good = Impairments { delay: millis(5), jitter: millis(5), reorder: often, ..none };
        assert_eq!((good.check(), none.check()), (Ok(()), Ok(())));
    }
}
