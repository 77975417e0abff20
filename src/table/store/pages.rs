//! One page of a range, and where it ends at the latest.

use std::ops::{Bound, ControlFlow};

use garage_db::{Direction, Snapshot};

use crate::epochs::{FloorTree, Slot};
use crate::error::TableError;
use crate::rows::RowTree;
use crate::schema::{Rules, local_key};
use crate::wire::{Order, Page, Range, RangeRow};

/// The most rows one range request returns, whatever it asks for.
pub const RANGE_ROWS_MAX: usize = 4096;
/// Bytes of rows after which a range reply is cut.
const RANGE_BYTES_MAX: usize = 4 << 20;

/// A range of at most this limit may turn out to be so few rows that they are read at once.
pub(super) const BRIEF_LIMIT_MAX: u32 = 128;
/// What is read at once of a range; when there is more, all of it is read off the async threads.
pub(super) const BRIEF: PageBounds = PageBounds { rows: 16, bytes: 64 << 10 };
pub(super) const FULL: PageBounds = PageBounds { rows: RANGE_ROWS_MAX, bytes: RANGE_BYTES_MAX };

/// Where a page ends at the latest.
#[derive(Clone, Copy)]
pub(super) struct PageBounds {
    rows: usize,
    /// Of the rows as they are returned.
    bytes: usize,
}

/// Reads rows of a range until it ends, or the page is full.
///
/// # Errors
/// [`TableError`].
pub(super) fn read_page(
    tx: &Snapshot<'_>,
    (rows, floors): (&RowTree, &FloorTree),
    rules: &dyn Rules,
    range: &Range,
    page_bounds: PageBounds,
) -> Result<Page, TableError> {
    let from = local_key(&range.placement, &range.from);
    let to = match &range.to {
        Some(to) => Some(local_key(&range.placement, to)),
        None => garage_types::sort_key::after_prefix(range.placement.as_bytes()),
    };
    let bounds = (Bound::Included(from.as_slice()), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
    let direction = match range.order {
        Order::Forward => Direction::Forward,
        Order::Backward => Direction::Backward,
    };
    let limit = (range.limit as usize).min(page_bounds.rows);
    let floor = floors.get(tx, range.table, Slot::of(&range.placement))?;
    let mut page = Page { rows: Vec::new(), truncated: false, floor };
    let (mut bytes, mut failed) = (0, None);
    rows.range(tx, bounds, direction, &mut |key, value| {
        if page.rows.len() >= limit || bytes >= page_bounds.bytes {
            page.truncated = true;
            return ControlFlow::Break(());
        }
        match rules.project(value, range.projection) {
            Ok(row) => {
                bytes += key.len() + row.len();
                page.rows.push(RangeRow { sort_key: key[32..].to_vec().into(), row: row.into() });
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(page), Err)
}
