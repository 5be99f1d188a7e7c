//! The tools for the operator, as the command line names them. [`crate::tools`] runs them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use clap_complete::Shell;

use super::retention;

/// A tool: it answers a question or does one thing, and ends.
#[derive(Clone, Debug, Subcommand)]
pub enum Tool {
    /// Compare each inventory with its orders; exit with 1 on a difference
    ///
    /// Reads only, in small consistent steps, and locks nothing: safe while a sale runs. Needs DATABASE_URL.
    Audit(Output),
    /// Check settings, database and broker; exit with 1 if antre cannot run or would lose data
    ///
    /// One line for each thing that it looked at: ok, warn or fail, and what to do. Changes nothing.
    Check(Output),
    /// Ask a running antre whether it is ready; exit with 1 if it is not
    ///
    /// For containers without a shell. Asks where LISTEN_ADDR says, unless --url says otherwise.
    Healthcheck(HealthCheck),
    /// Show what waits in the lanes of RabbitMQ; exit with 1 if a lane stands still
    ///
    /// Listens for some seconds to what the processes tell each other, and asks the broker for lanes of which nobody tells:
    /// commands that wait, the age of the oldest, the worker, and how many are decided a second. Changes nothing.
    Lanes(Output),
    /// Delete orders that are final and old, with their keys, while antre serves
    ///
    /// Final are orders that are paid, cancelled, expired or rejected. Works in small steps and rests between them. It may be
    /// interrupted and repeated at any time. A deleted order is 404, and its idempotency key is free again. Needs DATABASE_URL.
    Prune(Prune),
    /// Create the products of a CSV file with their stock
    ///
    /// Columns: sku, name, stock, in any order, under a header. The whole file is read before anything is written, and each line
    /// that is wrong is named. A product whose sku exists is left as it is; repeating an import does no harm. Exits with 1 if a
    /// line is wrong, or an existing product has another stock. Needs DATABASE_URL.
    Import(Import),
    /// Print a script that completes commands and flags in a shell
    Completions { shell: Shell },
    /// Print the manual page, or write one for each command
    Man(Manual),
    /// List, show, requeue or drop the dead letters of RabbitMQ
    ///
    /// Dead letters are messages of a lane that could not be read or decided, or that waited for an hour. They stay in the
    /// queue `orders.dead` until a person requeues or drops them.
    #[command(subcommand)]
    Dead(Dead),
}

#[derive(Args, Clone, Copy, Debug)]
pub struct Prune {
    /// How long ago an order was created at least, for example 90d; at least 1d
    #[arg(long, value_name = "AGE", value_parser = retention::age)]
    pub before: Duration,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct Import {
    /// The file, in UTF-8
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only say what it would do
    #[arg(long)]
    pub dry_run: bool,
    /// Set the stock of existing products too, where it differs: only while nobody buys, for pieces that were sold since they were
    /// counted come back
    #[arg(long)]
    pub recount: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct Manual {
    /// Write the pages of all commands to this directory
    #[arg(long, value_name = "DIRECTORY")]
    pub dir: Option<PathBuf>,
}

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum Dead {
    /// List them, the oldest first; exit with 1 if there are any
    List(DeadList),
    /// Show one with its payload
    Show {
        /// Its id, as `antre dead list` shows it, or the id of an order in it
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Put them at the end of their lanes again, in the order in which they died
    ///
    /// Of one lane, none overtakes another: where one cannot be queued, those behind it stay. Nobody is sent the verdicts, which
    /// are stored.
    Requeue(DeadSelection),
    /// Delete them for ever
    Drop(DeadSelection),
}

#[derive(Args, Clone, Copy, Debug)]
pub struct DeadList {
    /// How many at most
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000)]
    pub limit: u32,
    #[command(flatten)]
    pub output: Output,
}

/// Some dead letters.
#[derive(Args, Clone, Debug)]
pub struct DeadSelection {
    /// Their ids, as `antre dead list` shows them, or ids of orders in them
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<String>,
    /// All that there are when it begins
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct HealthCheck {
    /// What to ask, for example `http://127.0.0.1:3000/health/live` [default: /health/ready at LISTEN_ADDR]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

/// How a tool prints what it found.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Print JSON for programs instead of text for people
    #[arg(long)]
    pub json: bool,
}

impl Tool {
    /// Which settings each tool reads, by the ids of their arguments. `--help` of the tool shows only these.
    pub const SETTINGS: [(&str, &[&str]); 9] = [
        ("audit", &["database_url"]),
        (
            "check",
            &[
                "database_url",
                "amqp_url",
                "queue_prefix",
                "lanes",
                "order_timeout",
                "reservation_ttl",
                "max_hold",
            ],
        ),
        ("healthcheck", &["listen_addr"]),
        ("prune", &["database_url"]),
        ("import", &["database_url"]),
        ("completions", &[]),
        ("man", &[]),
        ("lanes", &["database_url", "amqp_url", "queue_prefix", "lanes"]),
        ("dead", &["database_url", "amqp_url", "queue_prefix", "lanes"]),
    ];
}
