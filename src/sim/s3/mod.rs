//! Clients that speak S3 with the machines, judged like those that call the store itself.
//!
//! [`client`] is HTTP and signatures; [`work`] what the clients do, and what their answers must be; [`uploads`] the part of it that
//! concerns uploads in parts. Some clients hang up in the middle of a body: what they sent must never be acknowledged nor seen.

pub mod client;
mod uploads;
pub mod work;
