//! Errors as one line of a log.

use std::error::Error;

/// The error and its causes, outermost first, joined by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;
    use crate::disk::FileError;

    #[test]
    fn causes_follow_the_error() {
        let error = FileError { action: "read", path: "/x".into(), source: std::io::Error::other("no") };
        assert_eq!(chain(&error), "cannot read /x: no");
    }
}
