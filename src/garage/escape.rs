//! Text from elsewhere on its way to a terminal: names, keys and errors may contain what would move the cursor or change what is shown.
//!
//! Pure. A control character, or one that reverses the direction of writing, becomes `\n`, `\t`, `\r` or `\u001b`: readable, and still
//! JSON where it was within a JSON string.

use std::fmt::Write;

/// Whether a line may be coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    None,
    /// Sequences that only choose a colour or weight stay: the log itself makes them.
    Kept,
}

/// Ends a line or changes how what follows is shown.
fn is_unsafe(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_escaped(text: &mut String, character: char) {
    match character {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        other => write!(text, "\\u{:04x}", u32::from(other)).expect("a string takes everything"),
    }
}

/// A record of the log as one line, without its end.
pub fn escaped_line(record: &str, colours: Colours) -> String {
    let mut rest = record.strip_suffix('\n').unwrap_or(record);
    let mut line = String::with_capacity(rest.len());
    while let Some(character) = rest.chars().next() {
        let colour = if colours == Colours::Kept { colour_sequence(rest) } else { None };
        if let Some(sequence) = colour {
            line.push_str(sequence);
            rest = &rest[sequence.len()..];
            continue;
        }
        if is_unsafe(character) {
            push_escaped(&mut line, character);
        } else {
            line.push(character);
        }
        rest = &rest[character.len_utf8()..];
    }
    line
}

/// Text of several lines.
pub fn escaped_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) && character != '\n' {
            push_escaped(&mut escaped, character);
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// The sequence that chooses a colour with which the text begins.
fn colour_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let length = parameters.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    (parameters.as_bytes().get(length) == Some(&b'm')).then(|| &text[.."\u{1b}[".len() + length + 1])
}

#[cfg(test)]
mod tests {
    use super::{Colours, escaped_line, escaped_text};

    #[test]
    fn control_characters_become_readable() {
        assert_eq!(
            escaped_line("bucket \"a\u{1b}]0;title\u{7}\u{9b}2J\r\nb\"\n", Colours::None),
            "bucket \"a\\u001b]0;title\\u0007\\u009b2J\\r\\nb\""
        );
        assert_eq!(escaped_line("exe.\u{202e}gpj", Colours::None), "exe.\\u202egpj");
        assert_eq!(escaped_line("Zürich 東京", Colours::None), "Zürich 東京");
        assert_eq!(escaped_text("one\ntwo\u{1b}[31m\n"), "one\ntwo\\u001b[31m\n");
    }

    #[test]
    fn only_colours_stay_where_colours_are_wanted() {
        assert_eq!(escaped_line("\u{1b}[1;32mINFO\u{1b}[0m \u{1b}[2J", Colours::Kept), "\u{1b}[1;32mINFO\u{1b}[0m \\u001b[2J");
        assert_eq!(escaped_line("\u{1b}[32mINFO", Colours::None), "\\u001b[32mINFO");
    }

    #[test]
    fn what_was_json_is_json_still() {
        let json = serde_json::to_string("a\u{9b}\u{7f}b").unwrap();
        assert_eq!(serde_json::from_str::<String>(&escaped_text(&json)).unwrap(), "a\u{9b}\u{7f}b");
    }
}
