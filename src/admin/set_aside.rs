//! Operations on rows that nodes have set aside. Node-local, as those on blocks are.

use std::time::Duration;

use garage_model::set_aside::{Described, MERGED_MAX, MergedBack, describe};
use garage_table::set_aside::{Reason, SetAside};
use serde::{Deserialize, Serialize};

use crate::date::Date;
use crate::error::AdminError;
use crate::nodes::{Multi, ask_each};
use crate::operations::{AdminService, Operation, Visitor};

/// Rows listed by one call, at most.
pub const LISTED_MAX: usize = 1000;
/// Rows read at once.
const PAGE: usize = 500;
/// Each row that is brought back takes a few round trips.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Why a row was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SetAsideReason {
    /// The node handed it over when it left; the owners had collected deletions meanwhile.
    Left,
    /// The node had it from an earlier time as an owner; the others had collected deletions meanwhile.
    Returned,
    /// It was in an old database that was rebuilt from the other owners, who do not have it, or have another.
    Restored,
    /// It did not match its checksum, nobody else had it, and it was given up.
    Damaged,
    Unknown,
}

/// A row that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideRow {
    /// 16 hexadecimal digits by which it is named.
    pub id: String,
    pub table: String,
    /// Of which bucket, key or block it is.
    pub subject: String,
    pub reason: SetAsideReason,
    /// `None` when it is not known.
    pub set_aside_at: Option<Date>,
}

/// One of them, with all it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideContent {
    #[serde(flatten)]
    pub row: SetAsideRow,
    /// For people, over several lines.
    pub content: String,
}

/// The oldest rows that were set aside, at most [`LISTED_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideList {
    pub rows: Vec<SetAsideRow>,
    /// With those that are not listed.
    pub total: u64,
}

/// The rows that an operator means: exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WhichSetAside {
    #[serde(default)]
    pub all: bool,
    /// Ids, or their beginnings.
    #[serde(default)]
    pub ids: Vec<String>,
}

impl WhichSetAside {
    fn check(&self) -> Result<(), AdminError> {
        if self.all == self.ids.is_empty() { Ok(()) } else { Err(AdminError::ExactlyOneOf("all, ids")) }
    }
}

/// What became of rows that were to be brought back, or let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAsideSettled {
    /// They are at their owners now.
    pub merged: u64,
    /// The owners know all they say, or have something that supersedes them for certain: they are gone.
    pub superseded: u64,
    /// They are damaged, or what they need, or what would use them, is not there: they stay set aside.
    #[serde(default)]
    pub unused: u64,
    /// Of the unused, those that do not match their checksums: their bytes cannot be trusted, so they are never brought back.
    #[serde(default)]
    pub damaged: u64,
    /// They are gone.
    pub discarded: u64,
    /// Set aside still, those unused included.
    pub left: u64,
}

fn shown(service: &AdminService, aside: &SetAside) -> (SetAsideRow, String) {
    let tables = &service.garage.local().tables;
    let Described { subject, content } = match aside.reason {
        Reason::Damaged => Described {
            subject: tables.name_of_row(aside.table, &aside.key),
            content: format!("The bytes in its place, which do not match their checksum:\n{}", aside.row.escape_ascii()),
        },
        _ => describe(aside).unwrap_or_else(|error| Described {
            subject: "cannot be read".to_owned(),
            content: crate::error::with_causes(&AdminError::from(error)),
        }),
    };
    let table = tables.name_of(aside.table).map_or_else(|| aside.table.0.to_string(), str::to_owned);
    let row = SetAsideRow {
        id: aside.id(),
        table,
        subject,
        reason: match aside.reason {
            Reason::Left => SetAsideReason::Left,
            Reason::Returned => SetAsideReason::Returned,
            Reason::Restored => SetAsideReason::Restored,
            Reason::Damaged => SetAsideReason::Damaged,
            Reason::Unknown => SetAsideReason::Unknown,
        },
        set_aside_at: (aside.at.as_millis() > 0).then_some(Date(aside.at)),
    };
    (row, content)
}

/// The rows meant, at most `limit`.
async fn find(service: &AdminService, which: &WhichSetAside, limit: usize) -> Result<Vec<SetAside>, AdminError> {
    which.check()?;
    let tables = &service.garage.local().tables;
    let is_meant = |aside: &SetAside| which.all || which.ids.iter().any(|id| aside.id().starts_with(id.as_str()));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = tables.set_aside_page(after, PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(SetAside::position);
        found.extend(page.into_iter().filter(is_meant));
        if is_last || found.len() >= limit {
            break;
        }
    }
    found.truncate(limit);
    let matching = |id: &String| found.iter().filter(|aside| aside.id().starts_with(id.as_str())).count();
    match which.ids.iter().find(|id| matching(id) != 1) {
        Some(id) => Err(AdminError::NoSuchSetAside { id: id.clone(), found: matching(id) }),
        None => Ok(found),
    }
}

/// What nodes have set aside. `node`: see [`crate::nodes`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListSetAsideRows {
    pub node: String,
}

