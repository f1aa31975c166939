//! The HTTP that monitors speak (RFC 9110, RFC 9112): GET, HEAD and OPTIONS of a few pages, any number
//! of requests on one connection.
//!
//! A request has no body: the reply to one that announces a body closes the connection, since what
//! follows is not read.

use std::io::Write;
use std::time::{Duration, SystemTime};

use httparse::{EMPTY_HEADER, Error, Request, Status as Parsed};

use crate::protocol::{Context, Flow, Message, Replies, Service};

/// The longest request, in bytes.
const LONGEST: usize = 8 << 10;
/// The most fields of a request.
const MOST_FIELDS: usize = 64;
/// The longest time between the first byte of a request and its last. A request that stops coming ends
/// by the idle timeout.
const LONGEST_TIME: Duration = Duration::from_secs(10);
/// The most requests of one read that have a reply. A client that has sent more (pipelining) has to be
/// ready for a connection that closes (RFC 9112, 9.3.2).
const MOST_REQUESTS: usize = 16;

/// The pages.
pub(crate) trait Site {
    /// The page at this path, if there is one, in the format that suits `accept`: the value of the field
    /// Accept (RFC 9110, 12.5.1).
    fn page(&self, path: &str, accept: &str) -> Option<Page>;

    /// The time by a clock that is never set: since any moment.
    fn elapsed(&self) -> Duration;

    /// The time of the wall clock.
    fn date(&self) -> SystemTime;
}

/// The content of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) status: Status,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
}

/// The code of a status, and its words (RFC 9110, 15).
pub(crate) type Status = (u16, &'static str);

pub(crate) const OK: Status = (200, "OK");
const BAD_REQUEST: Status = (400, "Bad Request");
const NOT_FOUND: Status = (404, "Not Found");
const METHOD_NOT_ALLOWED: Status = (405, "Method Not Allowed");
const REQUEST_TIMEOUT: Status = (408, "Request Timeout");
const CONTENT_TOO_LARGE: Status = (413, "Content Too Large");
const FIELDS_TOO_LARGE: Status = (431, "Request Header Fields Too Large");
pub(crate) const SERVICE_UNAVAILABLE: Status = (503, "Service Unavailable");

impl Page {
    /// A page of one sentence.
    pub(crate) fn sentence(status: Status, sentence: &str) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Page { status, content_type, body: format!("{sentence}\n") }
    }
}

/// The server's side of one connection.
#[derive(Debug)]
pub(crate) struct Http<S> {
    site: S,
    /// The beginning of a request.
    input: Vec<u8>,
    /// When the first bytes of that request came.
    since: Option<Duration>,
}

struct Response {
    page: Page,
    /// Whether the body is left out: to HEAD.
    without_body: bool,
    /// The field about the methods, where a client wants to know them.
    allow: &'static str,
    /// The field about the connection, which says what becomes of it. Without one it stays open.
    connection: &'static str,
}

const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";
const CLOSE: &str = "Connection: close\r\n";
/// A client of HTTP/1.0 expects to read it.
const KEEP_ALIVE: &str = "Connection: keep-alive\r\n";

impl<S: Site> Http<S> {
    pub(crate) fn new(site: S) -> Self {
        Http { site, input: Vec::new(), since: None }
    }

    /// The response to the request that `input` begins with, and how long that is; `None` if it is not
    /// complete. No more input comes if `is_last`.
    fn next(&self, input: &[u8], is_last: bool, came_for: Duration) -> Option<(usize, Response)> {
        let mut fields = [EMPTY_HEADER; MOST_FIELDS];
        let mut request = Request::new(&mut fields);
        let seen = &input[..input.len().min(LONGEST)];
        let (status, sentence) = match request.parse(seen) {
            Ok(Parsed::Complete(length)) => return Some((length, respond(&request, &self.site))),
            Ok(Parsed::Partial) if seen.len() == LONGEST => {
                (FIELDS_TOO_LARGE, "the request is longer than 8 KiB")
            }
            Ok(Parsed::Partial) if is_last => (BAD_REQUEST, "the request is not complete"),
            Ok(Parsed::Partial) if came_for >= LONGEST_TIME => {
                (REQUEST_TIMEOUT, "the request took longer than 10 s to come")
            }
            Ok(Parsed::Partial) => return None,
            Err(Error::TooManyHeaders) => (FIELDS_TOO_LARGE, "the request has more than 64 fields"),
            Err(error) => {
                return Some((0, Response::refusal(BAD_REQUEST, &format!("no HTTP/1.1: {error}"))));
            }
        };
        Some((0, Response::refusal(status, sentence)))
    }

