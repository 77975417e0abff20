//! Writing documents: element order is that of the calls.
//!
//! XML 1.0 has no way at all to carry most control characters, U+FFFE and U+FFFF. They are written as references such as
//! `&#x1;`, as AWS writes them. Tolerant parsers read them; strict ones (expat, Xerces, libxml2, Go's) refuse the whole document,
//! which is the lesser evil: a replacement character would show two keys under one name that belongs to neither, and a client
//! would delete or copy something else by it. `encoding-type=url` shows every key to everyone. A carriage return, which parsers
//! would turn into a line feed, is written as a reference too.

use std::fmt::Write;

use crate::document::Document;

/// Whether XML has no way to carry this character.
fn is_unspeakable(character: char) -> bool {
    matches!(character, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether the byte stands for itself in a document, whatever is beside it. Nearly every text of a listing has no other.
fn is_plain(byte: u8) -> bool {
    // U+FFFE and U+FFFF begin with 0xEF.
    byte >= b' ' && !matches!(byte, b'<' | b'>' | b'&' | b'"' | 0xef)
}

/// Whether every parser reads this text as it is.
pub fn can_carry(text: &str) -> bool {
    !text.contains(is_unspeakable)
}

/// The text for people to read, not to be used as a name: a replacement character where XML has no way to carry one.
pub fn legible(text: &str) -> String {
    text.replace(is_unspeakable, "\u{fffd}")
}

/// A document under construction. Element names are our own constants and not escaped.
#[derive(Debug)]
pub struct XmlWriter {
    before: Document,
    text: String,
}

/// A document is made in pieces of about this length; a piece ends where an element begins.
const PIECE_BYTES: usize = 32 << 10;
/// Most elements that do not fit a piece any more end within so many bytes.
const PIECE_BYTES_MORE: usize = 4 << 10;

impl XmlWriter {
    /// Begins with the XML declaration.
    pub fn document() -> Self {
        XmlWriter { before: Document::default(), text: "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned() }
    }

    pub fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) {
        self.open(name, &[], content);
    }

    /// The root of most of S3's documents: an element in `namespace`.
    pub fn root(&mut self, name: &str, namespace: &str, content: impl FnOnce(&mut Self)) {
        self.open(name, &[("xmlns", namespace)], content);
    }

    /// A root that holds text alone.
    pub fn root_text(&mut self, name: &str, namespace: &str, text: &str) {
        self.root(name, namespace, |xml| xml.escaped(text));
    }

    /// An element with attributes, given as name and value.
    pub fn open(&mut self, name: &str, attributes: &[(&str, &str)], content: impl FnOnce(&mut Self)) {
        if self.text.len() > PIECE_BYTES {
            let piece = std::mem::replace(&mut self.text, String::with_capacity(PIECE_BYTES + PIECE_BYTES_MORE));
            self.before.push(piece);
        }
        self.text.push('<');
        self.text.push_str(name);
        for (attribute, value) in attributes {
            self.text.push(' ');
            self.text.push_str(attribute);
            self.text.push_str("=\"");
            self.escaped(value);
            self.text.push('"');
        }
        self.text.push('>');
        content(self);
        self.close(name);
    }

    /// An element that holds text alone.
    pub fn text(&mut self, name: &str, text: &str) {
        self.element(name, |xml| xml.escaped(text));
    }

    /// An element for a value that may be absent; nothing at all when it is.
    pub fn optional(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// An element for a number, `true` or `false`, or another plain value.
    pub fn value(&mut self, name: &str, value: impl std::fmt::Display) {
        self.text(name, &value.to_string());
    }

    pub fn finish(self) -> Document {
        let mut document = self.before;
        document.push(self.text);
        document
    }

    fn close(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
    }

    fn escaped(&mut self, text: &str) {
        if text.bytes().all(is_plain) {
            self.text.push_str(text);
            return;
        }
        for character in text.chars() {
            match character {
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '&' => self.text.push_str("&amp;"),
                '"' => self.text.push_str("&quot;"),
                '\r' => self.text.push_str("&#13;"),
                '\t' | '\n' => self.text.push(character),
                character if is_unspeakable(character) => {
                    write!(self.text, "&#x{:x};", u32::from(character)).expect("writing to a string cannot fail");
                }
                other => self.text.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{XmlWriter, can_carry};
    use crate::xml::{S3_NAMESPACE, parse};

    #[test]
    fn elements_come_in_the_order_of_the_calls() {
        let mut xml = XmlWriter::document();
        xml.root("Z", S3_NAMESPACE, |xml| {
            xml.text("B", "1");
            xml.optional("N", None);
            xml.value("A", 2);
            xml.open("G", &[("xsi:type", "\"")], |_| ());
        });
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Z xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><B>1</B><A>2</A><G xsi:type=\"&quot;\"></G></Z>";
        assert_eq!(xml.finish().to_text(), expected);
    }

    #[test]
    fn a_long_document_is_made_in_pieces() {
        let mut xml = XmlWriter::document();
        xml.element("List", |xml| (0..20_000).for_each(|number| xml.value("Number", number)));
        let mut document = xml.finish();
        let (whole, length) = (document.to_text(), document.len());
        assert!(whole.ends_with("<Number>19999</Number></List>") && whole.len() == length);
        let pieces: Vec<_> = std::iter::from_fn(|| document.take(usize::MAX)).collect();
        assert!(pieces.iter().all(|piece| piece.len() < 33 << 10) && pieces.len() == length.div_ceil(32 << 10));
        assert_eq!(pieces.concat(), whole.as_bytes());
    }

    fn key(text: &str) -> String {
        let mut xml = XmlWriter::document();
        xml.text("Key", text);
        xml.finish().to_text()
    }

    #[test]
    fn what_xml_cannot_carry_becomes_a_reference() {
        let expected = "<Key>a&#x1;b&#x0;&#x1f;&#xfffe;&#xffff;\t\n&#13;\u{fffd}</Key>";
        let document = key("a\u{1}b\0\u{1f}\u{fffe}\u{ffff}\t\n\r\u{fffd}");
        assert!(document.ends_with(expected), "{document}");
        assert!(can_carry("a\t\r\n é\u{fffd}\u{7f}") && !can_carry("a\u{1}") && !can_carry("\u{ffff}") && !can_carry("\0"));
    }

    proptest! {
        #[test]
        fn every_text_survives_a_tolerant_parser(text in any::<String>()) {
            // Our parser takes every reference but that to NUL, which no parser takes.
            let text = text.replace('\0', "");
            let document = key(&text);
            let read = parse(document.as_bytes(), document.len()).expect("well formed");
            assert_eq!(read.text, text);
        }
    }
}
