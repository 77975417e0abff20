//! The S3 frontend: requests in, replies out, one file per operation.
//!
//! Must stay true: a request is authenticated, its bucket found and its access checked in one place ([`service`]) before an operation
//! runs; a sub-resource, header or parameter that would change the meaning of a request and is not implemented is refused, never
//! ignored; errors are rendered in one place.
//!
//! It does not know tables, blocks or nodes: everything goes through `model`.

pub mod conditions;
pub mod error;
pub mod headers;
pub mod location;
pub mod ops;
pub mod range;
pub mod reply;
pub mod route;
pub mod service;

pub use error::{Code, S3Error};
pub use service::{S3Service, S3Settings};
