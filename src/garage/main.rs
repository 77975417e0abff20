//! The `garage` program: daemon and command line at once.
//!
//! Thin: [`args`] says what can be typed, [`settings`] finds the configuration, [`commands`] call operations of the daemon over
//! encrypted RPC, [`show`] words the replies, [`server`] starts the daemon. It does not know tables, blocks or S3.

mod allocator;
mod args;
mod commands;
mod connection;
mod error;
mod escape;
mod hints;
mod logging;
mod output;
mod server;
mod settings;
mod show;
mod single_node;
mod waiting;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use garage_admin::error::with_causes;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::Command;
use crate::escape::{Colours, escaped_text};
use crate::logging::{EscapingStderr, FLUSH_TIMEOUT, LogQueue, Repeats};

/// As other programs do when the command line cannot be understood.
const EXIT_USAGE: u8 = 2;

/// Calls to ourselves are polled on the stack of the request that makes them, and frames of debug builds are large. Only what is
/// used of it takes memory.
const STACK_BYTES: usize = 8 << 20;

/// At the end, for work that was handed to other threads.
const THREADS_END_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let is_empty = |variable: &str| std::env::var_os(variable).is_some_and(|value| value.is_empty());
    let cli = match args::parse(std::env::args_os(), is_empty) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let log = log_to_stderr(&cli.command);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(commands::run(&cli.global, cli.command));
    // Work on a disk that does not answer must not keep the process.
    runtime.shutdown_timeout(THREADS_END_TIMEOUT);
    let failure = ended.err().map(|error| format!("Error: {}", escaped_text(&with_causes(&error))));
    match (log, &failure) {
        // The thread that writes the log may wait for its reader for ever, and nobody else comes to standard error meanwhile.
        (Some(log), failure) => log.finish(failure.as_deref().unwrap_or_default(), FLUSH_TIMEOUT),
        (None, Some(failure)) => eprintln!("{failure}"),
        (None, None) => {}
    }
    if failure.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
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
///
/// Returns the queue of the daemon's log: requests must not wait for whoever reads it.
fn log_to_stderr(command: &Command) -> Option<LogQueue> {
    let is_daemon = matches!(command, Command::Server(_));
    let default = if is_daemon { "info" } else { "warn" };
    let wanted = settings::variable("RUST_LOG").filter(|text| !text.is_empty());
    let filter = wanted.as_deref().map_or_else(|| Ok(EnvFilter::new(default)), EnvFilter::try_new);
    let filter = filter.unwrap_or_else(|error| {
        let error = escaped_text(&error.to_string());
        eprintln!("Warning: RUST_LOG is not a log filter, such as garage=debug ({error}): {default} is used");
        EnvFilter::new(default)
    });
    let ansi = std::io::stderr().is_terminal();
    let colours = if ansi { Colours::Kept } else { Colours::None };
    let queue = if is_daemon { LogQueue::start(std::io::stderr(), colours).map(Some) } else { Ok(None) };
    let queue = queue.unwrap_or_else(|error| {
        eprintln!("Warning: cannot start a thread for the log ({error}): it is written directly");
        None
    });
    match &queue {
        Some(queue) => {
            let lines = tracing_subscriber::fmt::layer().with_writer(queue.clone()).with_ansi(ansi);
            let repeats = Repeats::new(queue.clone());
            tracing_subscriber::registry().with(filter).with(repeats).with(lines).init();
            let queue = queue.clone();
            std::panic::set_hook(Box::new(move |panic| {
                queue.submit(format!("ERROR garage: {panic}").as_bytes());
                let backtrace = Backtrace::capture();
                if backtrace.status() == BacktraceStatus::Captured {
                    backtrace.to_string().lines().for_each(|line| queue.submit(line.as_bytes()));
                }
                if std::thread::current().name() == Some("main") {
                    // The process ends with it.
                    queue.finish("", FLUSH_TIMEOUT);
                }
            }));
        }
        None => {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || EscapingStderr(colours)).with_ansi(ansi).init();
        }
    }
    queue
}
