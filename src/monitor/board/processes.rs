//! The processes that a board has heard of.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    super::report::{LaneReport, ProcessIdentity, Report, Vital},
    lanes::Lanes,
};

/// A process that tells nothing for this long is gone.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// How long a process that is gone is shown.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// More are not kept; those that are gone go first.
const MAX_PROCESSES: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Processes(BTreeMap<Uuid, Process>);

#[derive(Debug)]
pub(super) struct Process {
    pub(super) identity: ProcessIdentity,
    sequence: u64,
    heard_at: Instant,
    /// On the clock of people.
    heard: Timestamp,
    has_left: bool,
    pub(super) database: Vital,
    pub(super) broker: Vital,
    pub(super) lanes_served: u32,
    lanes: Vec<LaneReport>,
}

impl Process {
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        !self.has_left && now.duration_since(self.heard_at) < GONE_AFTER
    }

    /// `None`: it is alive.
    pub(super) fn gone_since(&self, now: Instant) -> Option<Timestamp> {
        (!self.is_alive(now)).then_some(self.heard)
    }
}

impl Processes {
    /// Returns whether the report is new: a broker may deliver one twice.
    pub(super) fn receive(&mut self, report: &mut Report, at: Instant, wall: Timestamp) -> bool {
        let id = report.process.id;
        if self.0.get(&id).is_some_and(|known| known.sequence >= report.sequence) {
            return false;
        }
        if !self.0.contains_key(&id) && self.0.len() >= MAX_PROCESSES {
            let gone = self.0.iter().filter(|(_, process)| !process.is_alive(at));
            let oldest = gone.min_by_key(|(_, process)| process.heard_at).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return false };
            self.0.remove(&oldest);
        }
        let process = Process {
            identity: report.process.clone(),
            sequence: report.sequence,
            heard_at: at,
            heard: wall,
            has_left: report.is_last,
            database: std::mem::take(&mut report.database),
            broker: std::mem::take(&mut report.broker),
            lanes_served: report.lanes_served,
            lanes: std::mem::take(&mut report.lanes),
        };
        self.0.insert(id, process);
        true
    }

    pub(super) fn forget_old(&mut self, now: Instant) {
        self.0.retain(|_, process| now.duration_since(process.heard_at) < FORGOTTEN_AFTER);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Process> {
        self.0.values()
    }

    pub(super) fn alive(&self, now: Instant) -> impl Iterator<Item = &Process> {
        self.0.values().filter(move |process| process.is_alive(now))
    }

    pub(super) fn name_of(&self, id: Uuid) -> Option<&str> {
        self.0.get(&id).map(|process| process.identity.name.as_str())
    }

    pub(super) fn has_worker(&self, now: Instant) -> bool {
        self.alive(now).any(|process| process.identity.role.is_worker())
    }

    /// What waits in the lanes, as the processes that are alive see it.
    pub(super) fn lanes(&self, now: Instant) -> Lanes {
        let mut lanes = Lanes::new();
        for process in self.alive(now) {
            let ago = now.duration_since(process.heard_at);
            for report in &process.lanes {
                lanes.entry(report.product_id).or_default().add(report, ago);
            }
        }
        lanes
    }

    /// A server, as the processes that are alive see it: unavailable, if it is so for one of them, with all of their names.
    pub(super) fn vital(&self, now: Instant, of: impl Fn(&Process) -> &Vital) -> Vital {
        let (mut since, mut errors, mut is_known) = (None::<Timestamp>, Vec::new(), false);
        for process in self.alive(now) {
            match of(process) {
                Vital::Unknown => {}
                Vital::Ok => is_known = true,
                Vital::Unavailable { since: from, error } => {
                    since = Some(since.map_or(*from, |since| since.min(*from)));
                    errors.push(format!("{}: {error}", process.identity.name));
                }
            }
        }
        match since {
            Some(since) => Vital::Unavailable { since, error: errors.join("; ") },
            None if is_known => Vital::Ok,
            None => Vital::Unknown,
        }
    }
}
