//! From an HTTP request to an operation and back: authentication, the bucket, access, then the operation, then one place that
//! renders errors.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_http::body::{BodyLimits, Payload};
use garage_http::server::{Peer, RequestBody, Service};
use garage_http::sigv4::{self, PathEncoding, RegionPolicy, Rules, SigningKeys};
use garage_http::{ReplyBody, ReplyContext, RequestHead, RequestId, Target};
use garage_model::{Garage, ModelError};
use garage_types::{KeyId, ObjectKey};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::error::{Code, S3Error};
use crate::headers::{header, refuse_unimplemented};
use crate::ops::abort_multipart_upload::AbortMultipartUpload;
use crate::ops::complete_multipart_upload::CompleteMultipartUpload;
use crate::ops::copy_object::CopyObject;
use crate::ops::create_bucket;
use crate::ops::create_multipart_upload::CreateMultipartUpload;
use crate::ops::delete_bucket::DeleteBucket;
use crate::ops::delete_object::DeleteObject;
use crate::ops::delete_objects::DeleteObjects;
use crate::ops::get_bucket_location::GetBucketLocation;
use crate::ops::get_bucket_versioning::GetBucketVersioning;
use crate::ops::get_object::{GetObject, HeadObject};
use crate::ops::get_object_attributes::GetObjectAttributes;
use crate::ops::head_bucket::HeadBucket;
use crate::ops::list_buckets;
use crate::ops::list_multipart_uploads::ListMultipartUploads;
use crate::ops::list_object_versions::ListObjectVersions;
use crate::ops::list_objects::{ListObjects, ListObjectsV2};
use crate::ops::list_parts::ListParts;
use crate::ops::put_object::PutObject;
use crate::ops::upload_part::UploadPart;
use crate::ops::upload_part_copy::UploadPartCopy;
use crate::ops::{Access, BucketCtx, Caller, Operation, ReplySize};
use crate::reply::Reply;
use crate::route::{Route, route};

/// What the operator configured of the S3 frontend.
#[derive(Clone, Debug)]
pub struct S3Settings {
    pub region: String,
    pub region_policy: RegionPolicy,
    /// Host names below which `<bucket>.` selects a bucket.
    pub root_domains: Vec<String>,
}

/// The S3 frontend.
pub struct S3Service(Inner);

struct Inner {
    garage: Garage,
    settings: Arc<S3Settings>,
    rules: Rules,
    signing_keys: SigningKeys,
    /// Which node answers, for `<HostId>`.
    host_id: String,
}

impl S3Service {
    pub fn new(garage: Garage, settings: S3Settings) -> Self {
        let rules = Rules { region: settings.region_policy.clone(), service: "s3", path: PathEncoding::Once };
        let host_id = garage.cluster().node_id().short();
        S3Service(Inner { garage, settings: Arc::new(settings), rules, signing_keys: SigningKeys::default(), host_id })
    }

    async fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> Response<ReplyBody> {
        let request_id = request.extensions().get::<RequestId>().copied();
        let request_id = request_id.unwrap_or_else(|| RequestId::random(&**self.0.garage.random()));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = match self.answer(request).await {
            Ok(reply) => reply.into_response(),
            Err(error) => {
                tracing::debug!(%method, path, %peer, %request_id, code = error.code.as_str(), "S3 request refused");
                error.into_reply(&path).render(&ReplyContext { method: &method, request_id, host_id: &self.0.host_id })
            }
        };
        tracing::debug!(%method, path, %peer, %request_id, status = response.status().as_u16(), "S3 request");
        response
    }

    async fn answer(&self, request: Request<RequestBody>) -> Result<Reply, S3Error> {
        let (parts, body) = request.into_parts();
        let mut head = RequestHead::read(&parts)?;
        let target = head.target(&self.0.settings.root_domains)?;
        if head.method == Method::OPTIONS {
            return Err(Code::AccessForbidden.into());
        }
        let (caller, payload) = self.authenticate(&head).await.map_err(|error| self.with_region(error, &head))?;
        adopt_query_headers(&mut head)?;
        if header(&head, "x-amz-security-token")?.is_some() {
            return Err(Code::InvalidToken.into());
        }
        let payload = Payload::new(body, payload, &head, &BodyLimits::default())?;
        self.dispatch(&head, target, caller, payload).await.map_err(|error| self.with_region(error, &head))
    }

