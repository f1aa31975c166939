//! What looks at the server from outside: metrics and health, over HTTP.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::admission::{MaxSetBy, Rules};
use super::connections::Connections;
use super::control::Handle;
use super::event_loop::{Listener, Monitors};
use super::metrics::{self, Metrics};
use super::turns::Turns;
use crate::config::{MIN_MAX_BUFFERED, MONITORS};
use crate::protocol::http::{Http, OK, Page, SERVICE_UNAVAILABLE, Site};
use crate::protocol::{Protocol, Service};
use crate::stats::Stats;
use crate::sys::process;

/// A monitor that asks for nothing for so long is disconnected: a little longer than monitors usually
/// wait from one look to the next.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Answers those who come to `listener` about the server of this handle.
///
/// They take nothing from the server's clients: they have descriptors of their own, and few. Whoever
/// comes while all places are taken gets that of the idlest, so that silent ones shut nobody out.
pub(super) fn answer(listener: Listener, handle: Handle) -> Monitors {
    let rules = Rules {
        protocol: Protocol::default(),
        max_connections: MONITORS,
        max_set_by: MaxSetBy::Config,
        per_source_connections: None,
        idle_timeout: Some(IDLE_TIMEOUT),
        max_buffered: MIN_MAX_BUFFERED,
        newcomers_first: true,
    };
    let turns = Rc::new(Turns::default());
    let view = View { handle, turns: Rc::clone(&turns), process_start: process::start_time() };
    let make = move || Box::new(Http::new(view.clone())) as Box<dyn Service>;
    let stats = Arc::new(Stats::default());
    Monitors { connections: Connections::new(vec![listener], rules, make, stats), turns }
}

/// The server as it is seen from outside.
#[derive(Clone)]
struct View {
    handle: Handle,
    turns: Rc<Turns>,
    process_start: SystemTime,
}

impl Site for View {
    fn page(&self, path: &str) -> Option<Page> {
        Some(match path {
            "/metrics" => {
                let (stats, ready) = (self.handle.stats(), self.handle.is_ready());
                let metrics = Metrics::now(stats, ready, &self.turns, self.process_start);
                Page { status: OK, content_type: metrics::CONTENT_TYPE, body: metrics.text() }
            }
            "/livez" => Page::sentence(OK, "ok"),
            "/readyz" => match self.handle.unready() {
                None => Page::sentence(OK, "ok"),
                Some(reason) => Page::sentence(SERVICE_UNAVAILABLE, reason),
            },
            _ => return None,
        })
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
