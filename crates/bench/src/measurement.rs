//! What one variant did in one round, and what its processes used.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    database::Totals,
    load::{Counts, Load},
    scenario::Scenario,
    variant::Variant,
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    pub(crate) variant: Variant,
    pub(crate) load: Load,
    /// Connections to MySQL of a direct variant.
    pub(crate) pool: Option<u32>,
    /// Everything that took part, also the servers and the load generator.
    pub(crate) processes: Vec<ProcessUse>,
    #[serde(alias = "books")]
    pub(crate) totals: Option<Totals>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessUse {
    pub(crate) name: String,
    /// On average under load.
    pub(crate) cores: f64,
    /// Resident memory: the last sample under load, the highest ever (VmHWM), and after a rest.
    pub(crate) loaded_mb: f64,
    pub(crate) peak_mb: f64,
    pub(crate) rested_mb: Option<f64>,
}

impl Measurement {
    /// Accepted orders; refused ones where nothing is in stock.
    pub(crate) fn per_second(&self, scenario: Scenario) -> f64 {
        let Counts { accepted, refused, .. } = self.load.measured;
        let counted = match (scenario, self.variant) {
            (Scenario::SoldOut, Variant::Noop) => accepted, // it answers 201 to everything
            (Scenario::SoldOut, _) => refused,
            _ => accepted,
        };
        counted as f64 / self.load.seconds
    }
}

/// A process under load: its first and its last sample.
pub(crate) struct Samples {
    name: String,
    pid: u32,
    first: (Instant, Usage),
    last: (Instant, Usage),
    rested_kb: Option<u64>,
}

impl Samples {
    /// `None`: there is no such process.
    pub(crate) fn begin(name: &str, pid: u32) -> Option<Self> {
        let now = (Instant::now(), usage(pid)?);
        Some(Self { name: name.to_owned(), pid, first: now, last: now, rested_kb: None })
    }

    pub(crate) fn sample(&mut self) {
        if let Some(usage) = usage(self.pid) {
            self.last = (Instant::now(), usage);
        }
    }

    pub(crate) fn sample_rested(&mut self) {
        self.rested_kb = usage(self.pid).map(|usage| usage.resident_kb);
    }

    pub(crate) fn process_use(&self) -> Option<ProcessUse> {
        let megabytes = |kilobytes: u64| (kilobytes as f64 / 1024.0 * 10.0).round() / 10.0;
        let elapsed = self.last.0.duration_since(self.first.0).as_secs_f64();
        let cpu = self.last.1.cpu.saturating_sub(self.first.1.cpu).as_secs_f64();
        (elapsed > 0.0).then(|| ProcessUse {
            name: self.name.clone(),
            cores: (cpu / elapsed * 100.0).round() / 100.0,
            loaded_mb: megabytes(self.last.1.resident_kb),
            peak_mb: megabytes(self.last.1.peak_kb),
            rested_mb: self.rested_kb.map(megabytes),
        })
    }
}

/// What a process has used so far, from Linux's /proc.
#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu: Duration,
    /// Resident memory now.
    resident_kb: u64,
    /// Resident memory at its highest.
    peak_kb: u64,
}

/// `None` when the process has ended, or there is no /proc.
fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, with any character in it; of the fields after it, utime and stime are
    // the 12th and 13th (proc_pid_stat(5)).
    let mut times = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some(Usage {
        cpu: Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
        resident_kb: kilobytes("VmRSS:")?,
        peak_kb: kilobytes("VmHWM:")?,
    })
}
