//! `antre dead`: the dead letters of RabbitMQ, for a person who looks at them.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    broker,
    outcome::{Finding, ToolError},
    output,
};
use crate::{
    clock::{Clock, SystemClock},
    domain::{command::Command, lines::Lines, origin::RequestId},
    queue::{
        QueueError,
        rabbitmq::dead_letters::{DeadLetter, DeadLetters},
    },
    server_url::shown,
    settings::{
        Backends, Settings,
        tools::{Dead, DeadList, DeadSelection, Output},
    },
};

pub(super) async fn run(settings: &Settings, what: Dead) -> Result<Finding, ToolError> {
    let output = match &what {
        Dead::List(DeadList { output, .. }) | Dead::Show { output, .. } => *output,
        Dead::Requeue(selection) | Dead::Drop(selection) => selection.output,
    };
    let Backends::Servers { amqp_url, .. } = settings.backends.backends()? else {
        match output.json {
            true => output::json(&Report::default())?,
            false => output::line(
                "There are no dead letters: in the embedded mode the lanes are in the process (for RabbitMQ set AMQP_URL and \
                 DATABASE_URL)",
            )?,
        }
        return Ok(Finding::None);
    };
    let failed = |error: QueueError| {
        ToolError::Failed(format!(
            "cannot read the dead letters of {}: {error}. Check that the broker runs, and AMQP_URL (--amqp-url)",
            shown(&amqp_url)
        ))
    };
    // A signal ends the work between two letters: an unclean end counts as a lost delivery of each letter in hand.
    let mut stop = [SignalKind::terminate(), SignalKind::interrupt()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let letters = DeadLetters::open(broker::settings(&settings.backends, &amqp_url)).await.map_err(failed)?;
    let worked = work(&letters, &what, &mut stop).await;
    let closed = letters.close().await;
    let report = worked.map_err(failed)?;
    closed.map_err(failed)?;
    print(&report, &what, output)?;
    let is_missing = match &what {
        Dead::Show { id, .. } => report.letters.is_empty().then(|| id.clone()),
        Dead::Requeue(selection) | Dead::Drop(selection) => {
            selection.ids.iter().find(|id| !report.found.contains(*id)).cloned()
        }
        Dead::List(_) => None,
    };
    if let Some(id) = is_missing {
        return Err(ToolError::Failed(format!(
            "no dead letter has the id {id}: antre dead list shows those that there are"
        )));
    }
    let has_found = match what {
        Dead::List(_) => !report.letters.is_empty(),
        _ => report.letters.iter().any(|letter| letter.error.is_some()),
    };
    Ok(if has_found || report.stopped { Finding::Some } else { Finding::None })
}

/// What was done with which letters.
#[derive(Default, Serialize)]
struct Report {
    letters: Vec<Letter>,
    /// A signal ended the work, or there are more letters than were asked for.
    stopped: bool,
    /// Ids of the command line that are those of a letter.
    #[serde(skip)]
    found: HashSet<String>,
}

/// A dead letter, for people and programs.
#[derive(Serialize)]
struct Letter {
    id: String,
    reason: String,
    lane: Option<String>,
    died_at: Option<Timestamp>,
    database: Option<String>,
    lost_deliveries: i64,
    commands: Vec<CommandLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    /// Why it stayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct CommandLine {
    what: &'static str,
    order_id: String,
    product_id: u64,
    /// Of a new order.
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Lines>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Letter {
    fn of(letter: &DeadLetter, has_payload: bool) -> Self {
        let payload = || String::from_utf8_lossy(&letter.payload).into_owned();
        Self {
            id: letter.id.clone(),
            reason: letter.reason.clone(),
            lane: letter.lane.clone(),
            died_at: letter.died_at,
            database: letter.database.clone(),
            lost_deliveries: letter.lost_deliveries,
            commands: letter.commands.iter().flatten().map(CommandLine::of).collect(),
            unreadable: letter.commands.as_ref().err().cloned(),
            payload: has_payload.then(payload),
            error: None,
        }
    }

    fn line(&self) -> String {
        let age = self
            .commands
            .first()
            .map(|command| SystemClock.now().duration_since(command.created_at).as_secs());
        let age = age.map_or("?".to_owned(), |seconds| {
            humantime::format_duration(Duration::from_secs(seconds.max(0).cast_unsigned())).to_string()
        });
        let commands: Vec<_> = self.commands.iter().map(CommandLine::text).collect();
        let says = self.unreadable.clone().unwrap_or_else(|| commands.join(", "));
        let lane = self.lane.as_deref().map_or(String::new(), |lane| format!(" in {lane}"));
        let error = self.error.as_deref().map_or(String::new(), |error| format!(": stays, {error}"));
        let warning = match self.lost_deliveries {
            10.. => {
                format!(" ({} of 20 lost deliveries: save it before RabbitMQ drops it)", self.lost_deliveries)
            }
            _ => String::new(),
        };
        format!("{} {}{lane}, {age} old: {says}{warning}{error}", self.id, self.reason)
    }
}

impl CommandLine {
    fn of(command: &Command) -> Self {
        let lines = match command {
            Command::Place(order) => Some(order.lines.clone()),
            Command::Change(_) => None,
        };
        Self {
            what: command.what(),
            order_id: command.order_id().to_string(),
            product_id: command.product_id().get(),
            lines,
            created_at: command.id().as_order().created_at(),
            request_id: command.origin().request_id.as_ref().map(RequestId::to_string),
        }
    }

    fn text(&self) -> String {
        let of = match &self.lines {
            Some(lines) => lines.to_string(),
            None => format!("product {}", self.product_id),
        };
        let request = self.request_id.as_deref().map_or(String::new(), |id| format!(" of request {id}"));
        format!("{} {} ({of}){request}", self.what, self.order_id)
    }
}

async fn work(letters: &DeadLetters, what: &Dead, stop: &mut [Signal]) -> Result<Report, QueueError> {
    let mut report = Report::default();
    let limit = match what {
        Dead::List(DeadList { limit, .. }) => *limit as usize,
        _ => usize::MAX,
    };
    // All of them first, so that what is queued again or becomes a dead letter during the loop is not handled twice.
    let mut taken = Vec::new();
    while taken.len() < limit {
        match letters.take().await? {
            Some(letter) => taken.push(letter),
            None => break,
        }
        if is_stopped(stop) {
            report.stopped = true;
            return Ok(report);
        }
    }
    report.stopped = taken.len() == limit && letters.take().await?.is_some();
    // Lanes in which a letter stayed: those behind it stay, too.
    let mut blocked = HashMap::new();
    for letter in taken {
        if is_stopped(stop) {
            report.stopped = true;
            break;
        }
        match what {
            Dead::List(_) => report.letters.push(Letter::of(&letter, false)),
            Dead::Show { id, .. } => {
                if is_named(&letter, std::slice::from_ref(id), &mut report.found) {
                    report.letters.push(Letter::of(&letter, true));
                }
            }
            Dead::Drop(DeadSelection { ids, all, .. }) => {
                if *all || is_named(&letter, ids, &mut report.found) {
                    let mut line = Letter::of(&letter, false);
                    line.error = letters.drop(letter).await.err().map(|error| error.to_string());
                    report.letters.push(line);
                }
            }
            Dead::Requeue(DeadSelection { ids, all, .. }) => {
                if *all || is_named(&letter, ids, &mut report.found) {
                    report.letters.push(requeue(letters, letter, &mut blocked).await);
                }
            }
        }
    }
    Ok(report)
}

async fn requeue(letters: &DeadLetters, letter: DeadLetter, blocked: &mut HashMap<u64, String>) -> Letter {
    let mut line = Letter::of(&letter, false);
    let lanes = match letters.lanes_of(&letter) {
        Ok(lanes) => lanes,
        Err(error) => {
            line.error = Some(format!("{error}; drop it once you know what it was"));
            return line;
        }
    };
    if let Some(before) = lanes.iter().find_map(|lane| blocked.get(lane)) {
        line.error = Some(format!("because {before} of the same lane stays, and it must not overtake that"));
    } else if let Err(error) = letters.requeue(letter).await {
        line.error = Some(error.to_string());
        blocked.extend(lanes.into_iter().map(|lane| (lane, line.id.clone())));
    }
    line
}

/// Whether one of these ids is the letter's, or that of a command or an order in it.
fn is_named(letter: &DeadLetter, ids: &[String], found: &mut HashSet<String>) -> bool {
    let mut names = vec![letter.id.clone()];
    for command in letter.commands.iter().flatten() {
        names.push(command.id().to_string());
        if let Command::Change(change) = command {
            names.push(change.order_id.to_string());
        }
    }
    let named: Vec<_> = ids.iter().filter(|id| names.contains(&id.to_ascii_lowercase())).cloned().collect();
    let is_named = !named.is_empty();
    found.extend(named);
    is_named
}

/// Whether a signal has arrived. Does not wait.
fn is_stopped(stop: &mut [Signal]) -> bool {
    use futures_util::FutureExt;
    stop.iter_mut().any(|signal| signal.recv().now_or_never().is_some())
}

fn print(report: &Report, what: &Dead, output: Output) -> Result<(), ToolError> {
    if output.json {
        return Ok(output::json(report)?);
    }
    for letter in &report.letters {
        output::line(letter.line())?;
        if let Some(payload) = &letter.payload {
            output::line(payload)?;
        }
    }
    let count = |letters: usize| output::count(letters as u64, "dead letter", "dead letters");
    let stayed = report.letters.iter().filter(|letter| letter.error.is_some()).count();
    let done = report.letters.len() - stayed;
    let summary = match what {
        Dead::Show { .. } => return Ok(()),
        Dead::List(_) if report.stopped => format!("{}, and there are more (--limit)", count(done)),
        Dead::List(_) => count(done),
        Dead::Requeue(_) => format!("{} queued again, {stayed} stayed", count(done)),
        Dead::Drop(_) => format!("{} dropped, {stayed} stayed", count(done)),
    };
    Ok(output::line(format_args!("{summary}."))?)
}