    /// Replies to the requests that `input` begins with. Returns what is left: the beginning of another;
    /// `None` if the connection closes.
    fn respond_to<'a>(
        &mut self,
        mut input: &'a [u8],
        is_last: bool,
        replies: &mut Replies<'_>,
    ) -> Option<&'a [u8]> {
        for count in 1.. {
            if input.is_empty() {
                self.since = None;
                break;
            }
            let now = self.site.elapsed();
            let came_for = now - *self.since.get_or_insert(now);
            let Some((length, mut response)) = self.next(input, is_last, came_for) else { break };
            input = without_blank_lines(&input[length..]);
            if count == MOST_REQUESTS && !input.is_empty() {
                response.connection = CLOSE;
            }
            response.send(self.site.date(), replies);
            if response.connection == CLOSE {
                return None;
            }
            self.since = None;
        }
        Some(input)
    }
}

impl<S: Site> Service for Http<S> {
    fn serve(&mut self, message: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(message.bytes());
        let requests = without_blank_lines(&input);
        let Some(rest) = self.respond_to(requests, message == Message::End, replies) else {
            return Flow::Close;
        };
        self.input = rest.to_vec();
        Flow::Continue
    }
}

/// Skips what means nothing between two requests (RFC 9112, 2.2).
fn without_blank_lines(input: &[u8]) -> &[u8] {
    let blank = input.iter().take_while(|byte| b"\r\n".contains(byte)).count();
    &input[blank..]
}

/// The response to a request that is complete.
fn respond(request: &Request<'_, '_>, site: &impl Site) -> Response {
    // Exactly one; HTTP/1.0 did not know it (RFC 9112, 3.2).
    let hosts = values(request, "host").count();
    if hosts > 1 || (hosts == 0 && !is_old(request)) {
        return Response::refusal(BAD_REQUEST, "a request has one Host");
    }
    let Ok(length) = content_length(values(request, "content-length")) else {
        return Response::refusal(BAD_REQUEST, "a request has one Content-Length, a number");
    };
    let has_body = length > 0 || values(request, "transfer-encoding").next().is_some();
    let page = || {
        let accept: Vec<_> =
            values(request, "accept").filter_map(|value| std::str::from_utf8(value).ok()).collect();
        site.page(path(request.path.unwrap_or_default()), &accept.join(","))
    };
    let (page, allow) = match request.method {
        Some("GET" | "HEAD" | "OPTIONS") if has_body => {
            (Page::sentence(CONTENT_TOO_LARGE, "a request has no body here"), "")
        }
        Some("GET" | "HEAD") => {
            (page().unwrap_or_else(|| Page::sentence(NOT_FOUND, "there is no such page")), "")
        }
        // Health checks of HAProxy ask with it: for `/` unless configured, or for a page.
        Some("OPTIONS") => {
            let status = page().map_or(OK, |page| page.status);
            (Page { body: String::new(), ..Page::sentence(status, "") }, ALLOW)
        }
        _ => {
            let sentence = "GET, HEAD and OPTIONS are all there is";
            (Page::sentence(METHOD_NOT_ALLOWED, sentence), ALLOW)
        }
    };
    let connection = if has_body { CLOSE } else { connection(request) };
    Response { page, without_body: request.method == Some("HEAD"), allow, connection }
}

/// Whether a request is one of HTTP/1.0.
fn is_old(request: &Request<'_, '_>) -> bool {
    request.version == Some(0)
}

/// The values of all fields with this name.
fn values<'a>(request: &Request<'_, 'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let fields = request.headers.iter();
    fields.filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// What the client wants to become of the connection.
fn connection(request: &Request<'_, '_>) -> &'static str {
    let wants = |wanted: &str| {
        let options =
            values(request, "connection").flat_map(|value| value.split(|&byte| byte == b','));
        options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(wanted.as_bytes()))
    };
    match is_old(request) {
        _ if wants("close") => CLOSE,
        true if wants("keep-alive") => KEEP_ALIVE,
        true => CLOSE,
        false => "",
    }
}

