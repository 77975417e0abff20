//! One step of the load, as written on the command line.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Put,
    Get,
    Head,
    Delete,
    /// Pages of `page` keys through all objects of the size.
    List {
        page: usize,
    },
    /// One object at a time, its parts of `part` bytes over all connections.
    Multipart {
        part: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Time(Duration),
    Operations(usize),
}

#[derive(Clone, Debug)]
pub struct Step {
    pub text: String,
    pub operation: Operation,
    /// Bytes of an object.
    pub size: usize,
    pub concurrency: usize,
    pub limit: Limit,
}

impl FromStr for Step {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fields: Vec<&str> = text.split(':').collect();
        let [name, sizes, concurrency, limit] = fields[..] else {
            bail!("{text:?} is not operation:size:concurrency:limit");
        };
        let mut sizes = sizes.split('/').map(parse_size);
        let size = sizes.next().context("no size")??;
        let detail = sizes.next().transpose()?;
        let operation = match (name, detail) {
            ("put", None) => Operation::Put,
            ("get", None) => Operation::Get,
            ("head", None) => Operation::Head,
            ("delete", None) => Operation::Delete,
            ("list", page) => Operation::List { page: page.unwrap_or(1000) },
            ("multipart", Some(part)) => Operation::Multipart { part },
            _ => bail!("{text:?}: unknown operation, or a size that does not fit it"),
        };
        let limit = match limit.strip_suffix('s') {
            Some(seconds) => Limit::Time(Duration::try_from_secs_f64(seconds.parse()?)?),
            None => Limit::Operations(limit.parse().context("the limit is neither a time nor a number")?),
        };
        let concurrency = concurrency.parse()?;
        ensure!(concurrency > 0, "{text:?}: concurrency must be at least 1");
        Ok(Self { text: text.to_owned(), operation, size, concurrency, limit })
    }
}

/// Bytes, with an optional `KiB`, `MiB` or `GiB`.
fn parse_size(text: &str) -> Result<usize> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor: usize = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => bail!("unknown unit {unit:?}"),
    };
    let number: usize = digits.parse().with_context(|| format!("size {text:?}"))?;
    number.checked_mul(factor).with_context(|| format!("size {text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_read_field_by_field() {
        let step: Step = "multipart:256MiB/16MiB:4:3".parse().unwrap();
        assert_eq!(step.operation, Operation::Multipart { part: 16 << 20 });
        assert_eq!((step.size, step.concurrency, step.limit), (256 << 20, 4, Limit::Operations(3)));
        let step: Step = "get:4KiB:16:1.5s".parse().unwrap();
        assert_eq!((step.operation, step.limit), (Operation::Get, Limit::Time(Duration::from_millis(1500))));
    }

    #[test]
    fn a_malformed_step_is_refused() {
        for text in ["", "get:1", "get:1:0:1", "get:1XB:1:1", "multipart:1MiB:1:1", "put:1/2:1:1", "jump:1:1:1", "get:1:1:-1s"] {
            assert!(text.parse::<Step>().is_err(), "{text}");
        }
    }
}
