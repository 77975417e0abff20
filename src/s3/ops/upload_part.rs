//! UploadPart: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPart.html>

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_model::multipart::PutPart;
use garage_types::{ObjectKey, UploadId};

use crate::error::S3Error;
use crate::headers::AnnouncedChecksum;
use crate::ops::put_object::{BodyFacts, PayloadSource};
use crate::ops::{Access, BucketCtx, Operation, object_key, uploads};
use crate::reply::Reply;

pub struct UploadPart {
    key: ObjectKey,
    id: UploadId,
    number: u32,
    body: BodyFacts,
}

impl Operation for UploadPart {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let (number, id) = (uploads::part_number(head)?, uploads::upload_id(head)?);
        Ok(UploadPart { key: object_key(key)?, id, number, body: BodyFacts::parse(head)? })
    }

    async fn run(self, ctx: &BucketCtx, body: Payload) -> Result<Reply, S3Error> {
        let checksum = self.body.checksum.as_ref().map(AnnouncedChecksum::algorithm);
        let put = PutPart { upload: uploads::name(ctx, self.key, self.id), number: self.number, checksum };
        let written = ctx.garage().upload_part(put, Box::new(PayloadSource::new(body, self.body))).await?;
        Reply::ok()
            .header("etag", &format!("\"{}\"", written.etag))?
            .header(written.checksum.algorithm.header(), &written.checksum.value)
    }
}
