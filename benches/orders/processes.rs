//! Child processes: started, found, watched, and ended in every case.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    Result,
    reaper::{Reaper, Thing},
};

/// How long a process may take to listen, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running child. Dropping it kills it.
pub(crate) struct Process {
    pub(crate) name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says goes to a file.
    pub(crate) fn start(
        name: &'static str,
        mut command: Command,
        directory: &Path,
        reaper: &mut Reaper,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = command
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        if let Some(pid) = child.id() {
            reaper.made(Thing::Process(pid))?;
        }
        Ok(Self { name, child, log })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Where it listens: the first local URL that it prints.
    pub(crate) async fn address(&mut self) -> Result<SocketAddr> {
        const BEFORE: &str = "http://127.0.0.1:";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&self.log)?;
            // A line is complete when it has ended.
            if let Some((_, rest)) = said.split_once(BEFORE)
                && let Some(end) = rest.find(|c: char| !c.is_ascii_digit())
            {
                return Ok(format!("127.0.0.1:{}", &rest[..end]).parse()?);
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("{} does not listen:\n{said}", self.name).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(mut self, reaper: &mut Reaper) -> Result<()> {
        let id = self.pid();
        if let Some(pid) = id.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                id.map_or(Ok(()), |pid| reaper.gone(Thing::Process(pid)))?;
                if status.success() {
                    return Ok(());
                }
                Err(format!("{} ended with {status}:\n{}", self.name, self.said()).into())
            }
            Err(_) => Err(format!("{} did not stop:\n{}", self.name, self.said()).into()),
        }
    }

    /// Ends it at once: for what has nothing to lose.
    pub(crate) async fn kill(mut self, reaper: &mut Reaper) -> Result<()> {
        let pid = self.pid();
        self.child.kill().await?;
        pid.map_or(Ok(()), |pid| reaper.gone(Thing::Process(pid)))
    }

    /// The last of what it said.
    pub(crate) fn said(&self) -> String {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// What a process has used so far, from Linux's /proc.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Resident memory now.
    pub(crate) resident_kb: u64,
    /// Resident memory at its highest.
    pub(crate) peak_kb: u64,
}

/// `None` when there is no such process (any more), or no /proc.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything; of those after it, utime and stime are the
    // 12th and 13th (proc_pid_stat(5)).
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

/// A thousand connections need more files than many shells allow by default. Children inherit the limit.
pub(crate) fn allow_many_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(65_536).min(65_536);
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit { current: Some(wanted), maximum: limit.maximum },
        );
    }
}
