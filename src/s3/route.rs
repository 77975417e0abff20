//! Which operation a request asks for: one visible table of method, target and sub-resource.
//!
//! Must stay true: a query parameter that no row knows never falls through to another operation; it answers 501.

use garage_http::head::{RequestHead, Target};
use hyper::Method;

use crate::error::{Code, S3Error};

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Service,
    Bucket,
    Object,
}

/// The operations that exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    ListBuckets,
    CreateBucket,
    DeleteBucket,
    HeadBucket,
    GetBucketLocation,
    GetBucketVersioning,
    ListObjectVersions,
    ListObjects,
    ListObjectsV2,
    DeleteObjects,
    GetObject,
    HeadObject,
    GetObjectAttributes,
    PutObject,
    CopyObject,
    DeleteObject,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    ListMultipartUploads,
    /// A configuration that no bucket can have here yet: AWS's own 404.
    NoConfiguration(Code),
}

struct Row {
    method: Method,
    on: On,
    /// The query parameter that selects the operation, with the value it must have if any.
    selector: Option<(&'static str, Option<&'static str>)>,
    /// A header that selects the operation.
    header: Option<&'static str>,
    /// Other query parameters that belong to it.
    parameters: &'static [&'static str],
    route: Route,
}

const fn row(method: Method, on: On, route: Route, parameters: &'static [&'static str]) -> Row {
    Row { method, on, selector: None, header: None, parameters, route }
}

const fn sub(method: Method, on: On, selector: &'static str, route: Route, parameters: &'static [&'static str]) -> Row {
    Row { method, on, selector: Some((selector, None)), header: None, parameters, route }
}

/// A row for the requests that name a source to copy from.
const fn copy(selector: Option<(&'static str, Option<&'static str>)>, route: Route, parameters: &'static [&'static str]) -> Row {
    Row { method: Method::PUT, on: On::Object, selector, header: Some("x-amz-copy-source"), parameters, route }
}

const UPLOADS: &[&str] = &["prefix", "delimiter", "key-marker", "upload-id-marker", "max-uploads", "encoding-type"];
const VERSIONS: &[&str] = &["prefix", "delimiter", "key-marker", "version-id-marker", "max-keys", "encoding-type"];
const LIST: &[&str] = &["prefix", "delimiter", "marker", "max-keys", "encoding-type"];
const LIST_V2: &[&str] =
    &["list-type", "prefix", "delimiter", "continuation-token", "start-after", "max-keys", "encoding-type", "fetch-owner"];
const READ: &[&str] = &[
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "versionId",
    "partNumber",
];

