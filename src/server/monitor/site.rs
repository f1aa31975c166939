//! The pages that monitors ask for, and the rules for monitors.

use std::time::{Duration, Instant, SystemTime};

use super::Passes;
use super::http::{Http, OK, Page, SERVICE_UNAVAILABLE, Site};
use super::metrics;
use crate::config::{MIN_MAX_BUFFERED, MONITORS};
use crate::protocol::{Protocol, Service};
use crate::server::admission::Rules;
use crate::server::incidents::MaxSetBy;
use crate::server::shutdown::Handle;
use crate::sys::process;

/// A monitor that sends no request for this time is disconnected. Monitors usually poll more often.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// The rules for monitors, which take nothing from clients: they have few descriptors, of their own. When
/// all are in use, the monitor that has been idle longest is closed, so that silent ones shut no other
/// monitor out; half of them is for those whose request is on its way.
pub(crate) fn rules() -> Rules {
    Rules {
        protocol: Protocol::default(),
        max_connections: MONITORS,
        max_set_by: MaxSetBy::Config,
        peers: "monitors",
        per_source_connections: None,
        idle_timeout: Some(IDLE_TIMEOUT),
        max_buffered: MIN_MAX_BUFFERED,
        memory_setting: None,
        newcomers_first: true,
    }
}

/// Makes the services of monitors, which reply with the state of the server of this handle.
pub(crate) fn service(handle: Handle, passes: Passes) -> impl FnMut() -> Box<dyn Service> {
    let (process_start, began) = (process::start_time(), Instant::now());
    let state = State { handle, passes, process_start, began };
    move || Box::new(Http::new(state.clone()))
}

/// The state of the server, as pages.
#[derive(Clone)]
struct State {
    handle: Handle,
    passes: Passes,
    process_start: Option<SystemTime>,
    began: Instant,
}

impl Site for State {
    fn page(&self, path: &str, accept: &str) -> Option<Page> {
        Some(match path {
            "/metrics" => {
                let (stats, ready) = (self.handle.stats(), self.handle.is_ready());
                let text = metrics::text(&stats, ready, &self.passes, self.process_start);
                let (content_type, body) = metrics::negotiate(text, accept);
                Page { status: OK, content_type, body }
            }
            "/livez" => Page::sentence(OK, "ok"),
            "/readyz" => match self.handle.unready() {
                None => Page::sentence(OK, "ok"),
                Some(reason) => Page::sentence(SERVICE_UNAVAILABLE, reason),
            },
            _ => return None,
        })
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn date(&self) -> SystemTime {
        SystemTime::now()
    }
}
