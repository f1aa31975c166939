//! Which numbered messages wait for a reply, and what a reply means: for `ping`, and for `load` over
//! UDP. Pure: no socket, and `now` is an argument, in nanoseconds of the run.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::histogram::nanoseconds;
use super::message::Messages;
use crate::units;

/// How many messages may wait, and how many lost ones are remembered, to tell a late reply from a
/// second one.
pub(super) const MOST: usize = 1 << 16;

/// A socket is given up after this many losses in a row, once nothing has come back for this time, in nanoseconds.
/// As soon as that, so that a lossy path does not take one socket after the other.
const ROW: u64 = 3;
const SILENCE: u64 = 1_000_000_000;

/// What a reply is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// The first reply to a message, in time and unharmed.
    Echo {
        /// Which message it answers: the first is 1.
        seq: u64,
        /// The round-trip time.
        #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
        time: Duration,
        /// Whether the reply to a later message came before this one (RFC 4737).
        reordered: bool,
    },
    /// A message that has had its reply had another (RFC 5560).
    Duplicate {
        /// Which message it answers.
        seq: u64,
    },
    /// The message had been given up, and stays lost (RFC 2680).
    Late {
        /// Which message it answers.
        seq: u64,
        /// The round-trip time.
        #[serde(rename = "time_ns", serialize_with = "nanoseconds")]
        time: Duration,
    },
    /// A byte differs from what was sent.
    Corrupt {
        /// Which message it answers.
        seq: u64,
        /// The position of the first such byte, from 0.
        byte: usize,
        /// Whether the reply is what was sent, in upper case.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        upper_case: bool,
    },
    /// The reply is not as long as what was sent.
    Cut {
        /// Which message it answers.
        seq: u64,
        /// Its length in bytes.
        bytes: usize,
    },
    /// It answers nothing that was sent, or too much of it is damaged to tell what.
    Stray,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: &Duration| units::milliseconds(*time);
        match self {
            Self::Echo { seq, time, reordered: false } => {
                write!(f, "seq={seq} time={} ms", ms(time))
            }
            Self::Echo { seq, time, .. } => write!(f, "seq={seq} time={} ms (reordered)", ms(time)),
            Self::Duplicate { seq } => write!(f, "seq={seq} (duplicate)"),
            Self::Late { seq, time } => {
                write!(f, "seq={seq} time={} ms (late: counted as lost)", ms(time))
            }
            Self::Corrupt { seq, byte, upper_case } => {
                let why = if *upper_case { ": in upper case" } else { "" };
                write!(f, "seq={seq}: corrupt: byte {byte} differs{why}")
            }
            Self::Cut { seq, bytes } => {
                write!(f, "seq={seq}: cut: {} came back", units::count(*bytes, "byte"))
            }
            Self::Stray => f.write_str("stray: a reply to nothing that was sent"),
        }
    }
}

/// A message that has had no reply.
#[derive(Clone, Copy, Debug)]
struct Message {
    seq: u64,
    /// When it should have been sent, and when it was.
    due: u64,
    sent: u64,
}

/// Knows what became of the messages of one socket.
#[derive(Debug)]
pub(super) struct Tracker {
    messages: Messages,
    /// How long a reply may take.
    wait: u64,
    /// How many messages were sent, which is the number of the last.
    sent: u64,
    /// Neither answered nor given up, in order.
    waiting: VecDeque<Message>,
    /// Given up and not answered since, in order. All others were answered.
    lost: VecDeque<Message>,
    /// The highest number that was echoed.
    highest: u64,
    /// When something came back, or else when the socket was opened.
    heard: u64,
    /// How many were given up since then.
    row: u64,
}

impl Tracker {
    /// For these messages, whose replies may take `wait`.
    pub(super) fn new(messages: Messages, wait: Duration) -> Self {
        let (waiting, lost) = (VecDeque::new(), VecDeque::new());
        Self {
            messages,
            wait: units::nanoseconds(wait),
            sent: 0,
            waiting,
            lost,
            highest: 0,
            heard: 0,
            row: 0,
        }
    }

    /// Notes that a new socket is opened, or that something came back.
    pub(super) fn hear(&mut self, now: u64) {
        (self.heard, self.row) = (now, 0);
    }

    /// How many messages were given up since something came back, or the socket was opened.
    pub(super) fn row(&self) -> u64 {
        self.row
    }

