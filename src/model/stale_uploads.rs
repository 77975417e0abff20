//! Giving up multipart uploads that nobody will finish: on an operator's order, and with their bucket.

use garage_types::{BucketId, Timestamp};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::list_uploads::{ListedUpload, UploadItem, UploadsQuery, UploadsStart};
use crate::multipart::UploadName;

/// Uploads looked at together.
const PAGE: usize = 1000;

impl Garage {
    /// Gives up the multipart uploads of a bucket that began at `begun_until` or before, and says how many they were. Those that
    /// are being completed at this moment are left alone.
    ///
    /// # Errors
    /// [`ModelError`]; some of them may have been given up then.
    pub async fn abort_uploads_begun_until(&self, bucket: BucketId, begun_until: Timestamp) -> Result<u64, ModelError> {
        let mut aborted = 0;
        let mut start = UploadsStart::Beginning;
        loop {
            let (uploads, next) = self.uploads_page(bucket, start).await?;
            for upload in uploads.into_iter().filter(|upload| upload.started <= begun_until) {
                match self.abort_multipart(&UploadName { bucket, key: upload.key, id: upload.id }).await {
                    Ok(()) => aborted += 1,
                    Err(ModelError::NoSuchUpload | ModelError::UploadBusy | ModelError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            match next {
                Some(next) => start = next,
                None => return Ok(aborted),
            }
        }
    }

    /// Gives up every multipart upload of a bucket that takes no new ones.
    ///
    /// # Errors
    /// [`ModelError::UploadBusy`] while one of them is being completed.
    pub(crate) async fn abort_all_uploads(&self, bucket: BucketId) -> Result<(), ModelError> {
        loop {
            let (uploads, _next) = self.uploads_page(bucket, UploadsStart::Beginning).await?;
            if uploads.is_empty() {
                return Ok(());
            }
            for upload in uploads {
                match self.abort_multipart(&UploadName { bucket, key: upload.key, id: upload.id }).await {
                    Ok(()) | Err(ModelError::NoSuchUpload) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Open uploads, and where the next page begins.
    async fn uploads_page(
        &self,
        bucket: BucketId,
        start: UploadsStart,
    ) -> Result<(Vec<ListedUpload>, Option<UploadsStart>), ModelError> {
        let query = UploadsQuery { start, limit: PAGE, ..UploadsQuery::default() };
        let listing = self.list_uploads(bucket, &query).await?;
        let upload = |item| match item {
            UploadItem::Upload(upload) => Some(upload),
            UploadItem::CommonPrefix(_) => None,
        };
        let uploads: Vec<ListedUpload> = listing.items.into_iter().filter_map(upload).collect();
        let after = |upload: &ListedUpload| UploadsStart::AfterUpload { key: upload.key.as_str().to_owned(), id: upload.id };
        let next = if listing.truncated { uploads.last().map(after) } else { None };
        Ok((uploads, next))
    }
}
