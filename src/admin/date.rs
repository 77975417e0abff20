//! Points in time as the administration API writes them.

use std::fmt;
use std::str::FromStr;

use garage_types::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time; RFC 3339 in UTC, to the millisecond: `2025-05-01T08:20:30.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(pub Timestamp);

/// Text that is not a date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a date: write RFC 3339, such as 2030-01-31T12:00:00Z")]
pub struct DateError(String);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 there is no such notation; the last instant before it stands for all that follow.
        let millis = i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX);
        let instant = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{instant:.3}")
    }
}

impl FromStr for Date {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let refuse = || DateError(text.to_owned());
        let instant: jiff::Timestamp = text.parse().map_err(|_malformed| refuse())?;
        let millis = u64::try_from(instant.as_millisecond()).map_err(|_before_1970| refuse())?;
        Ok(Date(Timestamp::from_millis(millis)))
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::Date;

    #[test]
    fn dates_are_rfc_3339_in_utc() {
        let date = Date(Timestamp::from_millis(1_746_087_630_007));
        assert_eq!(date.to_string(), "2025-05-01T08:20:30.007Z");
        assert_eq!("2025-05-01T08:20:30.007Z".parse(), Ok(date));
        assert_eq!("2025-05-01T10:20:30.007+02:00".parse(), Ok(date));
        assert!("2025-05-01".parse::<Date>().is_err());
        assert!("1969-01-01T00:00:00Z".parse::<Date>().is_err());
    }
}
