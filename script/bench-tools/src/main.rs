//! `s3bench`: puts load on an S3 endpoint step by step and prints one line of JSON per step.
//!
//! A closed loop: every worker has one keep-alive connection and one request at a time, so rates and latencies describe
//! the same thing. Requests carry `UNSIGNED-PAYLOAD`, so that hashing bodies is the server's cost only.

mod client;
mod content;
mod load;
mod process;
mod sign;
mod step;

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::client::{Client, Target};
use crate::load::{Loader, Outcome};
use crate::process::{PeakMemory, Usage};
use crate::sign::Signer;
use crate::step::Step;

const STEPS: &str = "put:4KiB:16:10s,get:4KiB:16:10s,head:4KiB:16:5s,delete:4KiB:16:5s,put:1MiB:16:10s,get:1MiB:16:10s,\
                     put:64MiB:1:10s,get:64MiB:1:10s,multipart:256MiB/16MiB:4:4,put:1KiB:16:10000,list:1KiB/1000:1:5s";

/// Puts load on an S3 endpoint (plain HTTP) in steps.
///
/// A step is OPERATION:SIZE:CONCURRENCY:LIMIT. OPERATION is put, get, head, delete, list (SIZE is object/page) or
/// multipart (SIZE is object/part); LIMIT is a time such as 10s or a number of operations. All but put and multipart use
/// the objects that an earlier put of the same size left.
#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "ENDPOINT")]
    endpoint: String,
    #[arg(long, env = "ACCESS_KEY", hide_env_values = true)]
    access_key: String,
    #[arg(long, env = "SECRET_KEY", hide_env_values = true)]
    secret_key: String,
    #[arg(long, env = "BUCKET")]
    bucket: String,
    #[arg(long, env = "REGION", default_value = "garage")]
    region: String,
    /// Process id of the server; with it CPU time, memory and bytes written are measured
    #[arg(long, env = "SERVER_PID")]
    pid: Option<u32>,
    #[arg(long, value_delimiter = ',', default_value = STEPS)]
    steps: Vec<Step>,
    /// Seconds of rest before each step
    #[arg(long, default_value_t = 1.0)]
    rest: f64,
    /// Compare the contents of every object read
    #[arg(long)]
    verify: bool,
}

/// What is printed for a step. Times in milliseconds, memory in bytes; server figures are absent without `--pid`.
#[derive(serde::Serialize)]
struct Line<'a> {
    step: &'a str,
    operations: usize,
    errors: usize,
    seconds: f64,
    operations_per_second: f64,
    mib_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    server_cpu_ms_per_operation: Option<f64>,
    server_cores: Option<f64>,
    server_memory_bytes_max: Option<u64>,
    server_bytes_written_per_operation: Option<f64>,
    client_cores: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // One thread: the server under test shares the machine.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<()> {
    let host = arguments.endpoint.strip_prefix("http://").context("the endpoint must begin with http://")?;
    let host = host.trim_end_matches('/').to_owned();
    let signer = Signer::new(&arguments.access_key, &arguments.secret_key, &arguments.region, &host);
    let target = Rc::new(Target { host, bucket: arguments.bucket, signer });
    Client::new(Rc::clone(&target)).head_bucket().await.context("the bucket does not answer")?;

    let mut loader = Loader::new(target, arguments.verify);
    let mut errors = 0;
    for step in &arguments.steps {
        tokio::time::sleep(Duration::from_secs_f64(arguments.rest)).await;
        let memory = arguments.pid.map(PeakMemory::watch);
        let (server, own) = (usage(arguments.pid), usage(Some(std::process::id())));
        let outcome = loader.run(step).await?;
        let spent = difference(usage(arguments.pid), server);
        let own_spent = difference(usage(Some(std::process::id())), own);
        let line = line(step, &outcome, spent, own_spent, memory.map(|watch| watch.finish()));
        println!("{}", serde_json::to_string(&line)?);
        if let Some(error) = &outcome.first_error {
            eprintln!("{}: {} errors, the first: {error}", step.text, outcome.errors);
        }
        errors += outcome.errors;
    }
    anyhow::ensure!(errors == 0, "{errors} operations failed");
    Ok(())
}

fn usage(pid: Option<u32>) -> Option<Usage> {
    pid.and_then(Usage::of)
}

fn difference(after: Option<Usage>, before: Option<Usage>) -> Option<Usage> {
    Some(after?.since(&before?))
}

fn line<'a>(step: &'a Step, outcome: &Outcome, server: Option<Usage>, own: Option<Usage>, memory: Option<u64>) -> Line<'a> {
    let seconds = outcome.elapsed.as_secs_f64();
    let operations = outcome.latencies.len();
    let each = |total: f64| total / operations.max(1) as f64;
    let milliseconds = |share| outcome.percentile(share).as_secs_f64() * 1e3;
    Line {
        step: &step.text,
        operations,
        errors: outcome.errors,
        seconds,
        operations_per_second: operations as f64 / seconds,
        mib_per_second: outcome.bytes as f64 / seconds / f64::from(1 << 20),
        p50_ms: milliseconds(0.5),
        p99_ms: milliseconds(0.99),
        max_ms: milliseconds(1.0),
        server_cpu_ms_per_operation: server.as_ref().map(|spent| each(spent.cpu_seconds * 1e3)),
        server_cores: server.as_ref().map(|spent| spent.cpu_seconds / seconds),
        server_memory_bytes_max: memory,
        server_bytes_written_per_operation: server.as_ref().map(|spent| each(spent.bytes_written as f64)),
        client_cores: own.map_or(0.0, |spent| spent.cpu_seconds / seconds),
    }
}
