//! The `garage` program: daemon and command line at once.
//!
//! Thin: [`args`] says what can be typed, [`settings`] finds the configuration, [`commands`] call operations of the daemon over
//! encrypted RPC, [`show`] words the replies, [`server`] starts the daemon. It does not know tables, blocks or S3.

mod args;
mod commands;
mod connection;
mod error;
mod hints;
mod output;
mod server;
mod settings;
mod show;
mod single_node;
mod waiting;

use std::io::IsTerminal;
use std::process::ExitCode;

use garage_admin::error::with_causes;
use tracing_subscriber::EnvFilter;

use crate::args::Command;

/// As other programs do when the command line cannot be understood.
const EXIT_USAGE: u8 = 2;

/// Calls to ourselves are polled on the stack of the request that makes them, and frames of debug builds are large. Only what is
/// used of it takes memory.
const STACK_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    let is_empty = |variable: &str| std::env::var_os(variable).is_some_and(|value| value.is_empty());
    let cli = match args::parse(std::env::args_os(), is_empty) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    log_to_stderr(&cli.command);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(&cli.global, cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints help or what is wrong with the command line, and what to type instead if we know.
fn explain(error: &clap::Error) -> ExitCode {
    if let Err(unwritten) = error.print() {
        eprintln!("Error: cannot write: {unwritten}");
        return ExitCode::FAILURE;
    }
    // Words in no known encoding are words as well.
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(hint) = hints::hint(error, &words) {
        eprintln!("\nHint: {hint}");
    }
    if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS }
}

/// The daemon tells what it does; other commands only what goes wrong. `RUST_LOG` overrides both.
fn log_to_stderr(command: &Command) {
    let default = if matches!(command, Command::Server(_)) { "info" } else { "warn" };
    let wanted = settings::variable("RUST_LOG").filter(|text| !text.is_empty());
    let filter = wanted.as_deref().map_or_else(|| Ok(EnvFilter::new(default)), EnvFilter::try_new);
    let filter = filter.unwrap_or_else(|error| {
        eprintln!("Warning: RUST_LOG is not a log filter, such as garage=debug ({error}): {default} is used");
        EnvFilter::new(default)
    });
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}
