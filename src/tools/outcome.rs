//! How a tool ends.

use std::io;

use crate::settings::SettingsError;

/// Whether a tool found something that a person should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    None,
    Some,
}

/// Why a tool could not answer. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The settings are wrong.
    #[error(transparent)]
    Usage(#[from] SettingsError),
    /// Something it needs is not there.
    #[error("{0}")]
    Failed(String),
    /// What it found cannot be printed.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}
