//! Takes away what a run has made, however the run ends. Nothing is dropped by a process that is killed, so a child does
//! it: it is told of everything before that is made, and begins when its standard input ends.

use std::{
    env,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::Duration,
};

use lapin::{
    ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor, MySqlConnection};

use crate::{Result, plan::Scenario, servers::docker};

/// What would be left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Thing {
    /// A container, by name; what is in it goes with it.
    Container(String),
    /// A database on somebody's server.
    Database { url: String, name: String },
    /// Queues and exchanges on somebody's broker, by what their names begin with.
    Queues { url: String, prefix: String },
    /// A process, by its id, until it has ended.
    Process(u32),
}

#[derive(Serialize, Deserialize)]
enum Note {
    Made(Thing),
    Gone(Thing),
    /// The run has ended by itself: nothing is being made any more.
    Over,
}

/// The end of the run that the reaper listens to. Dropping it lets the reaper do its work, and waits for it.
pub(crate) struct Reaper {
    child: Child,
    notes: Option<ChildStdin>,
}

impl Reaper {
    /// In a process group of its own, where Ctrl-C does not reach it.
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("reap")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let notes = child.stdin.take();
        Ok(Self { child, notes })
    }

    /// To be told before it is made, so that there is no moment in which nobody knows.
    pub(crate) fn made(&mut self, thing: Thing) -> Result<()> {
        self.note(&Note::Made(thing))
    }

    pub(crate) fn gone(&mut self, thing: Thing) -> Result<()> {
        self.note(&Note::Gone(thing))
    }

    /// Takes everything away; returns an error when something is left behind.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn note(&mut self, note: &Note) -> Result<()> {
        let notes = self.notes.as_mut().ok_or("the reaper has been sent away")?;
        Ok(writeln!(notes, "{}", serde_json::to_string(note)?)?)
    }

    fn end(&mut self) -> Result<()> {
        if self.notes.is_none() {
            return Ok(());
        }
        let told = self.note(&Note::Over);
        self.notes = None;
        if !self.child.wait()?.success() {
            return Err("not everything that this run made is gone".into());
        }
        told
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error}");
        }
    }
}

/// The child.
pub(crate) fn run() -> Result<()> {
    let (mut things, mut over) = (Vec::new(), false);
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Note::Made(thing) if things.contains(&thing) => {}
            Note::Made(thing) => things.push(thing),
            Note::Gone(thing) => things.retain(|known| *known != thing),
            Note::Over => over = true,
        }
    }
    // Processes first: they use the rest.
    things.sort_by_key(|thing| !matches!(thing, Thing::Process(_)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A container that Docker was about to start when the run was killed appears a moment later.
    let times = if over { 1 } else { 3 };
    let mut result = Ok(());
    for time in 1..=times {
        result = Ok(());
        for thing in &things {
            if let Err(error) = runtime.block_on(take_away(thing)) {
                result = Err(format!("{thing:?}: {error}").into());
            }
        }
        if time < times {
            thread::sleep(Duration::from_secs(2));
        }
    }
    result
}

async fn take_away(thing: &Thing) -> Result<()> {
    match thing {
        Thing::Process(pid) => {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL); // it may have ended by itself
            }
            Ok(())
        }
        Thing::Container(name) => match docker(&["rm", "-f", "-v", name]) {
            Err(error) if error.to_string().contains("No such container") => Ok(()),
            result => result.map(drop),
        },
        Thing::Database { url, name } => {
            let mut connection = MySqlConnection::connect(url).await?;
            let drop = format!("DROP DATABASE IF EXISTS {name}");
            connection.execute(sqlx::raw_sql(&drop)).await?;
            Ok(connection.close().await?)
        }
        Thing::Queues { url, prefix } => delete_queues(url, prefix).await,
    }
}

pub(crate) async fn delete_queues(url: &str, prefix: &str) -> Result<()> {
    let broker = lapin::Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = broker.create_channel().await?;
    let queues = (0..=Scenario::Products1000.products())
        .flat_map(|lane| [format!("orders.product.{lane}"), format!("orders.lane.{lane}")])
        .chain(["orders.dead".to_owned()]);
    for queue in queues {
        let name = format!("{prefix}{queue}");
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?; // absent ones are no error
    }
    for exchange in ["lanes", "stock"] {
        let name = format!("{prefix}{exchange}");
        channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await?;
    }
    Ok(broker.close(200, "done".into()).await?)
}
