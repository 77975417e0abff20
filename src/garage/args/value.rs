//! Values as people type them.

use std::convert::Infallible;

use garage_types::Secret;
use garage_types::size::{QuantityError, parse_size};

/// Smallest capacity of a storage node, in bytes.
const CAPACITY_MIN: u64 = 1024;

/// A limit, or its absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    None,
    AtMost(u64),
}

/// How many zones the copies of a partition are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redundancy {
    Maximum,
    AtLeast(usize),
}

/// A typed value that does not mean what its option needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    #[error("{bytes} bytes are too little to store anything: write a unit, such as {bytes}G or {bytes}T")]
    Capacity { bytes: u64 },
    #[error("{0:?} is neither a number nor `none`")]
    Count(String),
    #[error("{0:?} is not a redundancy: write `maximum`, `none` or a number of zones")]
    Redundancy(String),
}

/// # Errors
/// None: whether a secret has the right form is checked where it is used.
pub fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// # Errors
/// [`ValueError::Capacity`] for what was a unit-less weight in older versions.
pub fn capacity(text: &str) -> Result<u64, ValueError> {
    match parse_size(text)? {
        bytes if bytes < CAPACITY_MIN => Err(ValueError::Capacity { bytes }),
        bytes => Ok(bytes),
    }
}

/// # Errors
/// [`ValueError::Quantity`].
pub fn size_limit(text: &str) -> Result<Limit, ValueError> {
    if text == "none" { Ok(Limit::None) } else { Ok(Limit::AtMost(parse_size(text)?)) }
}

/// # Errors
/// [`ValueError::Count`].
pub fn count_limit(text: &str) -> Result<Limit, ValueError> {
    match text {
        "none" => Ok(Limit::None),
        _ => text.parse().map(Limit::AtMost).map_err(|_not_a_number| ValueError::Count(text.to_owned())),
    }
}

/// # Errors
/// [`ValueError::Redundancy`].
pub fn redundancy(text: &str) -> Result<Redundancy, ValueError> {
    match text {
        "none" => Ok(Redundancy::AtLeast(1)),
        "max" | "maximum" => Ok(Redundancy::Maximum),
        _ => match text.parse() {
            Ok(zones) if zones > 0 => Ok(Redundancy::AtLeast(zones)),
            _ => Err(ValueError::Redundancy(text.to_owned())),
        },
    }
}
