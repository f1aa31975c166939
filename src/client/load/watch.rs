//! Looks at the server's process while a load goes on.

use std::io;
use std::time::Instant;

use super::cost::ServerUsage;
use super::report::{Phase, Progress};
use crate::client::process::Usage;

/// Looks at a process where a load stands still, so that looking delays nothing that is measured.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    begin: Option<Look>,
    end: Option<Look>,
    has_ended: bool,
}

/// What a process uses at one moment, and how many messages have come back by then.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Look {
    pub(in crate::client) usage: Usage,
    pub(in crate::client) messages: u64,
    at: Instant,
}

impl Watch {
    /// Watches the process `pid`.
    ///
    /// # Errors
    ///
    /// As [`Usage::of`].
    pub fn new(pid: u32) -> io::Result<Self> {
        Usage::of(pid)?;
        Ok(Self { pid, begin: None, end: None, has_ended: false })
    }

    /// A watch that sees nothing, where `error` says that the system does not tell of processes.
    pub(in crate::client) fn blind(pid: u32, error: io::Error) -> io::Result<Self> {
        match error.kind() {
            io::ErrorKind::Unsupported => {
                Ok(Self { pid, begin: None, end: None, has_ended: false })
            }
            _ => Err(error),
        }
    }

    /// To be told of all progress of a load.
    pub fn look(&mut self, progress: &Progress) {
        let place = match progress.phase {
            Phase::Measuring if self.begin.is_none() => &mut self.begin,
            Phase::Over if self.end.is_none() => &mut self.end,
            _ => return,
        };
        let (at, messages) = (Instant::now(), progress.messages);
        let usage = match Usage::of(self.pid) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Usage::default()),
            usage => usage,
        };
        *place = usage.map(|usage| Look { usage, messages, at }).ok();
        self.has_ended |= place.is_none();
    }

    /// Whether the process was not there any more when it was to be looked at.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The process at the beginning of the measured part, and when all replies had come.
    pub(in crate::client) fn looks(&self) -> Option<(Look, Look)> {
        self.begin.zip(self.end)
    }

    /// What it used, once the load is over.
    pub fn used(&self) -> Option<ServerUsage> {
        let (begin, end) = self.looks()?;
        let cpu = end.usage.cpu.saturating_sub(begin.usage.cpu);
        let messages = (end.messages - begin.messages).max(1);
        Some(ServerUsage {
            pid: self.pid,
            cpu,
            cpu_share: cpu.as_secs_f64() / (end.at - begin.at).as_secs_f64().max(1e-9),
            cpu_per_message: cpu.div_f64(messages as f64),
            memory: end.usage.memory(),
        })
    }
}
