//! Reading the documents clients send, into a tree of names and texts.
//!
//! Invariants: memory is bounded by the size of the document times a constant; nothing is fetched or expanded (a DOCTYPE is
//! refused, and with it every entity of its own); namespaces, attributes, comments and processing instructions are ignored.

use hyper::StatusCode;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use crate::error::ErrorReply;

const DEPTH_MAX: usize = 32;
/// Room for 10 000 parts with all their checksums; without it, four bytes of document could cost a hundred of memory.
const ELEMENTS_MAX: usize = 120_000;

/// Why a document was refused. To a client all but the first are `MalformedXML`.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    #[error("the document has {length} bytes, more than {length_max}")]
    TooLarge { length: usize, length_max: usize },
    #[error("the document is not UTF-8")]
    NotUtf8,
    #[error("the document is not well formed")]
    Syntax(#[source] quick_xml::Error),
    #[error("elements are nested more than {DEPTH_MAX} deep")]
    TooDeep,
    #[error("the document has more than {ELEMENTS_MAX} elements")]
    TooManyElements,
    #[error("a document type is declared")]
    DocumentType,
    #[error("the entity &{name}; is not one of XML's own")]
    UnknownEntity { name: String },
    #[error("the document has no root element, or text or elements beside it")]
    Root,
}

impl From<XmlError> for ErrorReply {
    fn from(error: XmlError) -> Self {
        match error {
            XmlError::TooLarge { .. } => {
                ErrorReply::new(StatusCode::BAD_REQUEST, "MaxMessageLengthExceeded", "Your request was too large.")
            }
            XmlError::NotUtf8
            | XmlError::Syntax(_)
            | XmlError::TooDeep
            | XmlError::TooManyElements
            | XmlError::DocumentType
            | XmlError::UnknownEntity { .. }
            | XmlError::Root => ErrorReply::new(
                StatusCode::BAD_REQUEST,
                "MalformedXML",
                format!("The XML you provided was not well-formed or did not validate against our published schema: {error}."),
            ),
        }
    }
}

/// One element, without its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Without namespace prefix.
    pub name: String,
    /// All text directly inside, entities resolved. White space is kept: it may belong to a key.
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name, in their order.
    pub fn all<'e>(&'e self, name: &'e str) -> impl Iterator<Item = &'e Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of this name.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// Reads one document of at most `length_max` bytes; returns its root.
///
/// # Errors
/// [`XmlError`].
pub fn parse(document: &[u8], length_max: usize) -> Result<Element, XmlError> {
    if document.len() > length_max {
        return Err(XmlError::TooLarge { length: document.len(), length_max });
    }
    let text = std::str::from_utf8(document).map_err(|_invalid| XmlError::NotUtf8)?;
    let mut reader = Reader::from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut tree = Tree::default();
    loop {
        match reader.read_event().map_err(XmlError::Syntax)? {
            Event::Start(start) => tree.open(&start)?,
            Event::Empty(start) => {
                tree.open(&start)?;
                tree.close()?;
            }
            // That it matches the start is checked by the reader.
            Event::End(_) => tree.close()?,
            Event::Text(text) => tree.text(&text.xml10_content())?,
            Event::CData(text) => tree.text(&text.xml10_content())?,
            Event::GeneralRef(reference) => tree.text(&resolve(&reference)?)?,
            Event::DocType(_) => return Err(XmlError::DocumentType),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => (),
            Event::Eof => return tree.finish(),
        }
    }
}

/// The text of a character reference or of one of the five entities XML itself has.
fn resolve(reference: &BytesRef<'_>) -> Result<String, XmlError> {
    if let Some(character) = reference.resolve_char_ref().map_err(XmlError::Syntax)? {
        return Ok(character.to_string());
    }
    let name = reference.xml10_content();
    match quick_xml::escape::resolve_xml_entity(&name) {
        Some(text) => Ok(text.to_owned()),
        None => Err(XmlError::UnknownEntity { name: name.into_owned() }),
    }
}

/// The elements still open, outermost first, and the root once it is closed.
#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

impl Tree {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), XmlError> {
        if self.root.is_some() {
            return Err(XmlError::Root);
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(XmlError::TooDeep);
        }
        self.elements += 1;
        if self.elements > ELEMENTS_MAX {
            return Err(XmlError::TooManyElements);
        }
        let name = start.local_name();
        let name: &str = name.as_ref();
        self.open.push(Element { name: name.to_owned(), ..Element::default() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), XmlError> {
        let element = self.open.pop().ok_or(XmlError::Root)?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.chars().all(char::is_whitespace) => (),
            None => return Err(XmlError::Root),
        }
        Ok(())
    }

    fn finish(self) -> Result<Element, XmlError> {
        match self.root {
            Some(root) if self.open.is_empty() => Ok(root),
            _ => Err(XmlError::Root),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};

    use super::{XmlError, parse};

    fn read(text: &str) -> Result<super::Element, XmlError> {
        parse(text.as_bytes(), 1 << 20)
    }

    #[test]
    fn a_document_becomes_a_tree_of_local_names() {
        let text = "\u{feff}<?xml version=\"1.0\"?><!-- c -->\n<s:Delete xmlns:s='urn:x' a='1'><Object><Key> a &amp;&#x41;<![CDATA[<]]> </Key></Object><Quiet/>\n<Object><Key>b</Key></Object></s:Delete>\n";
        let root = read(text).expect("well formed");
        assert_eq!(root.name, "Delete");
        let keys: Vec<_> = root.all("Object").filter_map(|object| object.child_text("Key")).collect();
        assert_eq!(keys, [" a &A< ", "b"]);
        assert!(root.child("Quiet").is_some());
    }

    #[test]
    fn a_document_type_is_refused() {
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbb\">]><a>&b;</a>";
        assert!(matches!(read(bomb), Err(XmlError::DocumentType)));
        assert!(matches!(read("<a>&b;</a>"), Err(XmlError::UnknownEntity { .. })));
    }

    #[test]
    fn what_is_not_one_well_formed_root_is_refused() {
        let broken = [
            "",
            "  ",
            "text",
            "<a>",
            "<a></b>",
            "</a>",
            "<a/><b/>",
            "<a/>text",
            "text<a/>",
            "<a",
            "<a>&</a>",
            "<a>&#xD800;</a>",
            "<a>&#0;</a>",
            "<a><b></a></b>",
        ];
        for text in broken {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(matches!(parse(b"<a>\xff</a>", 100), Err(XmlError::NotUtf8)));
    }

    #[test]
    fn size_and_depth_are_bounded() {
        assert!(matches!(parse(b"<a></a>", 6), Err(XmlError::TooLarge { length: 7, length_max: 6 })));
        let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(read(&nested(32)).is_ok());
        assert!(matches!(read(&nested(33)), Err(XmlError::TooDeep)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), text in "[<>&;/!\\[\\]a-c#x0-9\"= ?-]{0,80}") {
            drop((parse(&bytes, 1000), parse(text.as_bytes(), 1000)));
        }
    }
}