/// The first row that fits decides.
const TABLE: &[Row] = &[
    row(Method::GET, On::Service, Route::ListBuckets, &["max-buckets", "prefix", "continuation-token", "bucket-region"]),
    sub(Method::GET, On::Bucket, "location", Route::GetBucketLocation, &[]),
    sub(Method::GET, On::Bucket, "versioning", Route::GetBucketVersioning, &[]),
    sub(Method::GET, On::Bucket, "versions", Route::ListObjectVersions, VERSIONS),
    sub(Method::GET, On::Bucket, "cors", Route::NoConfiguration(Code::NoSuchCORSConfiguration), &[]),
    // `withUpdatedAt` is what mc asks for.
    sub(Method::GET, On::Bucket, "lifecycle", Route::NoConfiguration(Code::NoSuchLifecycleConfiguration), &["withUpdatedAt"]),
    sub(Method::GET, On::Bucket, "policy", Route::NoConfiguration(Code::NoSuchBucketPolicy), &[]),
    sub(Method::GET, On::Bucket, "tagging", Route::NoConfiguration(Code::NoSuchTagSet), &[]),
    sub(Method::GET, On::Bucket, "website", Route::NoConfiguration(Code::NoSuchWebsiteConfiguration), &[]),
    sub(Method::GET, On::Bucket, "encryption", Route::NoConfiguration(Code::ServerSideEncryptionConfigurationNotFoundError), &[]),
    sub(Method::GET, On::Bucket, "object-lock", Route::NoConfiguration(Code::ObjectLockConfigurationNotFoundError), &[]),
    sub(Method::GET, On::Bucket, "ownershipControls", Route::NoConfiguration(Code::OwnershipControlsNotFoundError), &[]),
    sub(Method::GET, On::Bucket, "policyStatus", Route::NoConfiguration(Code::NoSuchBucketPolicy), &[]),
    sub(Method::GET, On::Bucket, "publicAccessBlock", Route::NoConfiguration(Code::NoSuchPublicAccessBlockConfiguration), &[]),
    sub(Method::GET, On::Bucket, "replication", Route::NoConfiguration(Code::ReplicationConfigurationNotFoundError), &[]),
    Row {
        method: Method::GET,
        on: On::Bucket,
        selector: Some(("list-type", Some("2"))),
        header: None,
        parameters: LIST_V2,
        route: Route::ListObjectsV2,
    },
    sub(Method::GET, On::Bucket, "uploads", Route::ListMultipartUploads, UPLOADS),
    row(Method::GET, On::Bucket, Route::ListObjects, LIST),
    row(Method::HEAD, On::Bucket, Route::HeadBucket, &[]),
    row(Method::PUT, On::Bucket, Route::CreateBucket, &[]),
    row(Method::DELETE, On::Bucket, Route::DeleteBucket, &[]),
    sub(Method::POST, On::Bucket, "delete", Route::DeleteObjects, &[]),
    sub(Method::GET, On::Object, "uploadId", Route::ListParts, &["max-parts", "part-number-marker"]),
    sub(Method::GET, On::Object, "attributes", Route::GetObjectAttributes, &["versionId"]),
    row(Method::GET, On::Object, Route::GetObject, READ),
    row(Method::HEAD, On::Object, Route::HeadObject, READ),
    sub(Method::POST, On::Object, "uploads", Route::CreateMultipartUpload, &[]),
    sub(Method::POST, On::Object, "uploadId", Route::CompleteMultipartUpload, &[]),
    copy(Some(("uploadId", None)), Route::UploadPartCopy, &["partNumber"]),
    sub(Method::PUT, On::Object, "uploadId", Route::UploadPart, &["partNumber"]),
    copy(None, Route::CopyObject, &[]),
    row(Method::PUT, On::Object, Route::PutObject, &[]),
    sub(Method::DELETE, On::Object, "uploadId", Route::AbortMultipartUpload, &[]),
    row(Method::DELETE, On::Object, Route::DeleteObject, &["versionId"]),
];

impl Row {
    fn selected_by(&self, head: &RequestHead) -> bool {
        if self.header.is_some_and(|name| !head.headers.contains_key(name)) {
            return false;
        }
        match self.selector {
            None => true,
            Some((name, None)) => head.parameter(name).is_some(),
            Some((name, Some(value))) => head.parameter(name) == Some(value),
        }
    }

    fn takes(&self, name: &str) -> bool {
        self.parameters.contains(&name) || self.selector.is_some_and(|(selector, _)| selector == name)
    }
}

/// Parameters of the signature, and of SDKs and proxies that mark their requests.
fn is_neutral(name: &str) -> bool {
    name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x-"))
}

