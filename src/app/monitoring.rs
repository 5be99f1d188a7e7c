//! What operators see of a process: connects its parts, and keeps them running.

use std::{fs, process, sync::Arc};

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::{
    clock::Clock,
    monitor::{
        activity::Activity,
        board::Board,
        catalogue,
        progress::Progress,
        report::{ProcessIdentity, ProcessRole},
        reporter::Reporter,
        vitals::Vitals,
    },
    queue::{Depths, Ping, Reports},
    store::{Catalog, Health},
    supervise::supervise,
};

/// The parts that others feed and read, before anything runs.
#[derive(Clone)]
pub(super) struct Monitoring {
    pub(super) activity: Arc<Activity>,
    /// What an API knows of all processes. A worker does not use it.
    pub(super) board: Arc<Board>,
    clock: Arc<dyn Clock>,
    role: ProcessRole,
}

/// The servers that it looks at.
pub(super) struct Servers {
    pub(super) health: Arc<dyn Health>,
    /// With a time limit.
    pub(super) catalogue: Arc<dyn Catalog>,
    pub(super) ping: Arc<dyn Ping>,
    pub(super) reports: Arc<dyn Reports>,
    pub(super) depths: Arc<dyn Depths>,
}

/// Ends when it is dropped.
pub(super) struct RunningMonitoring {
    reporter: Arc<Reporter>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Monitoring {
    pub(super) fn new(role: ProcessRole, clock: Arc<dyn Clock>) -> Self {
        let activity = Arc::new(Activity::new(clock.clone()));
        let board = Arc::new(Board::new(clock.clone()));
        Self { activity, board, clock, role }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::new(self.activity.clone(), self.board_of_api())
    }

    fn board_of_api(&self) -> Option<Arc<Board>> {
        self.role.is_api().then(|| self.board.clone())
    }

    /// Tells and listens from now on.
    pub(super) fn start(&self, servers: Servers) -> RunningMonitoring {
        let Servers { health, catalogue, ping, reports, depths } = servers;
        let vitals = Vitals::watch(health, ping, self.clock.clone());
        let (activity, board) = (self.activity.clone(), self.board_of_api());
        let identity = identity(self.role, self.clock.now());
        let reporter = Reporter::new(identity, activity, vitals, reports, depths, board.clone());
        let reporter = Arc::new(reporter);
        let (telling, asking, listening) = (reporter.clone(), reporter.clone(), reporter.clone());
        let mut tasks = vec![
            tokio::spawn(async move { supervise("reports", || telling.tell_forever()).await }),
            tokio::spawn(async move { supervise("depths", || asking.ask_forever()).await }),
        ];
        if let Some(board) = board {
            tasks.push(tokio::spawn(
                async move { supervise("listener", || listening.listen_forever()).await },
            ));
            let clock = self.clock.clone();
            tasks.push(tokio::spawn(async move {
                let read = || catalogue::read_while_watched(catalogue.clone(), board.clone(), clock.clone());
                supervise("catalogue", read).await;
            }));
        }
        let tasks = tasks.into_iter().map(AbortOnDropHandle::new).collect();
        RunningMonitoring { reporter, _tasks: tasks }
    }
}

impl RunningMonitoring {
    pub(super) fn reporter(&self) -> &Arc<Reporter> {
        &self.reporter
    }

    /// Says that the process ends, so that no one waits for it to fall silent.
    pub(super) async fn stop(self) {
        let Self { reporter, _tasks } = self;
        drop(_tasks);
        reporter.farewell().await;
    }
}

fn identity(role: ProcessRole, started_at: Timestamp) -> ProcessIdentity {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    ProcessIdentity {
        id: Uuid::new_v4(),
        name: format!("{}@{host}/{}", role.as_str(), process::id()),
        role,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
    }
}
