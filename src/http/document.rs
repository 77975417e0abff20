//! A reply that is whole in memory, in pieces.
//!
//! A listing can have megabytes. In one text it would grow by doubling, each time with the old and the new one in memory, and keep all of
//! itself until its last byte has been taken; in pieces it is as large as it is, and becomes smaller as it is taken.

use std::collections::VecDeque;

use bytes::Bytes;

/// Bytes in their order. No piece is empty.
#[derive(Clone, Debug, Default)]
pub struct Document {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Document {
    pub fn push(&mut self, piece: impl Into<Bytes>) {
        let piece = piece.into();
        self.len += piece.len();
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// Takes the next bytes off the front, at most so many; `None` at the end.
    pub fn take(&mut self, bytes_max: usize) -> Option<Bytes> {
        let first = self.pieces.front_mut()?;
        let taken = if first.len() > bytes_max { first.split_to(bytes_max) } else { self.pieces.pop_front()? };
        self.len -= taken.len();
        Some(taken)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of the whole, where it is XML or another text; lossy where it is not.
    pub fn to_text(&self) -> String {
        let whole: Vec<u8> = self.pieces.iter().flatten().copied().collect();
        String::from_utf8_lossy(&whole).into_owned()
    }
}

impl<B: Into<Bytes>> From<B> for Document {
    fn from(bytes: B) -> Self {
        let mut document = Document::default();
        document.push(bytes);
        document
    }
}

#[cfg(test)]
mod tests {
    use super::Document;

    #[test]
    fn pieces_are_taken_in_their_order_and_cut_where_they_are_too_long() {
        let mut document = Document::from("abcde");
        document.push("");
        document.push("fg");
        assert_eq!((document.len(), document.to_text().as_str()), (7, "abcdefg"));
        let taken: Vec<_> = std::iter::from_fn(|| document.take(3)).collect();
        assert_eq!(taken, ["abc", "de", "fg"]);
        assert!(document.is_empty() && Document::from("").take(1).is_none());
    }
}