    /// Whether it is time for another socket: the server may have moved, while the name still had its former
    /// address and the path knew the port (NAT).
    pub(super) fn is_deaf(&self, now: u64) -> bool {
        self.row >= ROW && now.saturating_sub(self.heard) >= SILENCE
    }

    /// Writes the next message, which fills `message`.
    pub(super) fn write_next(&self, message: &mut [u8]) {
        self.messages.write(self.sent + 1, message);
    }

    /// Notes that the next message, which was due at `due`, is sent.
    pub(super) fn send(&mut self, due: u64, now: u64) {
        self.sent += 1;
        self.waiting.push_back(Message { seq: self.sent, due, sent: now });
    }

    /// How many messages were sent, which is the number of the last.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many messages are neither answered nor given up.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// The messages that are neither answered nor given up.
    pub(super) fn outstanding(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.waiting.iter().map(|message| message.seq)
    }

    /// Whether one more message may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MOST
    }

    /// When the time of the oldest waiting message is over.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.waiting.front().map(|message| self.deadline_of(message))
    }

    fn deadline_of(&self, message: &Message) -> u64 {
        message.sent.saturating_add(self.wait)
    }

    /// Gives up the oldest waiting message if its time is over. Call this until it returns `None`
    /// before [`Self::receive`], so that what comes too late is known to.
    pub(super) fn expire(&mut self, now: u64) -> Option<u64> {
        if now < self.deadline()? { None } else { self.give_up() }
    }

    /// Gives up the oldest waiting message, whatever its time.
    pub(super) fn give_up(&mut self) -> Option<u64> {
        let message = self.waiting.pop_front()?;
        self.row += 1;
        if self.lost.len() == MOST {
            self.lost.pop_front();
        }
        self.lost.push_back(message);
        Some(message.seq)
    }

    /// When a message was sent that is given up, in nanoseconds of the run.
    pub(super) fn when_lost_was_sent(&self, seq: u64) -> Option<u64> {
        find(&self.lost, seq).map(|index| self.lost[index].sent)
    }

    /// Says what a reply is. A message whose first reply is damaged waits for no other.
    pub(super) fn receive(&mut self, bytes: &[u8], now: u64) -> Reply {
        self.hear(now);
        let Some(seq) = self.owner(bytes) else { return Reply::Stray };
        let waited = take(&mut self.waiting, seq);
        if bytes.len() != self.messages.size {
            return Reply::Cut { seq, bytes: bytes.len() };
        }
        if let Some(byte) = self.messages.first_wrong(seq, bytes) {
            let upper = Messages { upper: true, ..self.messages };
            let upper_case = upper.first_wrong(seq, bytes).is_none();
            return Reply::Corrupt { seq, byte, upper_case };
        }
        let time = |message: Message| Duration::from_nanos(now.saturating_sub(message.due));
        if let Some(message) = waited {
            self.highest = self.highest.max(seq);
            return Reply::Echo { seq, time: time(message), reordered: seq < self.highest };
        }
        match take(&mut self.lost, seq) {
            Some(message) => Reply::Late { seq, time: time(message) },
            None => Reply::Duplicate { seq },
        }
    }

    /// Whether these bytes name a message that was sent.
    pub(super) fn recognises(&self, bytes: &[u8]) -> bool {
        self.claims(bytes).into_iter().flatten().any(|seq| self.has_sent(seq))
    }

    /// Whether the message that this start of a reply belongs to is waiting, and has time left.
    pub(super) fn has_time_for(&self, partial: &[u8], now: u64) -> bool {
        let index = self.owner(partial).and_then(|seq| find(&self.waiting, seq));
        index.is_some_and(|index| now < self.deadline_of(&self.waiting[index]))
    }

    /// Which message these bytes answer, however damaged they are. Where the two numbers in them
    /// disagree, the one whose reply is more like them; where neither was sent, the only one that
    /// waits.
    fn owner(&self, bytes: &[u8]) -> Option<u64> {
        let claims = self.claims(bytes);
        if let [Some(seq), Some(same)] = claims
            && seq == same
        {
            return Some(seq).filter(|&seq| self.has_sent(seq));
        }
        let wrong = |seq: &u64| {
            bytes.iter().zip(self.messages.reply(*seq)).filter(|(came, sent)| *came != sent).count()
        };
        let sent = claims.into_iter().flatten().filter(|&seq| self.has_sent(seq));
        sent.min_by_key(wrong).or(match self.waiting.len() {
            1 => self.outstanding().next(),
            _ => None,
        })
    }

    fn claims(&self, bytes: &[u8]) -> [Option<u64>; 2] {
        self.messages.claims(bytes, self.sent)
    }

    fn has_sent(&self, seq: u64) -> bool {
        (1..=self.sent).contains(&seq)
    }
}

