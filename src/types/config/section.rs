//! One table of the file: keys are taken out one by one, what is left over at the end is unknown.

use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::{ConfigError, Listen, Warning};
use crate::Secret;
use crate::size::{parse_duration, parse_size};

pub(super) struct Section {
    /// Empty for the top level.
    name: String,
    entries: Table,
}

/// How a value is read and what to write if it cannot be.
pub(super) struct Kind<T> {
    pub read: fn(&Value) -> Option<T>,
    pub expected: &'static str,
}

pub(super) const TEXT: Kind<String> = Kind { read: text, expected: "a text in quotes" };
pub(super) const PATH: Kind<PathBuf> = Kind { read: path, expected: "a path in quotes" };
pub(super) const BOOL: Kind<bool> = Kind { read: Value::as_bool, expected: "true or false" };
pub(super) const SIZE: Kind<u64> = Kind { read: size, expected: "a size such as 1048576, \"10MiB\" or \"1.5G\"" };
pub(super) const DURATION: Kind<Duration> = Kind { read: duration, expected: "a duration such as \"6h\" or \"1d 12h\"" };
pub(super) const LISTEN: Kind<Listen> =
    Kind { read: listen, expected: "\"<ip>:<port>\" (IPv6 in brackets, \"[::]:3900\"), or the path of a Unix socket" };

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Any text that `T` can be parsed from.
pub(super) fn parsed<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.parse().ok()
}

fn path(value: &Value) -> Option<PathBuf> {
    value.as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn size(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(bytes) => u64::try_from(*bytes).ok(),
        Value::String(text) => parse_size(text).ok(),
        _ => None,
    }
}

fn duration(value: &Value) -> Option<Duration> {
    parse_duration(value.as_str()?).ok()
}

fn listen(value: &Value) -> Option<Listen> {
    let text = value.as_str()?;
    match text.parse() {
        Ok(address) => Some(Listen::Tcp(address)),
        // Whatever has no slash is a mistyped address rather than a socket in the working directory.
        Err(_not_an_address) => text.contains('/').then(|| Listen::Unix(PathBuf::from(text))),
    }
}

impl Section {
    pub(super) fn new(name: impl Into<String>, entries: Table) -> Self {
        Section { name: name.into(), entries }
    }

    /// The key with its section, as errors name it.
    pub(super) fn full_key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(super) fn optional<T>(&mut self, key: &str, kind: &Kind<T>) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.entries.remove(key) else { return Ok(None) };
        match (kind.read)(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.refuse(key, &value, kind.expected)),
        }
    }

    pub(super) fn or<T>(&mut self, key: &str, kind: &Kind<T>, default: T) -> Result<T, ConfigError> {
        Ok(self.optional(key, kind)?.unwrap_or(default))
    }

    pub(super) fn required<T>(&mut self, key: &str, kind: &Kind<T>, example: &'static str) -> Result<T, ConfigError> {
        match self.optional(key, kind)? {
            Some(value) => Ok(value),
            None => Err(ConfigError::Missing { key: self.full_key(key), example }),
        }
    }

    /// A text that no error shows.
    pub(super) fn secret(&mut self, key: &str) -> Result<Option<Secret>, ConfigError> {
        match self.entries.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(Secret::new(text))),
            Some(_other) => {
                Err(ConfigError::Value { key: self.full_key(key), found: "what it is".to_owned(), expected: "a text in quotes" })
            }
        }
    }

    /// A list of values of one kind.
    pub(super) fn list<T>(&mut self, key: &str, kind: &Kind<T>) -> Result<Vec<T>, ConfigError> {
        match self.entries.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                let read = |value: &Value| (kind.read)(value).ok_or_else(|| self.refuse(key, value, kind.expected));
                values.iter().map(read).collect()
            }
            Some(other) => Err(self.refuse(key, &other, "a list in brackets")),
        }
    }

    /// A table inside this one.
    pub(super) fn section(&mut self, key: &str) -> Result<Option<Section>, ConfigError> {
        match self.entries.remove(key) {
            None => Ok(None),
            Some(Value::Table(entries)) => Ok(Some(Section::new(self.full_key(key), entries))),
            Some(other) => Err(self.refuse(key, &other, "a section in brackets on a line of its own, its settings below it")),
        }
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    pub(super) fn raw(&mut self, key: &str) -> Option<Value> {
        self.entries.remove(key)
    }

    pub(super) fn refuse(&self, key: &str, found: &Value, expected: &'static str) -> ConfigError {
        ConfigError::Value { key: self.full_key(key), found: found.to_string(), expected }
    }

    /// Takes out a key that older versions knew.
    pub(super) fn removed(&mut self, key: &str, instead: &'static str, warnings: &mut Vec<Warning>) {
        if self.entries.remove(key).is_some() {
            warnings.push(Warning::Removed { key: self.full_key(key), instead });
        }
    }

    /// Whatever has not been taken out is unknown.
    pub(super) fn finish(self, warnings: &mut Vec<Warning>) {
        let unknown = |key: &String| Warning::UnknownKey { key: self.full_key(key) };
        warnings.extend(self.entries.keys().map(unknown));
    }
}
