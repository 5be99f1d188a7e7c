//! The machine of a run. Without it the numbers say nothing.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use antre_testkit::error::Result;
use serde::{Deserialize, Serialize};

use crate::{builds::Builds, servers::Durability};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) memory_gb: f64,
    pub(crate) kernel: String,
    pub(crate) system: String,
    /// Of the minute before the run: whether something else was busy.
    pub(crate) load_average: String,
    /// One write of 4 KiB and its fdatasync, the median of many: no commit is faster.
    pub(crate) sync_microseconds: u128,
    pub(crate) rustc: String,
    pub(crate) antre: String,
    /// What the build that `--baseline` names prints as its version.
    #[serde(default)]
    pub(crate) baseline: Option<String>,
    pub(crate) mysql: Option<String>,
    pub(crate) rabbitmq: Option<String>,
    pub(crate) durability: Option<Durability>,
}

impl Machine {
    pub(crate) fn inspect(directory: &Path, builds: &Builds) -> Result<Self> {
        let (antre, baseline) = builds.versions()?;
        Ok(Self {
            date: jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string(),
            cores: thread::available_parallelism()?.get(),
            cpu: line_of("/proc/cpuinfo", "model name"),
            memory_gb: line_of("/proc/meminfo", "MemTotal")
                .split(' ')
                .next()
                .and_then(|kilobytes| kilobytes.parse::<f64>().ok())
                .map_or(0.0, |kilobytes| (kilobytes / 1024.0 / 1024.0 * 10.0).round() / 10.0),
            kernel: text("/proc/sys/kernel/osrelease"),
            system: line_of("/etc/os-release", "PRETTY_NAME").trim_matches('"').to_owned(),
            load_average: text("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            sync_microseconds: sync_time(directory)?.as_micros(),
            rustc: output_of("rustc", &["--version"]),
            antre,
            baseline,
            mysql: None,
            rabbitmq: None,
            durability: None,
        })
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn line_of(path: &str, key: &str) -> String {
    let text = text(path);
    let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_once([':', '=']).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn sync_time(directory: &Path) -> Result<Duration> {
    let path = directory.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    fs::remove_file(path)?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
