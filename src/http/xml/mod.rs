//! XML as S3 speaks it: a writer that keeps the order it is given, and a small reader that expands nothing.

mod reader;
mod writer;

pub use reader::{Element, XmlError, parse};
pub use writer::{XmlWriter, can_carry, legible};

/// The namespace of S3's documents.
pub const S3_NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
