//! `antre completions` and `antre man`: made of the command line, so that they say what it takes.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap_complete::Shell;
use clap_mangen::Man;

use super::outcome::{Finding, ToolError};
use crate::settings::{Settings, tools::Manual};

/// A script for a shell, on stdout.
pub(super) fn completions(shell: Shell) -> Result<Finding, ToolError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Settings::command_line(), "antre", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(Finding::None)
}

/// The manual page on stdout, or one for each command in a directory.
pub(super) fn man(Manual { dir }: &Manual) -> Result<Finding, ToolError> {
    let command = Settings::command_line();
    match dir {
        None => io::stdout().lock().write_all(&page(&command)?)?,
        Some(dir) => write_all(&command, dir)
            .map_err(|error| ToolError::Failed(format!("cannot write to {}: {error}", dir.display())))?,
    }
    Ok(Finding::None)
}

/// A page for the command, and one for each command below it.
fn write_all(command: &clap::Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    fs::write(dir.join(format!("{name}.1")), page(command)?)?;
    // The help of the help is no page.
    command.get_subcommands().filter(|one| one.get_name() != "help").try_for_each(|one| write_all(one, dir))
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut roff = Vec::new();
    Man::new(command.clone()).render(&mut roff)?;
    Ok(roff)
}
