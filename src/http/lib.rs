//! What the frontends share: the HTTP server and its limits, signatures, bodies, error replies, XML and dates.
//!
//! Knows no table and no operation: it can say who signed a request and hand out its verified bytes, not what they mean.
//! Invariants: a malformed credential is an error, never an anonymous request; bytes of a signed body are handed out
//! only under the signature that covers them; memory per connection is bounded; no secret is logged.
//!
//! The order of a request: [`RequestHead::read`], [`sigv4::parse`], the caller looks the key up, [`sigv4::Claim::verify`],
//! permissions, then [`body::Payload`]. The first read of a payload is what answers `Expect: 100-continue`.

pub mod body;
pub mod dates;
pub mod document;
pub mod error;
pub mod head;
pub mod reply;
pub mod request_id;
pub mod server;
pub mod sigv4;
pub mod uri;
pub mod xml;

pub use error::{ErrorReply, ReplyContext};
pub use head::{HeadError, RequestHead, Target};
pub use hyper::http;
pub use reply::ReplyBody;
pub use request_id::RequestId;
