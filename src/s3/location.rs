//! Where a client finds what it has just made: a URL, with the scheme and the host by which it addressed us.
//!
//! Applications store it as the address of a file, so a path alone is of no use to them.

use garage_http::head::{RequestHead, split_host};
use garage_http::uri;

/// What the head of a request says of our own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    scheme: &'static str,
    /// As received, with its port.
    authority: String,
    /// Lower case, without port.
    host: String,
}

impl Location {
    /// We speak plain HTTP alone: that a client used TLS is known from the proxy that ended it, if that says so.
    pub fn of(head: &RequestHead) -> Self {
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let secure = text("x-forwarded-proto").is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"));
        let host = head.host.clone().unwrap_or_default();
        Location {
            scheme: if secure { "https" } else { "http" },
            authority: text("host").map_or_else(|| host.clone(), str::to_owned),
            host,
        }
    }

    /// The URL of an object, in the style of the request. `root_domains`: below which a host begins with the bucket's name.
    pub fn of_object(&self, root_domains: &[String], bucket: &str, key: &str) -> String {
        let Location { scheme, authority, host } = self;
        let key = uri::encode_path(key);
        match split_host(host, root_domains) {
            Some(_bucket) => format!("{scheme}://{authority}/{key}"),
            None => format!("{scheme}://{authority}/{}/{key}", uri::encode_path(bucket)),
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_http::head::RequestHead;

    use super::Location;

    fn location(headers: &[(&str, &str)]) -> String {
        let mut request = hyper::Request::builder().uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = RequestHead::read(&request.body(()).unwrap().into_parts().0).unwrap();
        Location::of(&head).of_object(&[".s3.example.org".to_owned()], "shop", "dir/a b+ü")
    }

    #[test]
    fn an_object_is_found_where_its_client_addressed_us() {
        assert_eq!(location(&[("host", "127.0.0.1:3900")]), "http://127.0.0.1:3900/shop/dir/a%20b%2B%C3%BC");
        assert_eq!(location(&[("host", "s3.example.org")]), "http://s3.example.org/shop/dir/a%20b%2B%C3%BC");
        assert_eq!(location(&[("host", "Shop.S3.example.org:3900")]), "http://Shop.S3.example.org:3900/dir/a%20b%2B%C3%BC");
        let behind_tls = [("host", "s3.example.org"), ("x-forwarded-proto", "https")];
        assert_eq!(location(&behind_tls), "https://s3.example.org/shop/dir/a%20b%2B%C3%BC");
    }
}
