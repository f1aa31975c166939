//! Ends a tool's run early, from wherever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tells a run of a tool to end early. Clones share one flag, which is never taken back.
///
/// The run ends soon after, with the report of what it has done so far.
///
/// ```
/// use evecho::client::Cancel;
///
/// let cancel = Cancel::default();
/// let other = cancel.clone();
/// std::thread::spawn(move || other.cancel()).join().unwrap();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
}

impl Cancel {
    /// Ends every run that has a clone of this.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called on this or a clone, or the flag was set.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// With a flag that something else sets, such as `signal_hook::flag::register` at a signal.
impl From<Arc<AtomicBool>> for Cancel {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self { flag }
    }
}
