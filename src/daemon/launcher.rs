//! Starts the processes of guests that arrive, and collects those that end.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::{Failure, LaunchSpec};
use crate::host::spawn::launch_receiver;

/// How long a process may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A process that waits for its guest.
#[derive(Debug)]
pub struct Waiting {
    /// Where it listens: control, then each lane.
    pub addresses: Vec<SocketAddr>,
    /// Its process id.
    pub pid: u32,
}

/// What starts one; a function, so that tests can do without processes.
pub type Start =
    dyn Fn(&LaunchSpec) -> Result<(Vec<SocketAddr>, Option<Child>), Failure> + Send + Sync;

/// Starts processes and collects them.
#[derive(Clone)]
pub struct Launcher {
    start: Arc<Start>,
    children: Arc<Mutex<Vec<Child>>>,
}

impl Launcher {
    /// Starts this program as guest processes.
    pub fn processes() -> Self {
        Self::new(Arc::new(|spec| {
            let receiver = launch_receiver(spec, Some(START_DEADLINE))?;
            Ok((receiver.addresses, Some(receiver.child)))
        }))
    }

    /// Starts what `start` starts.
    pub fn new(start: Arc<Start>) -> Self {
        Self { start, children: Arc::default() }
    }

    /// Starts a process for `spec`. Blocks until it listens.
    ///
    /// # Errors
    /// What it says.
    pub fn launch(&self, spec: &LaunchSpec) -> Result<Waiting, Failure> {
        let (addresses, child) = (self.start)(spec)?;
        let pid = child.as_ref().map_or(0, Child::id);
        self.children.lock().unwrap_or_else(PoisonError::into_inner).extend(child);
        Ok(Waiting { addresses, pid })
    }

    /// Collects those that have ended. Those that go on are nobody's children once the daemon
    /// has ended, and do not notice.
    pub fn collect(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

impl std::fmt::Debug for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Launcher")
    }
}
