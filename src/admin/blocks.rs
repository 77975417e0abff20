//! Operations on single blocks of nodes: those that failed, who refers to one, trying again, and giving up what is lost.

use garage_model::block_info::{BlockInfo as Known, BlockReference};
use garage_model::in_use::VersionUse;
use garage_model::upload::UploadState;
use garage_types::{BlockHash, BucketId, UploadId};
use serde::{Deserialize, Serialize};

use crate::error::AdminError;
use crate::nodes::{Multi, ask_each};
use crate::operations::{AdminService, Operation, Visitor};

/// Fewest digits of a block's name that are searched for.
const PREFIX_MIN: usize = 4;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListBlockErrors {
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockError {
    pub block_hash: String,
    pub refcount: u64,
    pub error_count: u64,
    pub last_try_secs_ago: u64,
    /// Zero when it is due.
    pub next_try_in_secs: u64,
    /// What went wrong, for people.
    #[serde(default)]
    pub last_error: String,
}

impl Operation for ListBlockErrors {
    const ENDPOINT: &'static str = "admin.ListBlockErrors/1";
    type Reply = Multi<Vec<BlockError>>;

    async fn run(self, service: &AdminService) -> Result<Multi<Vec<BlockError>>, AdminError> {
        ask_each(service, &self.node, OwnBlockErrors).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnBlockErrors;

impl Operation for OwnBlockErrors {
    const ENDPOINT: &'static str = "admin.node.OwnBlockErrors/1";
    type Reply = Vec<BlockError>;

    async fn run(self, service: &AdminService) -> Result<Vec<BlockError>, AdminError> {
        let now = service.garage.clock().now().as_secs();
        let failed = service.garage.failed_blocks().await?;
        let shown = failed.into_iter().map(|failed| BlockError {
            block_hash: failed.block.to_string(),
            refcount: failed.references,
            error_count: u64::from(failed.failure.failures.count),
            last_try_secs_ago: now.saturating_sub(failed.failure.failures.last_try.as_secs()),
            next_try_in_secs: failed.failure.failures.next_try().as_secs().saturating_sub(now),
            last_error: failed.failure.message,
        });
        Ok(shown.collect())
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GetBlockInfo {
    pub node: String,
    /// All of it, or its first digits.
    pub block_hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockInfo {
    pub block_hash: String,
    pub refcount: u64,
    /// Whether the node has a file of it.
    #[serde(default)]
    pub present: bool,
    pub versions: Vec<BlockVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockVersion {
    pub version_id: String,
    pub ref_deleted: bool,
    pub version_deleted: bool,
    /// Nothing is known of the version any more.
    pub garbage_collected: bool,
    pub backlink: Option<BlockBacklink>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockBacklink {
    #[serde(rename_all = "camelCase")]
    Object { bucket_id: BucketId, key: String },
    #[serde(rename_all = "camelCase")]
    Upload {
        upload_id: UploadId,
        upload_deleted: bool,
        upload_garbage_collected: bool,
        bucket_id: Option<BucketId>,
        key: Option<String>,
    },
}

impl Operation for GetBlockInfo {
    const ENDPOINT: &'static str = "admin.GetBlockInfo/1";
    type Reply = Multi<BlockInfo>;

    async fn run(self, service: &AdminService) -> Result<Multi<BlockInfo>, AdminError> {
        ask_each(service, &self.node, OwnBlockInfo { pattern: self.block_hash }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnBlockInfo {
    pattern: String,
}

impl Operation for OwnBlockInfo {
    const ENDPOINT: &'static str = "admin.node.OwnBlockInfo/1";
    type Reply = BlockInfo;

    async fn run(self, service: &AdminService) -> Result<BlockInfo, AdminError> {
        let block = find(service, &self.pattern).await?;
        Ok(shown(service.garage.block_info(block).await?))
    }
}

fn shown(known: Known) -> BlockInfo {
    let version = |reference: BlockReference| BlockVersion {
        version_id: reference.version.to_string(),
        ref_deleted: reference.deleted,
        version_deleted: reference.version_deleted,
        garbage_collected: reference.backlink.is_none() && !reference.version_deleted,
        backlink: match (reference.used_by, reference.backlink) {
            (VersionUse::Upload(upload), _) => Some(BlockBacklink::Upload {
                upload_id: upload.id,
                upload_deleted: !matches!(upload.state, UploadState::Multipart(_) | UploadState::Simple(_)),
                upload_garbage_collected: false,
                bucket_id: Some(upload.bucket),
                key: Some(upload.key.to_string()),
            }),
            (VersionUse::Object(_) | VersionUse::None, Some(backlink)) => {
                Some(BlockBacklink::Object { bucket_id: backlink.bucket, key: backlink.key.to_string() })
            }
            (VersionUse::Object(_) | VersionUse::None, None) => None,
        },
    };
    BlockInfo {
        block_hash: known.block.to_string(),
        refcount: known.references_counted,
        present: known.is_here,
        versions: known.references.into_iter().map(version).collect(),
    }
}

/// The names between which all blocks lie that begin with `pattern`; `None` when it is too short or not hexadecimal.
fn bounds(pattern: &str) -> Option<[BlockHash; 2]> {
    let digits = pattern.to_ascii_lowercase();
    let usable = (PREFIX_MIN..=64).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let fill = |with: &str| format!("{digits}{}", with.repeat(64 - digits.len())).parse().ok();
    if usable { Some([fill("0")?, fill("f")?]) } else { None }
}

/// The one block on this node that begins with `pattern`.
async fn find(service: &AdminService, pattern: &str) -> Result<BlockHash, AdminError> {
    let [from, to] = bounds(pattern).ok_or_else(|| AdminError::BlockPattern { pattern: pattern.to_owned() })?;
    match service.garage.blocks_between(from, to, 2).await?.as_slice() {
        [block] => Ok(*block),
        [] => Err(AdminError::NoSuchBlock { pattern: pattern.to_owned() }),
        _several => Err(AdminError::BlockPattern { pattern: pattern.to_owned() }),
    }
}

/// Either all that failed, or these.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBlockResync {
    pub node: String,
    #[serde(default)]
    pub all: bool,
    #[serde(default)]
    pub block_hashes: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksQueued {
    pub count: u64,
}

impl Operation for RetryBlockResync {
    const ENDPOINT: &'static str = "admin.RetryBlockResync/1";
    type Reply = Multi<BlocksQueued>;

    async fn run(self, service: &AdminService) -> Result<Multi<BlocksQueued>, AdminError> {
        let blocks = match (self.all, self.block_hashes) {
            (true, None) => None,
            (false, Some(blocks)) => Some(blocks),
            (true, Some(_)) | (false, None) => return Err(AdminError::ExactlyOneOf("all and blockHashes")),
        };
        ask_each(service, &self.node, OwnRetry { blocks }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnRetry {
    blocks: Option<Vec<String>>,
}

impl Operation for OwnRetry {
    const ENDPOINT: &'static str = "admin.node.OwnRetry/1";
    type Reply = BlocksQueued;

    async fn run(self, service: &AdminService) -> Result<BlocksQueued, AdminError> {
        let blocks = match self.blocks {
            Some(names) => Some(parse(&names)?),
            None => None,
        };
        Ok(BlocksQueued { count: service.garage.retry_blocks(blocks).await? as u64 })
    }
}

fn parse(names: &[String]) -> Result<Vec<BlockHash>, AdminError> {
    let parse = |name: &String| name.parse().map_err(|_not_a_hash| AdminError::BlockPattern { pattern: name.clone() });
    names.iter().map(parse).collect()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PurgeBlocks {
    pub node: String,
    pub block_hashes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlocksPurged {
    pub blocks_purged: u64,
    pub block_refs_purged: u64,
    pub objects_deleted: u64,
    pub uploads_deleted: u64,
    pub versions_deleted: u64,
}

impl Operation for PurgeBlocks {
    const ENDPOINT: &'static str = "admin.PurgeBlocks/1";
    type Reply = Multi<BlocksPurged>;

    async fn run(self, service: &AdminService) -> Result<Multi<BlocksPurged>, AdminError> {
        parse(&self.block_hashes)?;
        ask_each(service, &self.node, OwnPurge { blocks: self.block_hashes }).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OwnPurge {
    blocks: Vec<String>,
}

impl Operation for OwnPurge {
    const ENDPOINT: &'static str = "admin.node.OwnPurge/1";
    type Reply = BlocksPurged;

    async fn run(self, service: &AdminService) -> Result<BlocksPurged, AdminError> {
        let purged = service.garage.purge_blocks(&parse(&self.blocks)?).await?;
        Ok(BlocksPurged {
            blocks_purged: purged.blocks,
            block_refs_purged: purged.references,
            objects_deleted: purged.objects,
            uploads_deleted: purged.uploads,
            versions_deleted: purged.versions,
        })
    }
}

/// What nodes ask each other.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnBlockErrors>();
    visitor.visit::<OwnBlockInfo>();
    visitor.visit::<OwnRetry>();
    visitor.visit::<OwnPurge>();
}

#[cfg(test)]
mod tests {
    use super::bounds;

    #[test]
    fn a_prefix_of_four_digits_or_more_names_a_range() {
        let [from, to] = bounds("AB12").unwrap();
        assert_eq!((from.to_string(), to.to_string()), (format!("ab12{}", "0".repeat(60)), format!("ab12{}", "f".repeat(60))));
        let whole = "cd".repeat(32);
        let [from, to] = bounds(&whole).unwrap();
        assert_eq!(from, to);
        for pattern in ["abc", "", "xyz1", &"a".repeat(65)] {
            assert!(bounds(pattern).is_none(), "{pattern}");
        }
    }
}