/// # Errors
/// 501 for a sub-resource or parameter that no operation here takes, 405 for a method that the target has none for.
pub fn route(head: &RequestHead, target: &Target) -> Result<Route, S3Error> {
    let on = match target {
        Target::Service => On::Service,
        Target::Bucket { .. } => On::Bucket,
        Target::Object { .. } => On::Object,
    };
    let fits = |row: &&Row| row.method == head.method && row.on == on && row.selected_by(head);
    let stray = |row: &Row| head.query.iter().find(|pair| !row.takes(&pair.name) && !is_neutral(&pair.name));
    match TABLE.iter().find(fits) {
        Some(row) => match stray(row) {
            None => Ok(row.route),
            Some(pair) => Err(S3Error::not_implemented(&format!("The query parameter {} of this request", pair.name))),
        },
        None if head.query.iter().any(|pair| !is_neutral(&pair.name)) => Err(S3Error::not_implemented("This operation")),
        None if head.method == Method::POST => Err(S3Error::not_implemented("This operation")),
        None => Err(S3Error::from(Code::MethodNotAllowed).with("Method", head.method.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use garage_http::head::RequestHead;
    use hyper::Method;

    use super::{Route, route};
    use crate::error::Code;

    fn ask(method: &str, uri: &str) -> Result<Route, Code> {
        let request = hyper::Request::builder().method(method).uri(uri).header("host", "localhost").body(()).unwrap();
        let head = RequestHead::read(&request.into_parts().0).unwrap();
        let target = head.target(&[]).unwrap();
        route(&head, &target).map_err(|error| error.code)
    }

    #[test]
    fn each_operation_has_its_row() {
        let cases = [
            ("GET", "/", Route::ListBuckets),
            ("GET", "/?x-id=ListBuckets", Route::ListBuckets),
            ("PUT", "/b", Route::CreateBucket),
            ("HEAD", "/b", Route::HeadBucket),
            ("DELETE", "/b", Route::DeleteBucket),
            ("GET", "/b?location", Route::GetBucketLocation),
            ("GET", "/b?versioning", Route::GetBucketVersioning),
            ("GET", "/b?versions&prefix=a&key-marker=b", Route::ListObjectVersions),
            ("GET", "/b", Route::ListObjects),
            ("GET", "/b?prefix=a&X-Amz-Signature=0", Route::ListObjects),
            ("GET", "/b?list-type=2&prefix=a", Route::ListObjectsV2),
            ("GET", "/b?lifecycle=&withUpdatedAt=true", Route::NoConfiguration(Code::NoSuchLifecycleConfiguration)),
            ("POST", "/b?delete", Route::DeleteObjects),
            ("GET", "/b/k?response-content-type=a", Route::GetObject),
            ("HEAD", "/b/k", Route::HeadObject),
            ("PUT", "/b/k?x-id=PutObject", Route::PutObject),
            ("DELETE", "/b/k", Route::DeleteObject),
            ("GET", "/b?uploads&prefix=a", Route::ListMultipartUploads),
            ("POST", "/b/k?uploads", Route::CreateMultipartUpload),
            ("PUT", "/b/k?partNumber=1&uploadId=a", Route::UploadPart),
            ("GET", "/b/k?uploadId=a&max-parts=1", Route::ListParts),
            ("POST", "/b/k?uploadId=a", Route::CompleteMultipartUpload),
            ("DELETE", "/b/k?uploadId=a", Route::AbortMultipartUpload),
            ("GET", "/b/k?attributes", Route::GetObjectAttributes),
        ];
        for (method, uri, expected) in cases {
            assert_eq!(ask(method, uri), Ok(expected), "{method} {uri}");
        }
    }

    #[test]
    fn a_copy_source_makes_a_copy() {
        for (uri, expected) in [("/b/k", Route::CopyObject), ("/b/k?uploadId=a&partNumber=2", Route::UploadPartCopy)] {
            let request =
                hyper::Request::builder().method("PUT").uri(uri).header("host", "localhost").header("x-amz-copy-source", "b/o");
            let head = RequestHead::read(&request.body(()).unwrap().into_parts().0).unwrap();
            let target = head.target(&[]).unwrap();
            assert_eq!(route(&head, &target), Ok(expected));
        }
    }

    #[test]
    fn an_unknown_sub_resource_never_falls_through() {
        let uris = [
            "/b?accelerate",
            "/b?nonsense",
            "/b?acl",
            "/b/k?acl",
            "/b/k?tagging",
            "/b/k?nonsense",
            "/b?list-type=3",
            "/b?analytics",
        ];
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::HEAD] {
            for uri in uris {
                assert_eq!(ask(method.as_str(), uri), Err(Code::NotImplemented), "{method} {uri}");
            }
        }
        assert_eq!(ask("PUT", "/b/k?partNumber=1"), Err(Code::NotImplemented));
        assert_eq!(ask("PUT", "/b/k?uploads"), Err(Code::NotImplemented));
        assert_eq!(ask("PATCH", "/b/k"), Err(Code::MethodNotAllowed));
    }
}
