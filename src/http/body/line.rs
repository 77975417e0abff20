//! One line of chunk framing, collected across packets.

use bytes::{Buf, Bytes};

/// A line that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct LineBuffer(Vec<u8>);

/// The line does not end within the bound.
#[derive(Debug)]
pub(super) struct LineTooLong;

impl LineBuffer {
    /// Whether no line has been begun.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes bytes from `input` up to and including the next line feed; returns the line with its ending, or `None` when
    /// the input is used up first.
    pub(super) fn take(&mut self, input: &mut Bytes, length_max: usize) -> Result<Option<Vec<u8>>, LineTooLong> {
        let end = input.iter().position(|byte| *byte == b'\n').map(|index| index + 1);
        let taken = end.unwrap_or(input.len());
        if self.0.len() + taken > length_max {
            return Err(LineTooLong);
        }
        self.0.extend_from_slice(&input[..taken]);
        input.advance(taken);
        Ok(end.map(|_| std::mem::take(&mut self.0)))
    }
}
