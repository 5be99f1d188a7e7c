//! Programs: started, found by the URL that they print, signalled, and ended in every case.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    error::Result,
    reaper::{self, Task},
};

/// The time in which a program must listen, be ready, or end. Far more than any takes, so that a slow machine fails
/// nothing.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Lines of a log that an error shows.
const LOG_TAIL: usize = 30;

/// A running program. It is killed when this is dropped, and when this process is killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    directory: PathBuf,
    killing: Option<Task>,
}

impl Process {
    /// Starts it in this directory. Its standard error is appended to `{name}.log`, and its standard output replaces
    /// `{name}.out`. Its standard input stays open as long as this process runs.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(directory.join(format!("{name}.log")))?;
        let child = command
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(File::create(directory.join(format!("{name}.out")))?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        let killing = child.id().map(reaper::kill_at_end).transpose()?;
        Ok(Self { name: name.to_owned(), child, directory: directory.to_owned(), killing })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `None`: it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it prints where it listens: the first URL in its standard output, or behind `curl` in a log in JSON, without
    /// the path.
    pub async fn url(&mut self) -> Result<String> {
        let output = self.directory.join(format!("{}.out", self.name));
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let in_json = || {
                self.log()
                    .lines()
                    .find(|line| line.starts_with('{') && line.contains("curl "))
                    .and_then(in_line)
            };
            if let Some(url) = first_url(&fs::read_to_string(&output)?).or_else(in_json) {
                return Ok(url);
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("{} does not listen:\n{}", self.name, self.log_tail()).into());
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until it answers `/health/ready` with 200. Returns its URL.
    pub async fn ready(&mut self) -> Result<String> {
        let url = self.url().await?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let answer = reqwest::get(format!("{url}/health/ready")).await;
            match answer.and_then(reqwest::Response::error_for_status) {
                Ok(_) => return Ok(url),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("{} is not ready: {error}\n{}", self.name, self.log_tail()).into());
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| format!("{} has ended", self.name))?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for its end.
    pub async fn exited(&mut self) -> Result<ExitStatus> {
        let ended = timeout(TIMEOUT, self.child.wait()).await;
        let ended = ended.map_err(|_| format!("{} does not end:\n{}", self.name, self.log_tail()))?;
        self.cancel_killing();
        Ok(ended?)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends SIGTERM and waits for its end. An error is any exit status but 0.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.exited().await?;
        if !status.success() {
            return Err(format!("{} ended with {status}:\n{}", self.name, self.log_tail()).into());
        }
        Ok(())
    }

    /// Sends SIGKILL and waits for its end.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await?;
        self.cancel_killing();
        Ok(())
    }

    /// All of its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    /// The last lines of it.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    /// Its process id may soon belong to another process.
    fn cancel_killing(&mut self) {
        if let Some(killing) = self.killing.take() {
            killing.cancel();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.cancel_killing();
    }
}

/// Takes complete lines only: the end of a URL may not be written yet.
fn first_url(output: &str) -> Option<String> {
    let complete = &output[..output.rfind('\n')?];
    let url = &complete[complete.find("http://")?..];
    let authority = &url["http://".len()..];
    let end = authority.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(authority.len());
    Some(format!("http://{}", &authority[..end]))
}

/// The URL behind `curl`. A line that is not complete yet has no brace at its end.
fn in_line(line: &str) -> Option<String> {
    let (_, url) = line.strip_suffix('}')?.split_once("curl ")?;
    first_url(&format!("{url}\n"))
}

/// Thousands of connections need as many files, and many shells allow 1,024. Children inherit the limit.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(65_536).min(65_536);
    if limit.current.is_some_and(|current| current < wanted) {
        // Where it fails, opening the files will say so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_taken_from_a_complete_line_without_its_path() {
        assert_eq!(first_url("ready: curl http://127.0.0.1:30"), None);
        assert_eq!(
            first_url("hello\nready: curl http://127.0.0.1:30/api/products\n").unwrap(),
            "http://127.0.0.1:30"
        );
        assert_eq!(first_url("http://127.0.0.1:3000\nmore").unwrap(), "http://127.0.0.1:3000");
        let line = r#"{"level":"INFO","message":"try              curl http://127.0.0.1:30/api/products"}"#;
        assert_eq!(in_line(line).unwrap(), "http://127.0.0.1:30");
        assert_eq!(in_line(&line[..line.len() - 1]), None);
    }

    #[tokio::test]
    async fn a_process_is_signalled_and_its_log_is_kept() {
        let directory = std::env::temp_dir().join(format!("antre-processes-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap 'exit 3' TERM; echo one >&2; echo http://127.0.0.1:1/x; while :; do sleep 0.01; done",
        ]);
        let mut process = Process::start("shell", command, &directory).unwrap();
        assert_eq!(process.url().await.unwrap(), "http://127.0.0.1:1");
        assert!(!process.has_ended().unwrap());
        process.signal(Signal::TERM).unwrap();
        assert_eq!(process.exited().await.unwrap().code(), Some(3));
        process.signal(Signal::TERM).unwrap_err();
        assert_eq!(process.log(), "one\n");
        fs::remove_dir_all(directory).unwrap();
    }
}
