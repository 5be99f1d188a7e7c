//! Tools for the operator: each answers a question or does one thing, and ends. They exit with 0, with 1 when they found
//! something or could not do it, and with 2 when the command line is wrong.

mod audit;
mod broker;
mod check;
mod database;
mod dead;
mod healthcheck;
mod import;
mod lanes;
mod manual;
mod outcome;
mod output;
mod prune;

use crate::settings::{Settings, tools::Tool};

pub use outcome::{Finding, ToolError};

/// Runs a tool to its end.
pub async fn run(settings: &Settings, tool: Tool) -> Result<Finding, ToolError> {
    match tool {
        Tool::Audit(output) => audit::run(settings, output).await,
        Tool::Check(output) => check::run(settings, output).await,
        Tool::Dead(what) => dead::run(settings, what).await,
        Tool::Import(arguments) => import::run(settings, arguments).await,
        Tool::Completions { shell } => manual::completions(shell),
        Tool::Man(arguments) => manual::man(&arguments),
        Tool::Lanes(output) => lanes::run(settings, output).await,
        Tool::Prune(arguments) => prune::run(settings, arguments).await,
        Tool::Healthcheck(arguments) => healthcheck::run(settings, arguments).await,
    }
}
