//! Undoes what this process started, however it ends. A process that is killed drops nothing, so a child shell does it:
//! it receives each command before it can be needed, and runs them when its standard input ends.

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::error::Result;

/// One line on standard input for each message: `at_end ID COMMAND`, `cancel ID`, `finish`. After `finish` nothing is
/// being started any more. Otherwise the process was killed, and a container that Docker was about to create may appear a
/// moment later: so the commands run three times. The newest first, because it may use the older ones. Failed commands
/// are listed on standard output.
const SCRIPT: &str = r#"
trap '' HUP INT TERM PIPE
ids= finished=
while read -r message id command; do
    case $message in
        at_end) eval "command_$id=\$command"; ids="$id $ids" ;;
        cancel) eval "command_$id=" ;;
        finish) finished=yes ;;
    esac
done
for attempt in 1 2 3; do
    failed=
    for id in $ids; do
        eval "command=\$command_$id"
        [ -z "$command" ] || sh -c "$command" >/dev/null 2>&1 || failed="$failed
$command"
    done
    [ -z "$finished" ] || break
    sleep 2
done
printf '%s' "$failed"
"#;

static REAPER: Mutex<Option<Reaper>> = Mutex::new(None);

struct Reaper {
    shell: Child,
    tasks: u64,
}

/// A command that runs when this process has ended, unless it is cancelled.
#[derive(Debug)]
pub struct Task(u64);

/// Registers a command, before what it removes is created. The first call starts the reaper.
pub fn at_end(command: &[&str]) -> Result<Task> {
    let mut reaper = lock();
    match &mut *reaper {
        Some(reaper) => reaper.at_end(command),
        none => none.insert(Reaper::start()?).at_end(command),
    }
}

/// Registers a process to be killed. Cancel the task when the process has ended: its id may be used again.
pub fn kill_at_end(pid: u32) -> Result<Task> {
    at_end(&["sh", "-c", "kill -KILL $0 || true", &pid.to_string()])
}

/// Runs all commands, the newest first, and returns when they have ended. An error lists those that failed.
pub fn finish() -> Result<()> {
    lock().take().map_or(Ok(()), Reaper::finish)
}

impl Task {
    /// There is nothing to remove any more.
    pub fn cancel(self) {
        if let Some(reaper) = &mut *lock() {
            let _ = reaper.cancel(&self); // an error: the reaper has ended, and nothing runs
        }
    }
}

impl Reaper {
    /// In its own process group, where Ctrl-C does not reach it.
    fn start() -> Result<Self> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "antre's reaper"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell, tasks: 0 })
    }

    fn at_end(&mut self, command: &[&str]) -> Result<Task> {
        self.tasks += 1;
        let quoted: Vec<_> = command.iter().map(|word| quoted(word)).collect();
        self.send(&format!("at_end {} {}", self.tasks, quoted.join(" ")))?;
        Ok(Task(self.tasks))
    }

    fn cancel(&mut self, task: &Task) -> Result<()> {
        self.send(&format!("cancel {}", task.0))
    }

    fn finish(mut self) -> Result<()> {
        let sent = self.send("finish");
        drop(self.shell.stdin.take());
        let mut failed = String::new();
        if let Some(output) = &mut self.shell.stdout {
            output.read_to_string(&mut failed)?;
        }
        self.shell.wait()?;
        if !failed.is_empty() {
            return Err(format!(
                "not everything that this run started is removed; these commands failed:{failed}"
            )
            .into());
        }
        sent
    }

    fn send(&mut self, message: &str) -> Result<()> {
        let input = self.shell.stdin.as_mut().ok_or("the reaper has ended")?;
        Ok(writeln!(input, "{message}")?)
    }
}

fn lock() -> MutexGuard<'static, Option<Reaper>> {
    REAPER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use super::*;

    #[test]
    fn commands_run_newest_first_unless_cancelled_and_failures_are_listed() {
        let file = env::temp_dir().join(format!("antre-reaper-{}", std::process::id()));
        let mut reaper = Reaper::start().unwrap();
        let mut write = |text: &str| {
            let command = format!("printf %s \"{text}\" >> '{}'", file.display());
            reaper.at_end(&["sh", "-c", &command]).unwrap()
        };
        write("it's first");
        let second = write("cancelled");
        write("then ");
        reaper.cancel(&second).unwrap();
        reaper.at_end(&["false"]).unwrap();
        assert!(!file.exists());
        let error = reaper.finish().unwrap_err().to_string();
        assert!(error.ends_with("\n'false'"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "then it's first");
        fs::remove_file(file).unwrap();
    }
}
