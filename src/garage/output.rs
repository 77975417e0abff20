//! What goes to standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::CliError;
use crate::escape::escaped_text;

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Text,
    Json,
}

impl Output {
    /// Prints a reply: in the words of `text`, or as JSON.
    ///
    /// # Errors
    /// [`CliError::Json`], [`CliError::Terminal`].
    pub fn reply<T: Serialize>(self, reply: &T, text: impl FnOnce(&T) -> String) -> Result<(), CliError> {
        match self {
            Output::Text => print(&text(reply)),
            Output::Json => {
                let json = serde_json::to_string_pretty(reply).map_err(CliError::Json)?;
                print(&format!("{json}\n"))
            }
        }
    }
}

/// Prints a text, in which names from elsewhere are made harmless.
///
/// # Errors
/// [`CliError::Terminal`], unless the reader has just seen enough.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(escaped_text(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|source| CliError::Terminal { action: "write to standard output", source }),
    }
}
