//! PutObject: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html>

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_model::digest::{ChecksumAlgorithm, Expected, ExpectedChecksum};
use garage_model::error::SourceError;
use garage_model::pipeline::Source;
use garage_model::put::{PUT_SIZE_MAX, Preconditions, PutObject as Put, Written};
use garage_types::ObjectKey;

use crate::conditions::Condition;
use crate::error::{Code, S3Error, SourceFailure};
use crate::headers::{AnnouncedChecksum, announced_checksum, check_value, content_md5, header, to_keep};
use crate::ops::get_object::checksum_type;
use crate::ops::uploads::preconditions;
use crate::ops::{Access, BucketCtx, Operation, object_key};
use crate::reply::Reply;

/// The checksum AWS keeps of objects whose writer named none.
const DEFAULT_CHECKSUM: ChecksumAlgorithm = ChecksumAlgorithm::Crc64Nvme;

pub struct PutObject {
    key: ObjectKey,
    headers: BTreeMap<String, String>,
    preconditions: Preconditions,
    body: BodyFacts,
}

/// What the head says of the body.
#[derive(Clone, Debug)]
pub struct BodyFacts {
    pub md5: Option<[u8; 16]>,
    pub checksum: Option<AnnouncedChecksum>,
}

impl BodyFacts {
    /// # Errors
    /// 400 for malformed digests, 411 for a body of unknown length.
    pub fn parse(head: &RequestHead) -> Result<Self, S3Error> {
        let length = match header(head, "x-amz-decoded-content-length")? {
            Some(length) => Some(length),
            None => header(head, "content-length")?,
        };
        let length = length.ok_or_else(|| S3Error::from(Code::MissingContentLength))?;
        let length: u64 =
            length.parse().map_err(|_malformed| S3Error::new(Code::InvalidRequest, "The length of the body is not a number."))?;
        if length > PUT_SIZE_MAX {
            return Err(S3Error::from(Code::EntityTooLarge)
                .with("ProposedSize", &length.to_string())
                .with("MaxSizeAllowed", &PUT_SIZE_MAX.to_string()));
        }
        Ok(BodyFacts { md5: content_md5(head)?, checksum: announced_checksum(head)? })
    }

    pub fn algorithm(&self) -> ChecksumAlgorithm {
        self.checksum.as_ref().map_or(DEFAULT_CHECKSUM, AnnouncedChecksum::algorithm)
    }
}

/// A request's body as the write pipeline reads it.
pub struct PayloadSource {
    payload: Payload,
    facts: BodyFacts,
}

impl PayloadSource {
    pub fn new(payload: Payload, facts: BodyFacts) -> Self {
        PayloadSource { payload, facts }
    }
}

impl Source for PayloadSource {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>> {
        async move {
            let next = self.payload.next().await?;
            Some(next.map_err(|error| SourceError::from(SourceFailure(S3Error::from(error)))))
        }
        .boxed()
    }

    fn announced(&self) -> Option<u64> {
        self.payload.decoded_length()
    }

    fn expected(&mut self) -> Result<Expected, SourceError> {
        let checksum = match &self.facts.checksum {
            Some(AnnouncedChecksum::Value(algorithm, value)) => {
                Some(ExpectedChecksum { algorithm: *algorithm, value: value.clone() })
            }
            Some(AnnouncedChecksum::Trailer(algorithm)) => {
                let trailers = self.payload.trailers().iter();
                let value =
                    trailers.filter(|trailer| trailer.name == algorithm.header()).map(|trailer| trailer.value.clone()).next();
                let missing = || S3Error::new(Code::InvalidRequest, format!("The trailer {} is missing.", algorithm.header()));
                let value = value.ok_or_else(missing).map_err(SourceFailure)?;
                check_value(*algorithm, &value).map_err(SourceFailure)?;
                Some(ExpectedChecksum { algorithm: *algorithm, value })
            }
            Some(AnnouncedChecksum::Algorithm(_)) | None => None,
        };
        // The length was held against the head by the payload itself.
        Ok(Expected { length: None, md5: self.facts.md5, checksum })
    }
}

impl Operation for PutObject {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let preconditions = preconditions(head)?;
        Ok(PutObject { key: object_key(key)?, headers: to_keep(head)?, preconditions, body: BodyFacts::parse(head)? })
    }

    async fn run(self, ctx: &BucketCtx, body: Payload) -> Result<Reply, S3Error> {
        let put = Put {
            bucket: ctx.bucket.id,
            key: self.key,
            headers: self.headers,
            checksum: self.body.algorithm(),
            owner: Some(ctx.caller.key.id.clone()),
            preconditions: self.preconditions,
        };
        let failed = Condition::failed_of(&put.preconditions);
        let written = ctx.garage().put_object(put, Box::new(PayloadSource::new(body, self.body))).await;
        let written = written.map_err(|error| S3Error::of_write(error, failed))?;
        written_reply(&written)
    }
}

/// The reply to a write of a whole object.
fn written_reply(written: &Written) -> Result<Reply, S3Error> {
    let mut reply = Reply::ok().header("etag", &format!("\"{}\"", written.etag))?;
    if let Some(checksum) = &written.checksum {
        reply = reply
            .header(checksum.algorithm.header(), &checksum.value)?
            .header("x-amz-checksum-type", checksum_type(checksum.kind))?;
    }
    Ok(reply)
}
