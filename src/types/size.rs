//! Sizes and durations as people write them.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// A text that is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "{0:?} is not a size: write bytes, or a number with K, M, G, T, P (powers of 1000) or KiB, MiB, GiB, TiB, PiB (powers of 1024)"
    )]
    Size(String),
    #[error("{0:?} is not a duration: write numbers with units, such as 30s, 15min, 6h, 1d, 2 weeks or 1h 30m")]
    Duration(String),
}

/// Splits `12.5MiB` into the number's text and the unit's.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A size in bytes from text such as `1G`, `1.5T`, `10GiB`, `512`.
///
/// # Errors
/// [`QuantityError::Size`].
pub fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let refuse = || QuantityError::Size(text.to_owned());
    let (number, unit) = split_number(text.trim());
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "t" | "tb" => 1000_u64.pow(4),
        "p" | "pb" => 1000_u64.pow(5),
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        "pi" | "pib" => 1 << 50,
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(refuse);
    }
    let value = number.parse::<f64>().map_err(|_malformed| refuse())? * factor as f64;
    if value.is_finite() && value < u64::MAX as f64 { Ok(value as u64) } else { Err(refuse()) }
}

/// A duration from number and unit pairs: `6h`, `1d`, `2 weeks`, `1h 30m`.
///
/// # Errors
/// [`QuantityError::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let refuse = || QuantityError::Duration(text.to_owned());
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let number: f64 = rest[..end].parse().map_err(|_malformed| refuse())?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let seconds = match rest[..end].to_ascii_lowercase().as_str() {
            "ms" | "msec" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 7.0 * 86_400.0,
            "month" | "months" => 30.44 * 86_400.0,
            "y" | "year" | "years" => 365.25 * 86_400.0,
            _ => return Err(refuse()),
        };
        rest = rest[end..].trim_start_matches([' ', ',']);
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_out_of_range| refuse())?;
        total = total.checked_add(part).ok_or_else(refuse)?;
    }
    Ok(total)
}

/// `2.0 TB`: powers of 1000, one decimal, as layouts show capacities.
pub fn format_decimal(bytes: u64) -> String {
    format_with(bytes, 1000.0, ["B", "KB", "MB", "GB", "TB", "PB", "EB"])
}

/// `2.0 TiB`: powers of 1024, one decimal.
pub fn format_binary(bytes: u64) -> String {
    format_with(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn format_with(bytes: u64, step: f64, units: [&str; 7]) -> String {
    let mut value = bytes as f64;
    let mut index = 0;
    // One decimal is shown: 999.95 would round up to a thousand.
    while value >= step - 0.05 && index + 1 < units.len() {
        value /= step;
        index += 1;
    }
    if index == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[index]) }
}

/// A size in a configuration file: an integer or a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size such as 1048576 or \"10GiB\"")]
        enum Raw {
            Bytes(u64),
            Text(String),
        }
        match Raw::deserialize(deserializer)? {
            Raw::Bytes(bytes) => Ok(ByteSize(bytes)),
            Raw::Text(text) => parse_size(&text).map(ByteSize).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{format_binary, format_decimal, parse_duration, parse_size};

    #[test]
    fn sizes_read_as_people_write_them() {
        let read = [
            ("1G", 1_000_000_000),
            ("1.5T", 1_500_000_000_000),
            ("10GiB", 10 << 30),
            ("512", 512),
            ("1 KiB", 1024),
            ("0.5k", 500),
        ];
        for (text, bytes) in read {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "1e9", "99999999P", "1..2"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_as_people_write_them() {
        let read = [("6h", 21_600), ("1d", 86_400), ("2 weeks", 1_209_600), ("1h 30m", 5400), ("1h30m", 5400), ("15min", 900)];
        for (text, seconds) in read {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "6", "h", "1 fortnight", "1e400y"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_one_decimal() {
        assert_eq!(format_decimal(1_000_000_000), "1.0 GB");
        assert_eq!(format_decimal(999_999), "1.0 MB");
        assert_eq!(format_decimal(999), "999 B");
        assert_eq!(format_binary(12 << 20), "12.0 MiB");
    }
}