impl Operation for ListSetAsideRows {
    const ENDPOINT: &'static str = "admin.ListSetAsideRows/1";
    type Reply = Multi<SetAsideList>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        ask_each(service, &self.node, OwnSetAside).await
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnSetAside;

impl Operation for OwnSetAside {
    const ENDPOINT: &'static str = "admin.node.OwnSetAside/1";
    type Reply = SetAsideList;

    async fn run(self, service: &AdminService) -> Result<SetAsideList, AdminError> {
        let tables = &service.garage.local().tables;
        let rows = tables.set_aside_page(None, LISTED_MAX).await?;
        Ok(SetAsideList {
            rows: rows.iter().map(|aside| shown(service, aside).0).collect(),
            total: tables.set_aside_count().await?,
        })
    }
}

/// One row, with all it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetSetAsideRow {
    pub node: String,
    /// Or its beginning.
    pub id: String,
}

impl Operation for GetSetAsideRow {
    const ENDPOINT: &'static str = "admin.GetSetAsideRow/1";
    type Reply = Multi<SetAsideContent>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        ask_each(service, &self.node, OwnSetAsideRow { id: self.id }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnSetAsideRow {
    id: String,
}

impl Operation for OwnSetAsideRow {
    const ENDPOINT: &'static str = "admin.node.OwnSetAsideRow/1";
    type Reply = SetAsideContent;

    async fn run(self, service: &AdminService) -> Result<SetAsideContent, AdminError> {
        let which = WhichSetAside { all: false, ids: vec![self.id.clone()] };
        let found = find(service, &which, usize::MAX).await?;
        let aside = found.first().ok_or(AdminError::NoSuchSetAside { id: self.id, found: 0 })?;
        let (row, content) = shown(service, aside);
        Ok(SetAsideContent { row, content })
    }
}

/// Offers rows to their owners again, as writes of now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSetAsideRows {
    pub node: String,
    pub which: WhichSetAside,
}

impl Operation for MergeSetAsideRows {
    const ENDPOINT: &'static str = "admin.MergeSetAsideRows/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = Multi<SetAsideSettled>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        self.which.check()?;
        ask_each(service, &self.node, OwnMerge { which: self.which }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnMerge {
    which: WhichSetAside,
}

impl Operation for OwnMerge {
    const ENDPOINT: &'static str = "admin.node.OwnMergeSetAside/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = SetAsideSettled;

    async fn run(self, service: &AdminService) -> Result<SetAsideSettled, AdminError> {
        if service.layout().standing().is_rebuilding() {
            // What is superseded is let go, and may be all there is, as for a discard.
            return Err(AdminError::StillRebuilding);
        }
        let rows = find(service, &self.which, MERGED_MAX).await?;
        let done = service.garage.merge_set_aside(rows).await?;
        tracing::warn!(?done, "the operator brought rows back that were set aside");
        let left = service.garage.local().tables.set_aside_count().await?;
        let MergedBack { merged, superseded, unused, damaged } = done;
        Ok(SetAsideSettled { merged, superseded, unused, damaged, discarded: 0, left })
    }
}

/// Lets rows go for good.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscardSetAsideRows {
    pub node: String,
    pub which: WhichSetAside,
}

impl Operation for DiscardSetAsideRows {
    const ENDPOINT: &'static str = "admin.DiscardSetAsideRows/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = Multi<SetAsideSettled>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        self.which.check()?;
        ask_each(service, &self.node, OwnDiscard { which: self.which }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnDiscard {
    which: WhichSetAside,
}

impl Operation for OwnDiscard {
    const ENDPOINT: &'static str = "admin.node.OwnDiscardSetAside/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = SetAsideSettled;

    async fn run(self, service: &AdminService) -> Result<SetAsideSettled, AdminError> {
        if service.layout().standing().is_rebuilding() {
            // They are all there is, should this database have to be accepted.
            return Err(AdminError::StillRebuilding);
        }
        let tables = &service.garage.local().tables;
        let mut discarded = 0;
        loop {
            let rows = find(service, &self.which, MERGED_MAX).await?;
            if rows.is_empty() {
                break;
            }
            discarded += rows.len() as u64;
            tables.forget_set_aside(rows.iter().map(SetAside::position).collect()).await?;
            if !self.which.all {
                break;
            }
        }
        tracing::warn!(discarded, "the operator discarded rows that were set aside");
        Ok(SetAsideSettled { discarded, left: tables.set_aside_count().await?, ..SetAsideSettled::default() })
    }
}

/// What nodes ask each other, to be served beside the operations.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnSetAside>();
    visitor.visit::<OwnSetAsideRow>();
    visitor.visit::<OwnMerge>();
    visitor.visit::<OwnDiscard>();
}

#[cfg(test)]
mod tests {
    use super::WhichSetAside;

    #[test]
    fn either_all_rows_or_some_are_meant() {
        let which = |all, ids: &[&str]| WhichSetAside { all, ids: ids.iter().map(|id| (*id).to_owned()).collect() };
        assert!(which(true, &[]).check().is_ok() && which(false, &["ab"]).check().is_ok());
        assert!(which(true, &["ab"]).check().is_err() && which(false, &[]).check().is_err());
    }
}
