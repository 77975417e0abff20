//! One worker's connection: signed requests, one at a time, over HTTP/1.1 that is kept alive.

use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;

use crate::content::{Comparison, Content};
use crate::sign::{Signer, UNSIGNED_PAYLOAD, encode_path, encode_query};

pub struct Target {
    /// `host:port`.
    pub host: String,
    pub bucket: String,
    pub signer: Signer,
}

/// One page of a listing.
pub struct Page {
    pub keys: usize,
    pub next: Option<String>,
}

pub struct Client {
    target: Rc<Target>,
    connection: Option<SendRequest<Content>>,
}

impl Client {
    pub fn new(target: Rc<Target>) -> Self {
        Self { target, connection: None }
    }

    pub async fn head_bucket(&mut self) -> Result<()> {
        self.exchange("HEAD", "", &[], Content::empty()).await.map(drop)
    }

    pub async fn put(&mut self, key: &str, content: Content) -> Result<()> {
        self.exchange("PUT", key, &[], content).await.map(drop)
    }

    pub async fn delete(&mut self, key: &str) -> Result<()> {
        self.exchange("DELETE", key, &[], Content::empty()).await.map(drop)
    }

    pub async fn head(&mut self, key: &str, size: usize) -> Result<()> {
        let answer = self.exchange("HEAD", key, &[], Content::empty()).await?;
        let length = answer.headers().get("content-length").and_then(|value| value.to_str().ok());
        ensure!(length == Some(&size.to_string()), "HEAD {key}: length {length:?} instead of {size}");
        Ok(())
    }

    /// Reads an object of `size` bytes to its end; compares it with `expected` when given.
    pub async fn get(&mut self, key: &str, size: usize, expected: Option<Content>) -> Result<()> {
        let answer = self.send("GET", key, &[], Content::empty()).await?;
        ensure!(answer.status().is_success(), "GET {key}: {}", answer.status());
        let mut comparison = expected.map(Comparison::with);
        let (mut body, mut received) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            let piece = frame.data_ref().map_or(&[][..], |data| data);
            received += piece.len();
            ensure!(comparison.as_mut().is_none_or(|wanted| wanted.accepts(piece)), "GET {key}: wrong before byte {received}");
        }
        ensure!(received == size, "GET {key}: {received} bytes instead of {size}");
        Ok(())
    }

    pub async fn list(&mut self, prefix: &str, page: usize, after: Option<&str>) -> Result<Page> {
        let page = page.to_string();
        let mut query = vec![("list-type", "2"), ("max-keys", &page), ("prefix", prefix)];
        if let Some(token) = after {
            query.insert(0, ("continuation-token", token));
        }
        let answer = self.exchange("GET", "", &query, Content::empty()).await?;
        let text = std::str::from_utf8(answer.body())?;
        Ok(Page { keys: text.matches("<Key>").count(), next: element(text, "NextContinuationToken") })
    }

    pub async fn create_upload(&mut self, key: &str) -> Result<Rc<str>> {
        let answer = self.exchange("POST", key, &[("uploads", "")], Content::empty()).await?;
        let id = element(std::str::from_utf8(answer.body())?, "UploadId").context("no upload id in the answer")?;
        Ok(id.into())
    }

    /// Uploads one part; returns its ETag.
    pub async fn upload_part(&mut self, key: &str, upload: &str, number: usize, content: Content) -> Result<String> {
        let query = [("partNumber", &*number.to_string()), ("uploadId", upload)];
        let answer = self.exchange("PUT", key, &query, content).await?;
        Ok(answer.headers().get("etag").context("a part without ETag")?.to_str()?.to_owned())
    }

    /// Completes an upload of parts 1, 2, … with these ETags.
    pub async fn complete_upload(&mut self, key: &str, upload: &str, etags: &[String]) -> Result<()> {
        let mut xml = String::from("<CompleteMultipartUpload>");
        for (index, etag) in etags.iter().enumerate() {
            xml += &format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", index + 1);
        }
        xml += "</CompleteMultipartUpload>";
        let answer = self.exchange("POST", key, &[("uploadId", upload)], Content::given(xml.into())).await?;
        // The status is sent before the work is done, so an error may follow a 200.
        let text = String::from_utf8_lossy(answer.body());
        ensure!(!text.contains("<Error>"), "completing {key}: {text}");
        Ok(())
    }

    /// Sends a request and reads the whole answer, which must be a success.
    async fn exchange(&mut self, method: &str, key: &str, query: &[(&str, &str)], content: Content) -> Result<Response<Bytes>> {
        let (head, body) = self.send(method, key, query, content).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        if !head.status.is_success() {
            bail!("{method} {key}: {} {}", head.status, String::from_utf8_lossy(&body));
        }
        Ok(Response::from_parts(head, body))
    }

    /// Sends a request for a key, or for the bucket when `key` is empty. `query` is sorted by name.
    async fn send(&mut self, method: &str, key: &str, query: &[(&str, &str)], content: Content) -> Result<Response<Incoming>> {
        let slash = if key.is_empty() { "" } else { "/" };
        let path = format!("/{}{slash}{}", self.target.bucket, encode_path(key));
        let pairs: Vec<_> = query.iter().map(|(name, value)| format!("{}={}", encode_query(name), encode_query(value))).collect();
        let query = pairs.join("&");
        let signature = self.target.signer.sign(Timestamp::now(), method, &path, &query);
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", &self.target.host)
            .header("x-amz-content-sha256", UNSIGNED_PAYLOAD)
            .header("x-amz-date", signature.date)
            .header("authorization", signature.authorization)
            .body(content)?;
        let mut connection = self.connect().await?;
        let answer = connection.send_request(request).await?;
        self.connection = Some(connection);
        Ok(answer)
    }

    /// The connection of the last request while it lives, else a new one.
    async fn connect(&mut self) -> Result<SendRequest<Content>> {
        if let Some(mut kept) = self.connection.take()
            && kept.ready().await.is_ok()
        {
            return Ok(kept);
        }
        let stream =
            TcpStream::connect(&self.target.host).await.with_context(|| format!("connecting to {}", self.target.host))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the connection; what goes wrong there fails the request that is waiting.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The text of the first element of this name, its entities resolved.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once('<')?;
    let resolved = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#34;", "\"");
    Some(resolved.replace("&amp;", "&"))
}
