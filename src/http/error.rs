//! The one place where errors become replies.
//!
//! Pure. Whatever a frontend refuses becomes an [`ErrorReply`] and is rendered here, so that every error has the same
//! elements, a request id, and no body where HTTP allows none.

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode};

use crate::document::Document;
use crate::reply::ReplyBody;
use crate::request_id::RequestId;
use crate::xml::{self, XmlWriter};

/// The header that names a request in its reply.
pub const REQUEST_ID_HEADER: &str = "x-amz-request-id";

/// An error as a client will see it.
#[derive(Debug, Clone)]
pub struct ErrorReply {
    pub status: StatusCode,
    /// AWS's word for it: `NoSuchKey`.
    pub code: &'static str,
    /// For people. Never holds a secret.
    pub message: String,
    /// What was asked for: the path as received.
    pub resource: Option<String>,
    /// Further elements (`Region`, `BucketName`, …), in this order.
    pub extra: Vec<ExtraElement>,
    /// Further headers (CORS, `Retry-After`, …).
    pub headers: HeaderMap,
}

/// One more element of an error document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraElement {
    pub name: &'static str,
    pub text: String,
}

/// What an error document tells besides the error.
#[derive(Debug, Clone, Copy)]
pub struct ReplyContext<'c> {
    pub method: &'c Method,
    pub request_id: RequestId,
    /// Which node answered.
    pub host_id: &'c str,
}

impl ErrorReply {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ErrorReply { status, code, message: message.into(), resource: None, extra: Vec::new(), headers: HeaderMap::new() }
    }

    /// 500, with no more than that: the cause belongs in the log.
    pub fn internal() -> Self {
        ErrorReply::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "We encountered an internal error. Please try again.")
    }

    /// Adds an element to the document.
    #[must_use]
    pub fn with(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.extra.push(ExtraElement { name, text: text.into() });
        self
    }

    #[must_use]
    pub fn on(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The reply: an XML document, or headers alone for HEAD and 304.
    pub fn render(self, context: &ReplyContext<'_>) -> Response<ReplyBody> {
        let bodiless = *context.method == Method::HEAD || self.status == StatusCode::NOT_MODIFIED;
        let body = if bodiless { ReplyBody::empty() } else { ReplyBody::from(self.document(context)) };
        let mut reply = Response::new(body);
        *reply.status_mut() = self.status;
        *reply.headers_mut() = self.headers;
        if self.status != StatusCode::NOT_MODIFIED {
            reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        }
        let id = HeaderValue::from_str(&context.request_id.to_string()).expect("hexadecimal digits fit a header");
        reply.headers_mut().insert(REQUEST_ID_HEADER, id);
        reply
    }

    fn document(&self, context: &ReplyContext<'_>) -> Document {
        let mut xml = XmlWriter::document();
        xml.element("Error", |xml| {
            xml.text("Code", self.code);
            // A strict parser must be able to read the code, whatever the client sent: an element that XML cannot carry is left out.
            // The path is in `Resource`, encoded.
            xml.text("Message", &xml::legible(&self.message));
            for extra in self.extra.iter().filter(|extra| xml::can_carry(&extra.text)) {
                xml.text(extra.name, &extra.text);
            }
            xml.text("Resource", self.resource.as_deref().unwrap_or(""));
            xml.text("RequestId", &context.request_id.to_string());
            xml.text("HostId", context.host_id);
        });
        xml.finish()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::{Method, StatusCode};

    use super::{ErrorReply, ReplyContext};
    use crate::request_id::RequestId;

    async fn rendered(reply: ErrorReply, method: &Method) -> (hyper::http::response::Parts, String) {
        let context = ReplyContext { method, request_id: RequestId::from_u64(0xab), host_id: "node" };
        let (parts, body) = reply.render(&context).into_parts();
        let bytes = body.collect().await.expect("a body in memory").to_bytes();
        (parts, String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn an_error_is_a_document_with_all_elements() {
        let reply = ErrorReply::new(StatusCode::NOT_FOUND, "NoSuchKey", "a < b\u{1}")
            .on("/b/k")
            .with("Key", "k&")
            .with("UploadId", "u\u{1}");
        let (parts, body) = rendered(reply, &Method::GET).await;
        assert_eq!(parts.status, 404);
        assert_eq!(parts.headers["content-type"], "application/xml");
        assert_eq!(parts.headers["x-amz-request-id"], "00000000000000AB");
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code><Message>a &lt; b\u{fffd}</Message>\
            <Key>k&amp;</Key><Resource>/b/k</Resource><RequestId>00000000000000AB</RequestId><HostId>node</HostId></Error>";
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn head_and_not_modified_have_no_body() {
        let (parts, body) = rendered(ErrorReply::new(StatusCode::NOT_FOUND, "NoSuchKey", "gone"), &Method::HEAD).await;
        assert_eq!((parts.status.as_u16(), body.as_str()), (404, ""));
        let (parts, body) = rendered(ErrorReply::new(StatusCode::NOT_MODIFIED, "NotModified", ""), &Method::GET).await;
        assert_eq!((parts.status.as_u16(), body.as_str()), (304, ""));
        assert!(!parts.headers.contains_key("content-type"));
        let (_, body) =
            rendered(ErrorReply::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", "no"), &Method::GET).await;
        assert!(body.contains("<Code>PreconditionFailed</Code>"));
    }
}