    /// HeadBucket tells the bucket's region even when it refuses, and a signature for another region is told the right one: clients
    /// find their way by it.
    fn with_region(&self, error: S3Error, head: &RequestHead) -> S3Error {
        let tells = match error.code {
            // Where the body that names the right region may not be sent, this is all a client has.
            Code::AuthorizationHeaderMalformed | Code::AuthorizationQueryParametersError => true,
            code => head.method == Method::HEAD && (code == Code::NoSuchBucket || code.status() == StatusCode::FORBIDDEN),
        };
        if tells { error.with_header("x-amz-bucket-region", &self.0.settings.region) } else { error }
    }

    async fn authenticate(&self, head: &RequestHead) -> Result<(Caller, sigv4::PayloadKind), S3Error> {
        let Some(claim) = sigv4::parse(head)? else { return Err(Code::AccessDenied.into()) };
        let unknown = || S3Error::from(Code::InvalidAccessKeyId).with("AWSAccessKeyId", &claim.key_id);
        let id = KeyId::parse(&claim.key_id).map_err(|_malformed| unknown())?;
        let key = match self.0.garage.key(&id).await {
            Ok(key) => key,
            Err(ModelError::NoSuchAccessKey(_)) => return Err(unknown()),
            Err(error) => return Err(error.into()),
        };
        let now = self.0.garage.clock().now();
        let signing_key = self.0.signing_keys.get(id.as_str(), &key.state.secret, &claim.scope);
        let authenticated = claim.verify(head, &signing_key, &self.0.rules, now)?;
        // Said only to who knows the secret.
        if key.state.is_expired(now) {
            return Err(S3Error::new(Code::AccessDenied, "This access key has expired."));
        }
        let caller = Caller { garage: self.0.garage.clone(), key, settings: self.0.settings.clone() };
        Ok((caller, authenticated.payload))
    }

    async fn dispatch(&self, head: &RequestHead, target: Target, caller: Caller, body: Payload) -> Result<Reply, S3Error> {
        let route = route(head, &target)?;
        let (bucket, key) = match target {
            Target::Service => {
                refuse_unimplemented(head)?;
                let _turn = caller.garage.page_turn().await?;
                return Box::pin(list_buckets::run(&caller, head)).await;
            }
            Target::Bucket { bucket } => (bucket, None),
            Target::Object { bucket, key } => (bucket, Some(ObjectKey::parse(key)?)),
        };
        if route == Route::CreateBucket {
            return Box::pin(create_bucket::run(&caller, head, &bucket, body)).await;
        }
        let found = Found { head, caller, bucket, key, body };
        match route {
            Route::ListBuckets | Route::CreateBucket => Err(Code::MethodNotAllowed.into()),
            Route::DeleteBucket => found.run::<DeleteBucket>().await,
            Route::HeadBucket => found.run::<HeadBucket>().await,
            Route::GetBucketLocation => found.run::<GetBucketLocation>().await,
            Route::GetBucketVersioning => found.run::<GetBucketVersioning>().await,
            Route::ListObjectVersions => found.run::<ListObjectVersions>().await,
            Route::ListObjects => found.run::<ListObjects>().await,
            Route::ListObjectsV2 => found.run::<ListObjectsV2>().await,
            Route::DeleteObjects => found.run::<DeleteObjects>().await,
            Route::GetObject => found.run::<GetObject>().await,
            Route::HeadObject => found.run::<HeadObject>().await,
            Route::PutObject => found.run::<PutObject>().await,
            Route::DeleteObject => found.run::<DeleteObject>().await,
            Route::AbortMultipartUpload => found.run::<AbortMultipartUpload>().await,
            Route::CompleteMultipartUpload => found.run::<CompleteMultipartUpload>().await,
            Route::CopyObject => found.run::<CopyObject>().await,
            Route::CreateMultipartUpload => found.run::<CreateMultipartUpload>().await,
            Route::GetObjectAttributes => found.run::<GetObjectAttributes>().await,
            Route::ListMultipartUploads => found.run::<ListMultipartUploads>().await,
            Route::ListParts => found.run::<ListParts>().await,
            Route::UploadPart => found.run::<UploadPart>().await,
            Route::UploadPartCopy => found.run::<UploadPartCopy>().await,
            Route::NoConfiguration(code) => {
                let ctx = found.admitted(Access::Owner).await?;
                refuse_unimplemented(head)?;
                Err(S3Error::from(code).with("BucketName", &ctx.bucket_name))
            }
        }
    }
}

/// Parameters of the signature itself, in a presigned URL.
const SIGNATURE_PARAMETERS: [&str; 7] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-content-sha256",
];