/// The length of the body that is announced; 0 if none is.
fn content_length<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<u64, ()> {
    let mut announced = None;
    for value in values {
        let is_number = value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value).ok().filter(|_| is_number);
        let length: u64 = length.and_then(|digits| digits.parse().ok()).ok_or(())?;
        if announced.replace(length).is_some_and(|other| other != length) {
            return Err(());
        }
    }
    Ok(announced.unwrap_or(0))
}

/// The path of a request's target, which a proxy sends whole (RFC 9112, 3.2).
fn path(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    path.split_once('?').map_or(path, |(path, _)| path)
}

impl Response {
    /// A response that closes: what follows the request cannot be understood.
    fn refusal(status: Status, sentence: &str) -> Self {
        let page = Page::sentence(status, sentence);
        Response { page, without_body: false, allow: "", connection: CLOSE }
    }

    fn send(&self, date: SystemTime, replies: &mut Replies<'_>) {
        let Response { page, without_body, allow, connection } = self;
        let Page { status, content_type, body } = page;
        replies.send_with(|reply| {
            write!(
                reply,
                "HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}{connection}\r\n",
                status.0,
                status.1,
                httpdate::fmt_http_date(date),
                body.len(),
            )
            .expect("a vector takes everything");
            if !without_body {
                reply.extend_from_slice(body.as_bytes());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::protocol::oracle::{Conversation, context};
    use crate::protocol::{Framing, Protocol, Scratch};

    /// 6 November 1994, 08:49:37, as in RFC 9110, 5.6.7.
    const THEN: Duration = Duration::from_secs(784_111_777);

    /// Greets at one path, and is busy at another. Its clock stands still, unless each look at it takes
    /// time; so does the wall clock, unless each look at it finds it set.
    #[derive(Default)]
    struct Greeting {
        each_look: Duration,
        each_step: Duration,
        passed: Cell<Duration>,
        stepped: Cell<Duration>,
    }

    impl Site for Greeting {
        fn page(&self, path: &str, accept: &str) -> Option<Page> {
            match path {
                "/hi" => Some(Page::sentence(OK, "hello")),
                "/busy" => Some(Page::sentence(SERVICE_UNAVAILABLE, "later")),
                "/accept" => Some(Page::sentence(OK, accept)),
                _ => None,
            }
        }

        fn elapsed(&self) -> Duration {
            self.passed.set(self.passed.get() + self.each_look);
            self.passed.get()
        }

        fn date(&self) -> SystemTime {
            self.stepped.set(self.stepped.get() + self.each_step);
            UNIX_EPOCH + THEN + self.stepped.get()
        }
    }

    /// All responses to these reads and a FIN.
    fn responses(reads: &[&[u8]]) -> String {
        let http = Http::new(Greeting::default());
        let all = Conversation::new(Protocol::default(), http).all(reads);
        String::from_utf8(all.bytes).unwrap()
    }

    /// The codes of the responses to these requests.
    fn codes(requests: &str) -> Vec<u16> {
        let responses = responses(&[requests.as_bytes()]);
        let first_lines = responses.split("HTTP/1.1 ").skip(1);
        first_lines.map(|line| line[..3].parse().unwrap()).collect()
    }

    #[test]
    fn a_response_has_all_that_clients_expect() {
        assert_eq!(
            responses(&[b"GET /hi HTTP/1.1\r\nHost: a\r\n\r\n"]),
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 6\r\n\r\nhello\n"
        );
        let head = responses(&[b"HEAD /hi HTTP/1.1\r\nHost: a\r\n\r\n"]);
        assert!(head.ends_with("\r\nContent-Length: 6\r\n\r\n"), "{head}");
        let refused = responses(&[b"POST /hi HTTP/1.1\r\nHost: a\r\n\r\n"]);
        let allow = "\r\nAllow: GET, HEAD, OPTIONS\r\n";
        assert!(refused.contains("405 Method Not Allowed") && refused.contains(allow));
        for (path, status) in
            [("/hi", "200 OK"), ("/", "200 OK"), ("*", "200 OK"), ("/busy", "503 ")]
        {
            let options = responses(&[format!("OPTIONS {path} HTTP/1.0\r\n\r\n").as_bytes()]);
            let first = format!("HTTP/1.1 {status}");
            assert!(options.starts_with(&first) && options.contains(allow), "{path}: {options}");
            assert!(options.contains("\r\nContent-Length: 0\r\n"), "{path}: {options}");
            assert!(options.ends_with("\r\n\r\n"), "{path}: {options}");
        }
    }

    #[test]
    fn all_that_a_client_accepts_is_one_value() {
        let accepts = "Accept: text/plain;q=0.5\r\naccept: a/b\r\n";
        let request = format!("GET /accept HTTP/1.1\r\nHost: a\r\n{accepts}\r\n");
        assert!(responses(&[request.as_bytes()]).ends_with("\r\n\r\ntext/plain;q=0.5,a/b\n"));
    }

    #[test]
    fn each_request_has_its_status() {
        let long = |bytes: usize| {
            format!("GET /hi?{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(bytes - 30))
        };
        let fields = |count: usize| {
            format!("GET /hi HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(count - 1))
        };
        for (request, code) in [
            ("GET /hi HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("\r\n\nGET /hi HTTP/1.1\nhost: a\n\n", 200),
            ("GET /hi?x=/y HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET http://a:80/hi HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("GET /hi HTTP/1.0\r\n\r\n", 200),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200),
            (&long(LONGEST), 200),
            (&fields(MOST_FIELDS), 200),
            ("GET /ho HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET hi HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("DELETE /ho HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            ("OPTIONS /busy HTTP/1.1\r\nHost: a\r\n\r\n", 503),
            ("OPTIONS /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 413),
            ("GET /hi HTTP/1.1\r\n\r\n", 400),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET /hi HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET /hi HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET /hi HTTP/2.0\r\nHost: a\r\n\r\n", 400),
            ("GET /hi\r\n\r\n", 400),
            ("\x16\x03\x01", 400),
            ("GET /hi HTTP/1.1\r\nHost: a", 400),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", 400),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 413),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
            ("PUT /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 405),
            (&long(LONGEST + 1), 431),
            (&fields(MOST_FIELDS + 1), 431),
        ] {
            assert_eq!(codes(request), [code], "{request}");
        }
    }

    #[test]
    fn a_connection_goes_on_until_one_side_wants_to_close_it() {
        let next = "GET /ho HTTP/1.1\r\nHost: a\r\n\r\n";
        for (first, said, goes_on) in [
            ("GET /hi HTTP/1.1\r\nHost: a\r\n\r\n", "", true),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nConnection: x, keep-alive\r\n\r\n", "", true),
            ("GET /hi HTTP/1.1\r\nHost: a\r\nConnection: x , Close\r\n\r\n", "close", false),
            ("GET /hi HTTP/1.0\r\n\r\n", "close", false),
            ("GET /hi HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "keep-alive", true),
            ("GET /hi HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", "close", false),
            ("PUT /hi HTTP/1.1\r\nHost: a\r\n\r\n", "", true),
            ("PUT /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", "close", false),
            ("GET /hi HTTP/1.1\r\n\r\n", "close", false),
        ] {
            let responses = responses(&[first.as_bytes(), next.as_bytes()]);
            let (head, rest) = responses.split_once("\r\n\r\n").unwrap();
            let line = format!("\r\nConnection: {said}");
            assert_eq!(head.contains("\r\nConnection: "), !said.is_empty(), "{first}{responses}");
            assert!(said.is_empty() || head.contains(&line), "{first}{responses}");
            assert_eq!(rest.contains("404 Not Found"), goes_on, "{first}{responses}");
        }
    }

    #[test]
    fn a_read_of_many_requests_has_replies_to_sixteen() {
        let request = &b"GET /hi HTTP/1.1\r\nHost: a\r\n\r\n"[..];
        let closes = |text: &str| text.ends_with("Connection: close\r\n\r\nhello\n");
        for (requests, behind, replied, is_closed) in [
            (16, &b""[..], 16, false),
            (16, b"\r\n", 16, false),
            (16, b"G", 16, true),
            (17, b"", 16, true),
            (40, b"", 16, true),
        ] {
            let read = [&request.repeat(requests), behind].concat();
            let text = responses(&[&read]);
            assert_eq!(text.matches("200 OK").count(), replied, "{requests}");
            assert_eq!(
                (closes(&text), text.matches("close").count()),
                (is_closed, is_closed.into())
            );
        }
        // Of many reads it is any number.
        let text = responses(&vec![request; 40]);
        assert_eq!((text.matches("200 OK").count(), closes(&text)), (40, false));
    }

    #[test]
    fn a_connection_without_a_request_holds_no_memory() {
        let mut http = Http::new(Greeting::default());
        let mut scratch = Scratch::default();
        for (read, held) in [(&b"GET /hi"[..], 7), (b" HTTP/1.1\r\nHost: a\r\n\r\n\r\n", 0)] {
            let mut replies = Replies::new(read, None, Framing::Raw.into(), &mut scratch);
            let flow = http.serve(Message::Chunk(read), &mut replies, &context());
            assert_eq!((flow, http.input.capacity()), (Flow::Continue, held));
        }
    }

    #[test]
    fn a_slow_request_times_out_and_the_next_has_its_own_time() {
        let slow = |each_look, requests: &[&[u8]]| {
            let site = Greeting { each_look, ..Greeting::default() };
            let all = Conversation::new(Protocol::default(), Http::new(site)).all(requests);
            String::from_utf8(all.bytes).unwrap()
        };
        let request = &b"GET /hi HTTP/1.1\r\nHost: a\r\n\r\n"[..];
        let bytes: Vec<&[u8]> = request.chunks(1).collect();
        let last = bytes.len() as u32 - 1;
        // The first look is at its first byte, and the last one finds it complete.
        let just_in_time = LONGEST_TIME / (last - 1) - Duration::from_micros(1);
        let responses = slow(just_in_time, &bytes.repeat(3));
        assert_eq!(responses.matches("200 OK").count(), 3, "{responses}");
        let responses = slow(LONGEST_TIME / (last - 1) + Duration::from_micros(1), &bytes);
        assert!(responses.starts_with("HTTP/1.1 408 Request Timeout"), "{responses}");
        assert!(responses.contains("\r\nConnection: close\r\n"), "{responses}");
    }

    #[test]
    fn a_wall_clock_that_is_set_ends_no_request() {
        let site = Greeting { each_step: 10 * LONGEST_TIME, ..Greeting::default() };
        let requests = b"GET /hi HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3);
        let bytes: Vec<&[u8]> = requests.chunks(1).collect();
        let all = Conversation::new(Protocol::default(), Http::new(site)).all(&bytes);
        let responses = String::from_utf8(all.bytes).unwrap();
        assert_eq!(responses.matches("200 OK").count(), 3, "{responses}");
    }

    /// Requests of all kinds, and bytes that are none.
    fn inputs() -> impl Strategy<Value = Vec<u8>> {
        let whole = prop::sample::select(vec![
            "GET /hi HTTP/1.1\r\nHost: a\r\n\r\n",
            "HEAD /hi HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
            "GET /ho HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            "POST /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /hi HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            "\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec());
        let piece = prop_oneof![
            8 => whole,
            1 => "[A-Z]{1,4} /[a-z?]{0,9} HTTP/1.[01]\r\n([A-Za-z-]{1,9}:[ -~]{0,9}\r\n){0,70}\r\n"
                .prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..20),
            1 => prop::collection::vec(any::<u8>(), 8_100..8_300),
            1 => "GET /[a-z]{8100,8300} ".prop_map(String::into_bytes),
        ];
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_does_not_matter_how_requests_are_cut(
            input in inputs(),
            cuts in prop::collection::vec(any::<Index>(), 0..20),
        ) {
            let whole = responses(&[&input]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(input.len());
            let mut start = 0;
            let pieces: Vec<&[u8]> = cuts
                .into_iter()
                .map(|end| &input[std::mem::replace(&mut start, end)..end])
                .collect();
            prop_assert_eq!(&responses(&pieces), &whole);
            // Long ones take a while.
            let bytes: Vec<&[u8]> = input.chunks(1 + input.len() / 400).collect();
            prop_assert_eq!(&responses(&bytes), &whole);
        }
    }
}
