//! Dates as HTTP, XML and signatures write them.
//!
//! Pure. All of them are UTC; what is read must be complete and real (no 30 February).

use garage_types::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A text that is not a date of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a date of the form {expected}")]
pub struct DateError {
    pub expected: &'static str,
}

/// The last instant that four digits of a year can show: 9999-12-31T23:59:59.999Z.
const LAST: u64 = 253_402_300_799_999;

fn instant(timestamp: Timestamp) -> jiff::Timestamp {
    let millis = timestamp.as_millis().min(LAST);
    // jiff's own end of time lies a little before ours, at the last hours of 9999.
    jiff::Timestamp::from_millisecond(millis as i64).unwrap_or(jiff::Timestamp::MAX)
}

/// A date in parts. Each request writes one or more, a listing a thousand: digit by digit is much faster than by a pattern.
struct Written(String);

impl Written {
    /// The last `digits` decimal digits of a number that is not negative.
    fn number(mut self, value: impl Into<i32>, digits: u32) -> Self {
        let value = value.into();
        for place in (0..digits).rev() {
            let digit = (value / 10_i32.pow(place)).rem_euclid(10) as u8;
            self.0.push(char::from(b'0' + digit));
        }
        self
    }

    fn text(mut self, text: char) -> Self {
        self.0.push(text);
        self
    }
}

/// `2009-10-12T17:50:30.000Z`, the form of every date in an S3 XML document.
pub fn iso8601_millis(timestamp: Timestamp) -> String {
    let at = TimeZone::UTC.to_datetime(instant(timestamp));
    let day =
        Written(String::with_capacity(24)).number(at.year(), 4).text('-').number(at.month(), 2).text('-').number(at.day(), 2);
    let minute = day.text('T').number(at.hour(), 2).text(':').number(at.minute(), 2);
    minute.text(':').number(at.second(), 2).text('.').number(at.millisecond(), 3).text('Z').0
}

/// `20130524T000000Z`, the form of `x-amz-date`. Parts of a second are dropped.
pub fn amz_basic(timestamp: Timestamp) -> String {
    let at = TimeZone::UTC.to_datetime(instant(timestamp));
    let day = Written(String::with_capacity(16)).number(at.year(), 4).number(at.month(), 2).number(at.day(), 2);
    day.text('T').number(at.hour(), 2).number(at.minute(), 2).number(at.second(), 2).text('Z').0
}