/// SDKs move headers into the query of a presigned URL, where the signature covers them too: they mean the same there.
///
/// One that is given in both places becomes a repeated header, which is refused where it matters.
///
/// # Errors
/// 400 for what cannot be a header: it was meant to change the request, and passing it over would change it too.
fn adopt_query_headers(head: &mut RequestHead) -> Result<(), S3Error> {
    for pair in &head.query {
        let name = pair.name.to_ascii_lowercase();
        if !name.starts_with("x-amz-") || SIGNATURE_PARAMETERS.contains(&name.as_str()) {
            continue;
        }
        let invalid = || S3Error::invalid_argument("The header value is not valid", &pair.name, &pair.value);
        let name = HeaderName::try_from(name).map_err(|_invalid| invalid())?;
        let value = HeaderValue::from_bytes(pair.value.as_bytes()).map_err(|_invalid| invalid())?;
        head.headers.append(name, value);
    }
    Ok(())
}

/// A request on a bucket, before its access was checked.
struct Found<'h> {
    head: &'h RequestHead,
    caller: Caller,
    bucket: String,
    key: Option<ObjectKey>,
    body: Payload,
}

impl Found<'_> {
    async fn run<O: Operation>(mut self) -> Result<Reply, S3Error> {
        let key = self.key.take();
        let head = self.head;
        let (ctx, body) = self.admitted_with_body(O::ACCESS).await?;
        refuse_unimplemented(head)?;
        let _turn = match O::REPLY {
            ReplySize::Short => None,
            ReplySize::Page => Some(ctx.garage().page_turn().await?),
        };
        // Each on its own: otherwise every request is as large as the largest operation.
        match Box::pin(O::parse(head, key)?.run(&ctx, body)).await {
            Err(error) if error.code == Code::NoSuchBucket => Err(Box::pin(moved_or(&ctx, error)).await),
            answer => answer,
        }
    }

    async fn admitted(self, access: Access) -> Result<BucketCtx, S3Error> {
        Ok(self.admitted_with_body(access).await?.0)
    }

    async fn admitted_with_body(self, access: Access) -> Result<(BucketCtx, Payload), S3Error> {
        let Found { caller, bucket: bucket_name, body, .. } = self;
        let found = caller.garage.resolve_bucket(Some(&caller.key.id), &bucket_name).await;
        let bucket = found.map_err(|error| match error {
            ModelError::NoSuchBucket(_) => S3Error::from(Code::NoSuchBucket).with("BucketName", &bucket_name),
            other => other.into(),
        })?;
        caller.check_access(access, &bucket.id).await?;
        Ok((BucketCtx { caller, bucket, bucket_name }, body))
    }
}

/// What is said to a request whose bucket was deleted under its hands: when the name leads to another bucket by now, of which this node
/// had not heard, the request may succeed when it is repeated.
async fn moved_or(ctx: &BucketCtx, refusal: S3Error) -> S3Error {
    match ctx.garage().resolve_as_agreed(Some(&ctx.caller.key.id), &ctx.bucket_name).await {
        Ok(bucket) if bucket.id != ctx.bucket.id => {
            S3Error::new(Code::ServiceUnavailable, "The name leads to another bucket since this request began.")
        }
        Ok(_) | Err(ModelError::NoSuchBucket(_)) => refusal,
        Err(error) => error.into(),
    }
}

impl Service for S3Service {
    fn call(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> BoxFuture<'static, Response<ReplyBody>> {
        async move { self.handle(request, &peer).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_http::RequestHead;

    use super::adopt_query_headers;
    use crate::error::Code;

    #[test]
    fn headers_that_were_moved_into_a_presigned_url_count_as_headers() {
        let uri = "/b/k?X-Amz-Signature=0&X-Amz-Tagging=a%3Db&x-amz-copy-source=%2Fb%2Fother&x-id=PutObject";
        let request = hyper::Request::builder().uri(uri).header("host", "localhost").body(()).unwrap();
        let mut head = RequestHead::read(&request.into_parts().0).unwrap();
        adopt_query_headers(&mut head).unwrap();
        let names: Vec<&str> = head.headers.keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["host", "x-amz-tagging", "x-amz-copy-source"]);
        assert_eq!(head.header("x-amz-copy-source"), Ok(Some("/b/other")));
    }

    #[test]
    fn a_parameter_that_cannot_be_a_header_is_refused_not_passed_over() {
        for query in ["x-amz-copy-source=a%0Ab", "x-amz-tagging%0A=a"] {
            let request = hyper::Request::builder().uri(format!("/b/k?{query}")).header("host", "localhost").body(()).unwrap();
            let mut head = RequestHead::read(&request.into_parts().0).unwrap();
            assert_eq!(adopt_query_headers(&mut head).unwrap_err().code, Code::InvalidArgument, "{query}");
        }
    }
}
