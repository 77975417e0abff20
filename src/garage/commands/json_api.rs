//! `garage json-api`: any operation by name, JSON in and out.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;

use garage_admin::operations::name_of;
use garage_admin::{Operation, Visitor, visit_all};
use serde_json::Value;

use crate::args::JsonApiArgs;
use crate::connection::Daemon;
use crate::error::CliError;
use crate::output::print;

type Reply<'a> = Pin<Box<dyn Future<Output = Result<String, CliError>> + Send + 'a>>;
type Caller = for<'a> fn(&'a Daemon, Value) -> Reply<'a>;

/// Looks an operation up by its name.
struct Lookup<'a> {
    name: &'a str,
    found: Option<Caller>,
    known: Vec<&'static str>,
}

impl Visitor for Lookup<'_> {
    fn visit<O: Operation>(&mut self) {
        let name = name_of::<O>();
        self.known.push(name);
        if name == self.name {
            self.found = Some(call::<O>);
        }
    }
}

fn call<O: Operation>(daemon: &Daemon, payload: Value) -> Reply<'_> {
    Box::pin(async move {
        let operation = serde_json::from_value::<O>(payload);
        let operation = operation.map_err(|source| CliError::Payload { operation: name_of::<O>(), source })?;
        serde_json::to_string_pretty(&daemon.call(operation).await?).map_err(CliError::Json)
    })
}

fn look_up(name: &str) -> Result<Caller, CliError> {
    let mut lookup = Lookup { name, found: None, known: Vec::new() };
    visit_all(&mut lookup);
    let Lookup { found, known, .. } = lookup;
    found.ok_or_else(|| CliError::NoOperation { name: name.to_owned(), known })
}

pub(super) async fn run(daemon: &Daemon, args: &JsonApiArgs) -> Result<(), CliError> {
    let call = look_up(&args.operation)?;
    let mut text = args.payload.clone();
    if text == "-" {
        text.clear();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|source| CliError::Terminal { action: "read standard input", source })?;
    }
    let payload: Value = serde_json::from_str(&text).map_err(|source| CliError::Payload { operation: "json-api", source })?;
    print(&format!("{}\n", call(daemon, payload).await?))
}

#[cfg(test)]
mod tests {
    use super::look_up;

    #[test]
    fn operations_are_found_by_name_and_a_wrong_name_lists_them() {
        assert!(look_up("GetClusterStatus").is_ok());
        let error = look_up("GetClusterStatos").err().unwrap().to_string();
        assert!(error.contains("GetClusterStatus, ") && error.contains("RemoveBucketAlias"), "{error}");
    }
}