/// `Wed, 12 Oct 2009 17:50:00 GMT`, the form of `Date` and `Last-Modified`. Parts of a second are dropped.
pub fn http_date(timestamp: Timestamp) -> String {
    let seconds = timestamp.as_secs().min(LAST / 1000);
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

/// Reads any of the three forms HTTP allows.
///
/// # Errors
/// [`DateError`]; also for dates before 1970.
pub fn parse_http_date(text: &str) -> Result<Timestamp, DateError> {
    let refuse = DateError { expected: "Wed, 12 Oct 2009 17:50:00 GMT" };
    let parsed = httpdate::parse_http_date(text).map_err(|_malformed| refuse)?;
    let since = parsed.duration_since(std::time::UNIX_EPOCH).map_err(|_before_1970| refuse)?;
    Ok(Timestamp::from_millis(since.as_secs() * 1000))
}

/// Reads `20130524T000000Z`, and nothing else.
///
/// # Errors
/// [`DateError`]; also for dates before 1970.
pub fn parse_amz_basic(text: &str) -> Result<Timestamp, DateError> {
    let refuse = DateError { expected: "20130524T000000Z" };
    let bytes = text.as_bytes();
    let shape = bytes.len() == 16
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            8 => *byte == b'T',
            15 => *byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !shape {
        return Err(refuse);
    }
    let number = |from: usize, to: usize| bytes[from..to].iter().fold(0_i16, |sum, byte| sum * 10 + i16::from(byte - b'0'));
    // At most two digits each.
    let small = |from: usize| number(from, from + 2) as i8;
    let civil = DateTime::new(number(0, 4), small(4), small(6), small(9), small(11), small(13), 0).map_err(|_unreal| refuse)?;
    let zoned = civil.to_zoned(TimeZone::UTC).map_err(|_out_of_range| refuse)?;
    from_jiff(zoned.timestamp()).ok_or(refuse)
}

/// Reads ISO 8601 with a zone (`2009-10-12T17:50:30.000Z`, `…+02:00`, fraction optional), or a day alone, which means its
/// midnight in UTC: the forms of policies and lifecycle rules.
///
/// # Errors
/// [`DateError`]; also for dates before 1970.
pub fn parse_iso8601(text: &str) -> Result<Timestamp, DateError> {
    let refuse = DateError { expected: "2009-10-12T17:50:30.000Z" };
    let parsed = match text.parse::<jiff::Timestamp>() {
        Ok(parsed) => parsed,
        // jiff reads a day out of a whole date-time too; one without zone is refused.
        Err(_without_zone) if text.len() != 10 => return Err(refuse),
        Err(_without_zone) => {
            let day: jiff::civil::Date = text.parse().map_err(|_malformed| refuse)?;
            day.to_zoned(TimeZone::UTC).map_err(|_out_of_range| refuse)?.timestamp()
        }
    };
    from_jiff(parsed).ok_or(refuse)
}

fn from_jiff(parsed: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(parsed.as_millisecond()).ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;
    use proptest::prelude::{any, proptest};

    use super::{amz_basic, http_date, iso8601_millis, parse_amz_basic, parse_http_date, parse_iso8601};

    const EXAMPLE: Timestamp = Timestamp::from_millis(1_369_353_600_123);

    #[test]
    fn dates_are_written_as_aws_writes_them() {
        assert_eq!(iso8601_millis(EXAMPLE), "2013-05-24T00:00:00.123Z");
        assert_eq!(amz_basic(EXAMPLE), "20130524T000000Z");
        assert_eq!(http_date(EXAMPLE), "Fri, 24 May 2013 00:00:00 GMT");
    }

    #[test]
    fn dates_are_read_back() {
        let whole = Timestamp::from_millis(1_369_353_600_000);
        assert_eq!(parse_amz_basic("20130524T000000Z"), Ok(whole));
        assert_eq!(parse_http_date("Fri, 24 May 2013 00:00:00 GMT"), Ok(whole));
        assert_eq!(parse_iso8601("2013-05-24T00:00:00.123Z"), Ok(EXAMPLE));
        assert_eq!(parse_iso8601("2013-05-24T02:00:00+02:00"), Ok(whole));
        assert_eq!(parse_iso8601("2013-05-24"), Ok(whole));
    }

    #[test]
    fn unreal_and_sloppy_dates_are_refused() {
        for text in [
            "20130230T000000Z",
            "20130524T240000Z",
            "20130524T000000",
            "2013-05-24T00:00:00Z",
            "20130524t000000Z",
            "",
            "+0130524T000000Z",
        ] {
            assert!(parse_amz_basic(text).is_err(), "{text}");
        }
        assert!(parse_iso8601("1969-12-31T23:59:59Z").is_err());
        assert!(parse_iso8601("2013-05-24T00:00:00").is_err());
    }

    proptest! {
        #[test]
        fn no_instant_and_no_text_makes_these_panic(millis in any::<u64>(), text in any::<String>()) {
            let timestamp = Timestamp::from_millis(millis);
            drop((iso8601_millis(timestamp), amz_basic(timestamp), http_date(timestamp)));
            assert!([parse_amz_basic(&text), parse_http_date(&text), parse_iso8601(&text)].len() == 3);
        }

        #[test]
        fn seconds_round_trip(seconds in 0_u64..253_402_200_000) {
            let timestamp = Timestamp::from_millis(seconds * 1000);
            assert_eq!(parse_amz_basic(&amz_basic(timestamp)), Ok(timestamp));
            assert_eq!(parse_http_date(&http_date(timestamp)), Ok(timestamp));
            assert_eq!(parse_iso8601(&iso8601_millis(timestamp)), Ok(timestamp));
        }
    }
}
