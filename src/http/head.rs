//! The head of a request, read once: path and query as received, the query decoded, headers looked up strictly.
//!
//! Pure. Keys are decoded once and never cleaned. The host is lower-cased and loses its port only to find a bucket;
//! signatures are computed over what was received.

use hyper::http::{self, HeaderMap, Method, StatusCode};

use crate::error::ErrorReply;
use crate::uri::{QueryPair, UriError, decode, decode_query};

/// Why the head of a request cannot be accepted. Each is the client's fault: 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("Couldn't parse the specified URI: {source}.")]
    Uri {
        #[from]
        source: UriError,
    },
    #[error("The header {name} may be given once only.")]
    DuplicateHeader { name: String },
    #[error("The header Host is missing.")]
    MissingHost,
    #[error("The header {name} is not UTF-8.")]
    HeaderNotUtf8 { name: String },
    #[error("The query parameter {name} may be given once only.")]
    DuplicateParameter { name: String },
}

impl HeadError {
    /// AWS's error code.
    pub fn code(&self) -> &'static str {
        match self {
            HeadError::Uri { .. } => "InvalidURI",
            HeadError::MissingHost => "InvalidRequest",
            HeadError::DuplicateHeader { .. } | HeadError::HeaderNotUtf8 { .. } | HeadError::DuplicateParameter { .. } => {
                "InvalidArgument"
            }
        }
    }
}

impl From<HeadError> for ErrorReply {
    fn from(error: HeadError) -> Self {
        ErrorReply::new(StatusCode::BAD_REQUEST, error.code(), error.to_string())
    }
}

/// The facts of a request that come before its body.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    /// Still percent-encoded, without the query.
    pub raw_path: String,
    /// Still percent-encoded, without the `?`; empty when there is none.
    pub raw_query: String,
    /// In the order received, names and values decoded once.
    pub query: Vec<QueryPair>,
    pub headers: HeaderMap,
    /// `Host` (or the authority of an absolute request line): lower case, without port. For finding the bucket only.
    pub host: Option<String>,
}

/// What a request is addressed to, before anybody knows whether it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The root of the service.
    Service,
    Bucket {
        bucket: String,
    },
    Object {
        bucket: String,
        key: String,
    },
}

impl RequestHead {
    /// # Errors
    /// [`HeadError`]: the query does not decode, or `Host` is repeated or not UTF-8.
    pub fn read(parts: &http::request::Parts) -> Result<Self, HeadError> {
        let raw_query = parts.uri.query().unwrap_or("").to_owned();
        let query = decode_query(&raw_query)?;
        let host = match single(&parts.headers, "host")? {
            Some(host) => Some(host.to_owned()),
            None => parts.uri.authority().map(|authority| authority.as_str().to_owned()),
        };
        Ok(RequestHead {
            method: parts.method.clone(),
            raw_path: parts.uri.path().to_owned(),
            raw_query,
            query,
            headers: parts.headers.clone(),
            host: host.map(|host| without_port(&host).to_ascii_lowercase()),
        })
    }

    /// A header that must not be repeated.
    ///
    /// # Errors
    /// [`HeadError::DuplicateHeader`], [`HeadError::HeaderNotUtf8`].
    pub fn header(&self, name: &str) -> Result<Option<&str>, HeadError> {
        single(&self.headers, name)
    }

    /// The first value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|pair| pair.name == name).map(|pair| pair.value.as_str())
    }

    /// A query parameter that must not be repeated.
    ///
    /// # Errors
    /// [`HeadError::DuplicateParameter`].
    pub fn single_parameter(&self, name: &str) -> Result<Option<&str>, HeadError> {
        let mut values = self.query.iter().filter(|pair| pair.name == name);
        let first = values.next().map(|pair| pair.value.as_str());
        match values.next() {
            Some(_) => Err(HeadError::DuplicateParameter { name: name.to_owned() }),
            None => Ok(first),
        }
    }

    /// Splits host and path into bucket and key, each decoded once. `root_domains`: see [`split_host`].
    ///
    /// # Errors
    /// [`HeadError::Uri`]: a part does not decode. [`HeadError::MissingHost`], which HTTP/1.1 demands of every request.
    pub fn target(&self, root_domains: &[String]) -> Result<Target, HeadError> {
        let host = self.host.as_deref().ok_or(HeadError::MissingHost)?;
        let path = self.raw_path.strip_prefix('/').unwrap_or(&self.raw_path);
        if let Some(bucket) = split_host(host, root_domains) {
            return Ok(target_of(bucket.to_owned(), decode(path)?));
        }
        // Split before decoding: a `%2F` belongs to a name.
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        match bucket {
            "" if key.is_empty() => Ok(Target::Service),
            _ => Ok(target_of(decode(bucket)?, decode(key)?)),
        }
    }
}

fn target_of(bucket: String, key: String) -> Target {
    if key.is_empty() { Target::Bucket { bucket } } else { Target::Object { bucket, key } }
}

fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, HeadError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(HeadError::DuplicateHeader { name: name.to_owned() });
    }
    // Not `to_str`, which refuses what UTF-8 metadata are made of.
    std::str::from_utf8(first.as_bytes()).map(Some).map_err(|_invalid| HeadError::HeaderNotUtf8 { name: name.to_owned() })
}