fn find(messages: &VecDeque<Message>, seq: u64) -> Option<usize> {
    messages.binary_search_by_key(&seq, |message| message.seq).ok()
}

fn take(messages: &mut VecDeque<Message>, seq: u64) -> Option<Message> {
    // Most replies come in order.
    if messages.front()?.seq == seq {
        return messages.pop_front();
    }
    messages.remove(find(messages, seq)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::load::Errors;
    use crate::client::message::HEADER;
    use crate::client::pattern::Pattern;
    use proptest::prelude::*;

    const WAIT: u64 = 100;
    const SIZE: usize = 56;

    fn tracker(size: usize, pattern: Pattern) -> Tracker {
        let messages = Messages { size, pattern, upper: false, key: 0x0123_4567_89ab_cdef };
        Tracker::new(messages, ns(WAIT))
    }

    /// Sends `count` messages at 0.
    fn sent(count: u64) -> Tracker {
        let mut tracker = tracker(SIZE, Pattern::Text);
        for seq in 1..=count {
            let mut message = [0; SIZE];
            tracker.write_next(&mut message);
            assert_eq!(message, *tracker.messages.reply(seq));
            tracker.send(0, 0);
        }
        assert_eq!((tracker.sent(), tracker.waiting()), (count, count));
        tracker
    }

    fn ns(time: u64) -> Duration {
        Duration::from_nanos(time)
    }

    /// Takes in the right reply to this message.
    fn answer(tracker: &mut Tracker, seq: u64, now: u64) -> Reply {
        tracker.receive(&tracker.messages.reply(seq), now)
    }

    #[test]
    fn a_message_is_answered() {
        let mut tracker = tracker(SIZE, Pattern::Text);
        tracker.send(3, 5);
        assert_eq!(tracker.deadline(), Some(5 + WAIT));
        let reply = answer(&mut tracker, 1, 13);
        assert_eq!(reply, Reply::Echo { seq: 1, time: ns(10), reordered: false });
        assert_eq!((tracker.waiting(), tracker.deadline()), (0, None));
    }

    #[test]
    fn a_message_is_lost_when_its_time_is_over_and_a_late_reply_does_not_help() {
        let mut tracker = sent(1);
        assert_eq!(tracker.expire(WAIT - 1), None);
        assert_eq!(tracker.expire(WAIT), Some(1));
        assert_eq!(tracker.expire(WAIT), None);
        assert_eq!(answer(&mut tracker, 1, 200), Reply::Late { seq: 1, time: ns(200) });
        assert_eq!(answer(&mut tracker, 1, 300), Reply::Duplicate { seq: 1 });
    }

    #[test]
    fn replies_out_of_order_are_the_early_ones_that_come_after_later_ones() {
        let mut tracker = sent(4);
        for (seq, expected) in [(1, false), (4, false), (2, true), (3, true)] {
            let reply = answer(&mut tracker, seq, 9);
            assert_eq!(reply, Reply::Echo { seq, time: ns(9), reordered: expected });
        }
    }

    #[test]
    fn a_second_reply_is_a_duplicate() {
        let mut tracker = sent(2);
        assert!(matches!(answer(&mut tracker, 2, 0), Reply::Echo { .. }));
        for _ in 0..2 {
            assert_eq!(answer(&mut tracker, 2, 0), Reply::Duplicate { seq: 2 });
        }
        assert_eq!(tracker.outstanding().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_names_a_message_that_was_never_sent_is_a_stray() {
        let mut tracker = sent(1);
        for seq in [0, 2, u64::MAX] {
            assert_eq!(answer(&mut tracker, seq, 0), Reply::Stray);
        }
        assert_eq!(tracker.waiting(), 1);
    }

    #[test]
    fn garbage_answers_the_only_message_that_waits() {
        let mut one = sent(1);
        let reply = one.receive(b"HTTP/1.0 400 Bad Request", 0);
        assert_eq!(reply, Reply::Cut { seq: 1, bytes: 24 });
        assert_eq!(one.waiting(), 0);
        assert_eq!(one.receive(b"HTTP/1.0 400 Bad Request", 0), Reply::Stray);
        let mut two = sent(2);
        assert_eq!(two.receive(&[7; SIZE], 0), Reply::Stray);
        assert_eq!(two.receive(b"", 0), Reply::Stray);
        assert_eq!(two.waiting(), 2);
        assert!(!two.recognises(&[7; SIZE]) && two.recognises(&two.messages.reply(2)[..8]));
    }

    #[test]
    fn the_start_of_a_reply_is_awaited_as_long_as_its_message() {
        let mut tracker = sent(2);
        let start = tracker.messages.reply(2)[..20].to_vec();
        assert!(tracker.has_time_for(&start, WAIT - 1));
        assert!(!tracker.has_time_for(&start, WAIT));
        assert!(!tracker.has_time_for(&[9; 20], 0));
        answer(&mut tracker, 2, 0);
        assert!(!tracker.has_time_for(&start, 0));
    }

    #[test]
    fn memory_is_bounded_and_never_forgets_a_waiting_message() {
        let mut tracker = tracker(HEADER, Pattern::Binary);
        for half in 0..2 {
            while tracker.has_room() {
                tracker.send(0, half * WAIT);
            }
            assert_eq!(tracker.waiting(), MOST as u64);
            assert_eq!(tracker.give_up(), Some(half * MOST as u64 + 1));
            while tracker.expire(WAIT).is_some() {}
        }
        assert_eq!((tracker.lost.len(), tracker.waiting()), (MOST, MOST as u64 - 1));
        // As if it had been answered: what is forgotten does not count as late.
        assert_eq!(answer(&mut tracker, 1, WAIT), Reply::Duplicate { seq: 1 });
        assert_eq!(answer(&mut tracker, 2, WAIT), Reply::Late { seq: 2, time: ns(WAIT) });
        let last = tracker.sent();
        let echo = Reply::Echo { seq: last, time: ns(WAIT), reordered: false };
        assert_eq!(answer(&mut tracker, last, WAIT), echo);
    }

    #[test]
    fn a_reply_is_a_sentence() {
        let time = Duration::from_micros(1_500);
        for (reply, sentence) in [
            (Reply::Echo { seq: 1, time, reordered: false }, "seq=1 time=1.500 ms"),
            (Reply::Echo { seq: 1, time, reordered: true }, "seq=1 time=1.500 ms (reordered)"),
            (Reply::Duplicate { seq: 1 }, "seq=1 (duplicate)"),
            (Reply::Late { seq: 1, time }, "seq=1 time=1.500 ms (late: counted as lost)"),
            (
                Reply::Corrupt { seq: 1, byte: 7, upper_case: false },
                "seq=1: corrupt: byte 7 differs",
            ),
            (
                Reply::Corrupt { seq: 1, byte: 9, upper_case: true },
                "seq=1: corrupt: byte 9 differs: in upper case",
            ),
            (Reply::Cut { seq: 1, bytes: 7 }, "seq=1: cut: 7 bytes came back"),
            (Reply::Stray, "stray: a reply to nothing that was sent"),
        ] {
            assert_eq!(reply.to_string(), sentence);
        }
    }

    /// What became of a message.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Waiting,
        Received,
        Damaged,
        Lost,
        Late,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send,
        Pass(u64),
        Reply(prop::sample::Index, Damage),
    }

    #[derive(Clone, Copy, Debug)]
    enum Damage {
        None,
        Flip(usize, u8),
        Shorten(usize),
        Lengthen(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let damage = prop_oneof![
            6 => Just(Damage::None),
            2 => (0..SIZE, 1..=255_u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
            2 => (8..SIZE).prop_map(Damage::Shorten),
            1 => (1..9_usize).prop_map(Damage::Lengthen),
        ];
        prop_oneof![
            3 => Just(Step::Send),
            1 => (1..60_u64).prop_map(Step::Pass),
            5 => (any::<prop::sample::Index>(), damage).prop_map(|(of, how)| Step::Reply(of, how)),
        ]
    }

    /// A tracker beside the simplest thing that knows what it should say.
    struct Model {
        tracker: Tracker,
        now: u64,
        messages: Vec<(u64, Fate)>,
    }

    impl Model {
        fn step(&mut self, step: Step) {
            match step {
                Step::Send => {
                    self.messages.push((self.now, Fate::Waiting));
                    self.tracker.send(self.now, self.now);
                }
                Step::Pass(time) => {
                    self.now += time;
                    self.expire();
                }
                Step::Reply(..) if self.messages.is_empty() => {}
                Step::Reply(of, damage) => {
                    let index = of.index(self.messages.len());
                    let mut reply = self.tracker.messages.reply(index as u64 + 1);
                    match damage {
                        Damage::None => {}
                        Damage::Flip(byte, bits) => reply[byte] ^= bits,
                        Damage::Shorten(bytes) => reply.truncate(bytes),
                        Damage::Lengthen(more) => reply.resize(SIZE + more, 0),
                    }
                    let expected = self.expect(index, damage, reply.len());
                    assert_eq!(self.tracker.receive(&reply, self.now), expected);
                }
            }
        }

        fn expire(&mut self) {
            for (index, (sent, fate)) in self.messages.iter_mut().enumerate() {
                if *fate == Fate::Waiting && self.now >= *sent + WAIT {
                    assert_eq!(self.tracker.expire(self.now), Some(index as u64 + 1));
                    *fate = Fate::Lost;
                }
            }
            assert_eq!(self.tracker.expire(self.now), None);
        }

        /// What a reply to this message has to be.
        fn expect(&mut self, index: usize, damage: Damage, bytes: usize) -> Reply {
            let later = &self.messages[index + 1..];
            let reordered = later.iter().any(|(_, fate)| *fate == Fate::Received);
            let (sent, fate) = &mut self.messages[index];
            let (seq, time) = (index as u64 + 1, ns(self.now - *sent));
            let (next, reply) = match (damage, *fate) {
                (Damage::None, Fate::Waiting) => {
                    (Fate::Received, Reply::Echo { seq, time, reordered })
                }
                (Damage::None, Fate::Lost) => (Fate::Late, Reply::Late { seq, time }),
                (Damage::None, before) => (before, Reply::Duplicate { seq }),
                (damage, before) => {
                    let next = if before == Fate::Waiting { Fate::Damaged } else { before };
                    match damage {
                        Damage::Flip(byte, _) => {
                            (next, Reply::Corrupt { seq, byte, upper_case: false })
                        }
                        _ => (next, Reply::Cut { seq, bytes }),
                    }
                }
            };
            *fate = next;
            reply
        }
    }

    proptest! {
        #[test]
        fn every_message_has_one_fate(steps in prop::collection::vec(step(), 1..60), binary: bool) {
            let pattern = if binary { Pattern::Binary } else { Pattern::Text };
            let tracker = tracker(SIZE, pattern);
            let mut model = Model { tracker, now: 0, messages: Vec::new() };
            steps.into_iter().for_each(|step| model.step(step));
            let of = |wanted: Fate| {
                let fates = model.messages.iter().map(|(_, fate)| *fate);
                (1..).zip(fates).filter(move |(_, fate)| *fate == wanted).map(|(seq, _)| seq)
            };
            prop_assert_eq!(model.tracker.sent(), model.messages.len() as u64);
            prop_assert!(model.tracker.outstanding().eq(of(Fate::Waiting)));
            prop_assert!(model.tracker.lost.iter().map(|message| message.seq).eq(of(Fate::Lost)));
        }

        #[test]
        fn any_bytes_end_in_one_count(
            bytes in prop::collection::vec(any::<u8>(), 0..200), size in HEADER..200, count in 0..5_u64,
        ) {
            let mut tracker = tracker(size, Pattern::Binary);
            (0..count).for_each(|_| tracker.send(0, 0));
            let mut errors = Errors::default();
            errors.count(&tracker.receive(&bytes, 0));
            prop_assert_eq!(errors.total(), 1);
        }

        #[test]
        fn a_message_of_another_socket_is_no_echo(key in 1..u64::MAX, seq in 1..4_u64) {
            let mut tracker = tracker(SIZE, Pattern::Binary);
            (0..3).for_each(|_| tracker.send(0, 0));
            let ours = tracker.messages;
            let other = Messages { key: ours.key ^ key, ..ours };
            let is_echo = matches!(tracker.receive(&other.reply(seq), 0), Reply::Echo { .. });
            prop_assert!(!is_echo);
        }
    }
}
