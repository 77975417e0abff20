//! Operations on what is stored in a bucket: one key looked at closely, uploads that nobody will finish.

use garage_model::inspect::{Inspected, InspectedBlock};
use garage_model::object::Content;
use garage_types::{BlockHash, BucketId, ObjectKey};
use serde::{Deserialize, Serialize};

use crate::date::Date;
use crate::error::AdminError;
use crate::operations::{AdminService, Operation};

/// Everything stored under one key: every version with its blocks, and open uploads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InspectObject {
    pub bucket_id: BucketId,
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedObject {
    pub bucket_id: BucketId,
    pub key: String,
    pub versions: Vec<ObjectVersion>,
}

/// A version, a deletion, or an upload that is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectVersion {
    /// Of the version, or of the upload.
    pub uuid: String,
    pub timestamp: Date,
    pub encrypted: bool,
    pub uploading: bool,
    pub aborted: bool,
    pub delete_marker: bool,
    pub inline: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub etag: Option<String>,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub blocks: Vec<ObjectBlock>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectBlock {
    pub part_number: u32,
    /// Of the first byte within the part.
    pub offset: u64,
    pub hash: BlockHash,
    pub size: u64,
}

impl From<InspectedBlock> for ObjectBlock {
    fn from(InspectedBlock { part, offset, hash, size }: InspectedBlock) -> Self {
        ObjectBlock { part_number: part, offset, hash, size }
    }
}

impl From<Inspected> for ObjectVersion {
    fn from(inspected: Inspected) -> Self {
        let plain = |uuid: String, timestamp| ObjectVersion {
            uuid,
            timestamp: Date(timestamp),
            encrypted: false,
            uploading: false,
            aborted: false,
            delete_marker: false,
            inline: false,
            size: None,
            etag: None,
            headers: Vec::new(),
            blocks: Vec::new(),
        };
        match inspected {
            Inspected::Deleted { version, timestamp } => {
                ObjectVersion { delete_marker: true, ..plain(version.to_string(), timestamp) }
            }
            Inspected::Object { version, timestamp, meta, blocks } => ObjectVersion {
                inline: matches!(meta.content, Content::Inline(_)),
                size: Some(meta.size),
                etag: Some(meta.etag),
                headers: meta.headers.into_iter().collect(),
                blocks: blocks.into_iter().map(ObjectBlock::from).collect(),
                ..plain(version.to_string(), timestamp)
            },
            Inspected::Upload { id, started, upload, size, blocks } => ObjectVersion {
                uploading: true,
                size: Some(size),
                headers: upload.headers.into_iter().collect(),
                blocks: blocks.into_iter().map(ObjectBlock::from).collect(),
                ..plain(id.to_string(), started)
            },
        }
    }
}

impl Operation for InspectObject {
    const ENDPOINT: &'static str = "admin.InspectObject/1";
    type Reply = InspectedObject;

    async fn run(self, service: &AdminService) -> Result<InspectedObject, AdminError> {
        service.garage.bucket(self.bucket_id).await?;
        let key = ObjectKey::parse(self.key.clone())?;
        let found = service.garage.inspect(self.bucket_id, &key).await?;
        let versions = found.into_iter().map(ObjectVersion::from).collect();
        Ok(InspectedObject { bucket_id: self.bucket_id, key: self.key, versions })
    }
}

/// Gives up the multipart uploads of a bucket that began long ago.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CleanupIncompleteUploads {
    pub bucket_id: BucketId,
    pub older_than_secs: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadsCleanedUp {
    pub uploads_deleted: u64,
}

impl Operation for CleanupIncompleteUploads {
    const ENDPOINT: &'static str = "admin.CleanupIncompleteUploads/1";
    type Reply = UploadsCleanedUp;

    async fn run(self, service: &AdminService) -> Result<UploadsCleanedUp, AdminError> {
        service.garage.bucket(self.bucket_id).await?;
        let begun_until = service.garage.clock().now().minus_millis(self.older_than_secs.saturating_mul(1000));
        let uploads_deleted = service.garage.abort_uploads_begun_until(self.bucket_id, begun_until).await?;
        Ok(UploadsCleanedUp { uploads_deleted })
    }
}