/// `host` without its port; an IPv6 address keeps its brackets.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => {
            match name.starts_with('[') {
                true if !name.ends_with(']') => host,
                _ => name,
            }
        }
        _ => host,
    }
}

/// The bucket in front of one of the root domains: `shop` in `shop.s3.example.org` for `.s3.example.org`.
///
/// `host`: lower case, without port. `root_domains`: with or without their leading dot. The longest that fits decides;
/// `None` for a root domain itself and for any other host, whose requests are path-style.
pub fn split_host<'h>(host: &'h str, root_domains: &[String]) -> Option<&'h str> {
    let bucket_under = |root: &String| {
        let root = root.strip_prefix('.').unwrap_or(root).to_ascii_lowercase();
        let bucket = host.strip_suffix(root.as_str())?.strip_suffix('.')?;
        (!bucket.is_empty() && !root.is_empty()).then_some(bucket)
    };
    // The longest root leaves the shortest bucket. A root domain that is itself below another is no bucket.
    let is_root = root_domains.iter().any(|root| root.strip_prefix('.').unwrap_or(root).eq_ignore_ascii_case(host));
    if is_root { None } else { root_domains.iter().filter_map(bucket_under).min_by_key(|bucket| bucket.len()) }
}

#[cfg(test)]
mod tests {
    use hyper::http;
    use proptest::prelude::{any, proptest};

    use super::{HeadError, RequestHead, Target, split_host, without_port};

    fn head(uri: &str, host: &str) -> Result<RequestHead, HeadError> {
        let request = http::Request::builder().uri(uri).header("host", host).body(()).expect("a request");
        RequestHead::read(&request.into_parts().0)
    }

    fn target(uri: &str, host: &str) -> Target {
        let roots = [".s3.example.org".to_owned(), "example.net".to_owned(), "s3.example.net".to_owned()];
        head(uri, host).and_then(|head| head.target(&roots)).expect("a target")
    }

    fn object(bucket: &str, key: &str) -> Target {
        Target::Object { bucket: bucket.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn path_style_and_host_style_name_the_same_things() {
        assert_eq!(target("/", "s3.example.org"), Target::Service);
        assert_eq!(target("/", "localhost:3900"), Target::Service);
        assert_eq!(target("/shop", "localhost"), Target::Bucket { bucket: "shop".to_owned() });
        assert_eq!(target("/shop/", "localhost"), Target::Bucket { bucket: "shop".to_owned() });
        assert_eq!(target("/", "Shop.S3.Example.Org:3900"), Target::Bucket { bucket: "shop".to_owned() });
        assert_eq!(target("/shop/a/b", "localhost"), object("shop", "a/b"));
        assert_eq!(target("/a/b", "my.shop.s3.example.org"), object("my.shop", "a/b"));
        assert_eq!(target("/a", "shop.s3.example.net"), object("shop", "a"));
        assert_eq!(target("/shop/a", "s3.example.net"), object("shop", "a"));
    }

    #[test]
    fn keys_are_decoded_once_and_never_cleaned() {
        let cases = [
            ("/b//x", "/x"),
            ("/b/x//y/", "x//y/"),
            ("/b/.././x", ".././x"),
            ("/b/%2e%2e/x", "../x"),
            ("/b/a%2Fb", "a/b"),
            ("/b/a%252Fb", "a%2Fb"),
            ("/b/a+b", "a+b"),
            ("/b/%01%00", "\u{1}\0"),
            ("/b/%C3%A9", "é"),
        ];
        for (uri, key) in cases {
            assert_eq!(target(uri, "localhost"), object("b", key), "{uri}");
        }
        assert_eq!(target("//x", "b.s3.example.org"), object("b", "/x"));
    }

    #[test]
    fn an_escaped_slash_does_not_end_the_bucket() {
        assert_eq!(target("/a%2Fb/c", "localhost"), object("a/b", "c"));
    }

    #[test]
    fn what_does_not_decode_is_refused() {
        for uri in ["/b/%zz", "/b/%ff", "/%"] {
            let refused = head(uri, "localhost").and_then(|head| head.target(&[]));
            assert!(matches!(refused, Err(HeadError::Uri { .. })), "{uri}");
        }
        assert!(matches!(head("/b?prefix=%f", "localhost"), Err(HeadError::Uri { .. })));
    }

    #[test]
    fn a_repeated_header_is_refused() {
        let request = http::Request::builder().header("host", "a").header("host", "b").body(()).expect("a request");
        let refused = RequestHead::read(&request.into_parts().0);
        assert!(matches!(refused, Err(HeadError::DuplicateHeader { .. })));
    }

    #[test]
    fn a_repeated_parameter_is_refused_where_it_matters() {
        let head = head("/?a=1&a=2&b=3", "localhost").expect("well formed");
        assert!(head.single_parameter("a").is_err());
        assert_eq!(head.parameter("a"), Some("1"));
        assert_eq!(head.single_parameter("b"), Ok(Some("3")));
        assert_eq!(head.single_parameter("c"), Ok(None));
    }

    #[test]
    fn ports_are_recognised() {
        let cases = [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("::1", "::1"), ("a:", "a")];
        for (host, name) in cases {
            assert_eq!(without_port(host), name, "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_host_makes_these_panic(host in any::<String>(), root in any::<String>()) {
            assert!(without_port(&host).len() <= host.len());
            assert!(split_host(&host, &[root]).is_none_or(|bucket| bucket.len() < host.len()));
        }
    }
}
