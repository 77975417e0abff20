//! What an operation answers, before it becomes an HTTP response.

use futures_util::StreamExt;
use garage_http::ReplyBody;
use garage_http::document::Document;
use garage_http::reply::ReplyError;
use garage_model::get::ByteStream;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use crate::error::{Code, S3Error};

/// The body of a reply.
pub enum ReplyContent {
    Empty,
    Document(Document),
    /// `length` bytes that come from the store; an error cuts the connection.
    Stream {
        length: u64,
        stream: ByteStream,
    },
    /// None, but with the length that the body would have (HEAD).
    LengthOnly(u64),
}

/// A successful reply.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: ReplyContent,
}

impl Reply {
    pub fn empty(status: StatusCode) -> Self {
        Reply { status, headers: HeaderMap::new(), content: ReplyContent::Empty }
    }

    pub fn ok() -> Self {
        Reply::empty(StatusCode::OK)
    }

    pub fn no_content() -> Self {
        Reply::empty(StatusCode::NO_CONTENT)
    }

    pub fn xml(document: Document) -> Self {
        let mut reply = Reply::ok();
        reply.headers.insert(hyper::header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        reply.content = ReplyContent::Document(document);
        reply
    }

    /// Adds a header whose value came from a client or was made here.
    ///
    /// # Errors
    /// 500 when a stored value cannot stand in a header; it was checked when it came in.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, S3Error> {
        let name = HeaderName::try_from(name).map_err(|_invalid| S3Error::from(Code::InternalError))?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_invalid| S3Error::from(Code::InternalError))?;
        self.headers.append(name, value);
        Ok(self)
    }

    /// The HTTP response. A stream that fails cuts the connection, so that the client sees a truncated body.
    pub fn into_response(self) -> Response<ReplyBody> {
        let Reply { status, mut headers, content } = self;
        let body = match content {
            ReplyContent::Empty => ReplyBody::empty(),
            ReplyContent::Document(document) => ReplyBody::from(document),
            ReplyContent::Stream { length, stream } => {
                let cut = |error: garage_model::ModelError| {
                    tracing::error!(error = %garage_types::chain(&error), "a reply was cut off");
                    ReplyError::Source(Box::new(error))
                };
                ReplyBody::sized(length, stream.map(move |bytes| bytes.map_err(cut)))
            }
            ReplyContent::LengthOnly(length) => {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
                ReplyBody::empty()
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}
