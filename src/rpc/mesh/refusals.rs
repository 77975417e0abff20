//! What the log tells of connections that were refused.
//!
//! Pure: the time is an argument. Must stay true: the first refusal for a reason is told at once; strangers who keep trying make one
//! line per reason in [`SILENCE_MILLIS`], with the number of those that were not told.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};

use garage_net::NetError;
use garage_types::Timestamp;

/// After a line about a reason, for how long others like it are only counted.
const SILENCE_MILLIS: u64 = 30_000;

/// How loud a refusal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// As a warning, and how many like it were not told before.
    Warn { untold: u64 },
    /// For those who debug.
    Debug,
}

/// The refusals of late, by reason.
#[derive(Default)]
pub(super) struct Refusals(HashMap<Discriminant<NetError>, Told>);

struct Told {
    at: Timestamp,
    untold: u64,
}

impl Refusals {
    /// Takes note of a refusal at `now`.
    pub(super) fn note(&mut self, error: &NetError, now: Timestamp) -> Telling {
        if !is_mistaken(error) && !matches!(error, NetError::HandshakeTimeout(_)) {
            return Telling::Debug;
        }
        let told = self.0.entry(discriminant(error)).or_insert(Told { at: Timestamp::from_millis(0), untold: 0 });
        if now < told.at.plus_millis(SILENCE_MILLIS) {
            told.untold += 1;
            return Telling::Debug;
        }
        Telling::Warn { untold: std::mem::replace(told, Told { at: now, untold: 0 }).untold }
    }
}

/// Whether the other side is not what it should be, which waiting will not change. Who hangs up or is silent may only be busy, or try
/// whether the port is open.
pub(super) fn is_mistaken(error: &NetError) -> bool {
    match error {
        NetError::NotGarage { .. } | NetError::Version { .. } | NetError::Handshake(_) | NetError::Purpose { .. } => true,
        NetError::Io { source, .. } => source.kind() == std::io::ErrorKind::InvalidData,
        NetError::HandshakeTimeout(_) | NetError::Closed | NetError::Broken { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use garage_net::NetError;
    use garage_net::error::HandshakeError;
    use garage_types::Timestamp;

    use super::{Refusals, SILENCE_MILLIS, Telling};

    #[test]
    fn each_reason_is_told_at_once_and_then_once_in_a_while() {
        let mut refusals = Refusals::default();
        let mut note = |error: &NetError, millis| refusals.note(error, Timestamp::from_millis(1_000_000 + millis));
        let (key, garbage) = (NetError::Handshake(HandshakeError::NetworkKey), NetError::NotGarage { found: b"GET /".to_vec() });
        assert_eq!(note(&key, 0), Telling::Warn { untold: 0 });
        assert_eq!(note(&garbage, 0), Telling::Warn { untold: 0 }, "another reason is not hidden by the first");
        assert_eq!(note(&key, 1), Telling::Debug);
        assert_eq!(note(&key, SILENCE_MILLIS - 1), Telling::Debug);
        assert_eq!(note(&key, SILENCE_MILLIS), Telling::Warn { untold: 2 });
        assert_eq!(note(&NetError::HandshakeTimeout(Duration::from_secs(5)), 0), Telling::Warn { untold: 0 });
    }

    #[test]
    fn who_only_hangs_up_is_no_news() {
        let hung_up = NetError::Io { action: "receive the version", source: io::ErrorKind::UnexpectedEof.into() };
        assert_eq!(Refusals::default().note(&hung_up, Timestamp::from_millis(1_000_000)), Telling::Debug);
    }
}
