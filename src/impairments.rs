//! Impairments of replies, in netem's words: loss, delay, jitter, duplicates, reordering, corruption. For
//! trying clients on a path that is worse than the real one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{ConfigError, ParseError, Setting};

/// The longest that [`Impairments::delay`] may be.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// How replies are made worse on purpose, in the terms of tc-netem(8). Default: not at all.
///
/// Only [`delay`](Impairments::delay) and [`jitter`](Impairments::jitter) are for TCP too, in the event
/// loop: the reply to each read waits, and nothing else is read from that connection meanwhile. The
/// others are for datagrams: TCP sends again what is lost and restores the order, so that a client would
/// only see a delay.
///
/// The same seed loses the same datagrams again:
///
/// ```
/// # use std::net::UdpSocket;
/// use evecho::{Config, Server};
///
/// // Which of ten datagrams come back.
/// let survivors = |seed| -> Result<Vec<u8>, Box<dyn std::error::Error>> {
///     let mut config = Config::loopback();
///     config.impairments.loss = "30%".parse()?;
///     config.impairments.seed = Some(seed);
///     let server = Server::bind(config)?.spawn()?;
///     let socket = UdpSocket::bind("127.0.0.1:0")?;
///     socket.connect(server.local_addrs()[0])?;
///     for number in 0..10 {
///         socket.send(&[number])?;
///     }
///     server.drain(); // answers all that has come
///     server.join()?;
///     socket.set_nonblocking(true)?;
///     let mut byte = [0];
///     Ok(std::iter::from_fn(|| socket.recv(&mut byte).ok().map(|_| byte[0])).collect())
/// };
/// assert_eq!(survivors(7)?, survivors(7)?);
/// assert_ne!(survivors(7)?, survivors(8)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Impairments {
    /// The share of replies that are not sent.
    pub loss: Probability,
    /// How much later replies leave; at most 60 s.
    pub delay: Duration,
    /// How much shorter or longer than `delay` the delay of each reply is, evenly distributed; at most
    /// `delay`. With it datagrams overtake each other; the bytes of a stream never do.
    pub jitter: Duration,
    /// The share of replies that are sent twice.
    pub duplicate: Probability,
    /// The share of replies that leave without `delay`, so that they overtake others.
    pub reorder: Probability,
    /// The share of replies in which one bit is changed, anywhere in the data. Their checksum is right,
    /// or the receiver's kernel would drop them.
    pub corrupt: Probability,
    /// The seed of the random generator. The same seed does the same to the same replies. Default: a
    /// random one, which is logged when the server starts.
    pub seed: Option<u64>,
}

impl Impairments {
    /// Whether replies leave as they are.
    pub fn is_none(&self) -> bool {
        Impairments { seed: None, ..*self } == Impairments::default()
    }

    /// The impairments that TCP would hide from its clients.
    pub(crate) fn hidden_by_tcp(&self) -> impl Iterator<Item = Setting> {
        self.shares().map(|(setting, _)| setting)
    }

    /// The impairments of a share of the replies.
    fn shares(&self) -> impl Iterator<Item = (Setting, Probability)> {
        let Impairments { loss, duplicate, reorder, corrupt, .. } = *self;
        [
            (Setting::Loss, loss),
            (Setting::Duplicate, duplicate),
            (Setting::Reorder, reorder),
            (Setting::Corrupt, corrupt),
        ]
        .into_iter()
        .filter(|(_, probability)| !probability.is_zero())
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Impairments { delay, jitter, reorder, .. } = *self;
        let (setting, reason) = if delay > MAX_DELAY {
            (Setting::Delay, format!("{delay:?} is too long; give at most {MAX_DELAY:?}"))
        } else if jitter > delay {
            let reason = format!(
                "{jitter:?} is more than the delay of {delay:?}, and a reply cannot leave before it exists; give at most the delay"
            );
            (Setting::Jitter, reason)
        } else if !reorder.is_zero() && delay.is_zero() {
            let reason = "lets replies overtake those that are delayed; give a delay too";
            (Setting::Reorder, reason.to_owned())
        } else {
            return Ok(());
        };
        Err(ConfigError::new(setting, reason))
    }
}

/// Prints as in a sentence: `loss 30%, delay 50ms ± 10ms`.
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

/// A probability. Reads and prints as a percentage: `30%`, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Probability {
    /// In billionths.
    billionths: u32,
}

impl Probability {
    const ALWAYS: u32 = 1_000_000_000;

    /// Whether this is 0 %.
    pub fn is_zero(self) -> bool {
        self.billionths == 0
    }

    /// As a fraction: 0.3 for 30 %.
    pub fn fraction(self) -> f64 {
        f64::from(self.billionths) / f64::from(Self::ALWAYS)
    }

    /// Whether the event happens, by a random number.
    pub(crate) fn holds(self, random: u64) -> bool {
        random % u64::from(Self::ALWAYS) < u64::from(self.billionths)
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
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        // A billionth is the seventh decimal of a percentage.
        let digits = format!("{whole}{decimals:0<7}");
        let is_number = !whole.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        match digits.parse() {
            Ok(billionths @ 0..=Self::ALWAYS) if is_number && decimals.len() <= 7 => {
                Ok(Probability { billionths })
            }
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
    fn a_probability_holds_for_its_share_of_the_numbers() {
        let third = probability("33%");
        let often = (0..1_000_000_000).step_by(1_000).filter(|&random| third.holds(random)).count();
        assert_eq!(often, 330_000);
        assert!(probability("100%").holds(u64::MAX) && !probability("0%").holds(0));
    }

    #[test]
    fn impairments_print_as_a_sentence() {
        let mut impairments = Impairments { seed: Some(3), ..Impairments::default() };
        assert!(impairments.is_none());
        impairments.loss = probability("30%");
        impairments.delay = Duration::from_millis(50);
        assert_eq!(impairments.to_string(), "loss 30%, delay 50ms");
        impairments.jitter = Duration::from_millis(10);
        impairments.corrupt = probability("0.1%");
        assert_eq!(impairments.to_string(), "loss 30%, corrupt 0.1%, delay 50ms ± 10ms");
        let hidden = impairments.hidden_by_tcp().collect::<Vec<_>>();
        assert_eq!(hidden, [Setting::Loss, Setting::Corrupt]);
        assert!(!impairments.is_none());
    }

    #[test]
    fn impossible_impairments_are_refused() {
        let millis = Duration::from_millis;
        let none = Impairments::default();
        let often = probability("5%");
        let late = Impairments { delay: millis(60_001), ..none };
        let early = Impairments { delay: millis(5), jitter: millis(6), ..none };
        let nothing_to_overtake = Impairments { reorder: often, ..none };
        for (impairments, setting) in [
            (late, Setting::Delay),
            (early, Setting::Jitter),
            (nothing_to_overtake, Setting::Reorder),
        ] {
            assert_eq!(impairments.check().unwrap_err().setting(), setting);
        }
        let good = Impairments { delay: millis(5), jitter: millis(5), reorder: often, ..none };
        assert_eq!((good.check(), none.check()), (Ok(()), Ok(())));
    }
}
