//! What a gateway may pass on of an HTTP message: authorities, hop-by-hop fields, our own
//! `x-hamlet-*` fields, and the answers we make ourselves. *Hardened to untrusted peer.* Pure.
//!
//! Invariant: a field that tells a backend who calls is only ever written by us; whatever came
//! under such a name is gone before, trailers included, also where `_` stands for `-` (many
//! servers make one variable of both).

use bytes::Bytes;
use hamlet_core::Fqdn;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

/// The body of every message we send.
pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// Request field with the SPIFFE id that the calling mesh's gateway proved.
pub(crate) const CALLER: HeaderName = HeaderName::from_static("x-hamlet-caller");
/// Request field with the trust domain of that id.
pub(crate) const CALLER_MESH: HeaderName = HeaderName::from_static("x-hamlet-caller-mesh");
/// Response field with a stable code, on answers that a gateway made itself.
pub(crate) const ERROR: HeaderName = HeaderName::from_static("x-hamlet-error");

const OURS: &[u8] = b"x-hamlet-";

/// Splits an authority into its canonical name and port. Addresses, user names and anything
/// else that is no name give `None`.
pub(crate) fn split_authority(text: &str) -> Option<(Fqdn, Option<u16>)> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(port.parse().ok()?)),
        Some(_) => return None,
        None => (text, None),
    };
    Some((Fqdn::parse(name).ok()?, port))
}

/// The canonical name in an authority.
pub(crate) fn authority_name(text: &str) -> Option<Fqdn> {
    split_authority(text).map(|(name, _)| name)
}

/// The one authority of a request as it was written. `None` if there is none, or more than one
/// and they differ.
pub(crate) fn request_authority<B>(request: &Request<B>) -> Option<String> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    let host = host.map(|h| h.to_str()).transpose().ok()?;
    match (request.uri().authority(), host) {
        (Some(target), Some(host)) if !target.as_str().eq_ignore_ascii_case(host) => None,
        (Some(target), _) => Some(target.as_str().to_owned()),
        (None, host) => host.map(str::to_owned),
    }
}

/// Removes the fields that concern one connection only (RFC 9110, 7.6.1). `te: trailers` stays:
/// gRPC needs it.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let tokens = |name: HeaderName| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).map(|t| t.trim().to_ascii_lowercase()).collect()
    };
    let named = tokens(CONNECTION);
    let trailers = tokens(TE).iter().any(|t| t == "trailers");
    for name in named.iter().filter_map(|t| HeaderName::from_bytes(t.as_bytes()).ok()) {
        headers.remove(name);
    }
    if headers.remove(TRANSFER_ENCODING).is_some() {
        // A message with both lengths is how requests are smuggled: the chunks decide.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [CONNECTION, TE, UPGRADE, EXPECT] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes every field under our own prefix.
pub(crate) fn strip_ours(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| {
        let name = name.as_str().as_bytes();
        name.len() >= OURS.len() && name.iter().zip(OURS).all(|(b, o)| b == o || (*b == b'_' && *o == b'-'))
    };
    let found: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// The protocol that a message changes to, if its connection is asked to and it is `websocket`.
/// No other is passed on: through `h2c` a client could send requests that nobody looks at.
pub(crate) fn upgrade_to(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let asked = connection.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    let mut to = headers.get_all(UPGRADE).iter();
    let first = to.next().filter(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    first.filter(|_| asked && to.next().is_none()).cloned()
}

/// A request body as we pass it on: trailers can't carry our fields either.
pub(crate) fn request_body(body: Incoming) -> Body {
    body.map_frame(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            strip_ours(trailers);
        }
        frame
    })
    .boxed()
}

/// An empty body.
pub(crate) fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed()
}

/// An answer of our own: plain text for people, a stable code for programs.
pub(crate) fn answer(status: StatusCode, code: &'static str, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text + "\n")).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(ERROR, HeaderValue::from_static(code));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(n, v): &(&'static str, &'static str)| {
            (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_static(v))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn no_spelling_of_our_fields_survives_and_similar_names_do() {
        let mut map = headers(&[
            ("x-hamlet-caller", "spiffe://evil.example/gw"),
            ("X-Hamlet-Caller", "again"),
            ("x_hamlet_caller", "by underscore"),
            ("x-hamlet_caller-mesh", "mixed"),
            ("x-hamlet-anything", "else"),
            ("x-hamlets", "kept"),
            ("x-hamlet", "kept"),
            ("y-hamlet-caller", "kept"),
        ]);
        strip_ours(&mut map);
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-hamlet", "x-hamlets", "y-hamlet-caller"]);
    }

    #[test]
    fn fields_of_one_connection_are_not_passed_on() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("accept", "kept"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("accept", "kept")]));
        let mut map = headers(&[("content-length", "5")]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("content-length", "5")]));
    }

    #[test]
    fn only_a_web_socket_is_an_upgrade() {
        for (connection, upgrade, passes) in [
            ("Upgrade", "websocket", true),
            ("keep-alive, upgrade", "WebSocket", true),
            ("keep-alive", "websocket", false),
            ("Upgrade, HTTP2-Settings", "h2c", false),
            ("Upgrade", "websocket, h2c", false),
            ("Upgrade", "h2c, websocket", false),
        ] {
            let map = headers(&[("connection", connection), ("upgrade", upgrade)]);
            assert_eq!(upgrade_to(&map).is_some(), passes, "{connection}: {upgrade}");
        }
        let map = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]);
        assert_eq!(upgrade_to(&map), None);
    }

    #[test]
    fn a_request_has_one_authority_or_none() {
        let request = |uri: &str, hosts: &[&'static str]| {
            let builder = hosts.iter().fold(Request::builder().uri(uri), |b, h| b.header(HOST, *h));
            request_authority(&builder.body(()).unwrap())
        };
        assert_eq!(request("/", &["a.example"]).as_deref(), Some("a.example"));
        assert_eq!(request("http://a.example/", &[]).as_deref(), Some("a.example"));
        assert_eq!(request("http://a.example/", &["A.example"]).as_deref(), Some("a.example"));
        assert_eq!(request("http://a.example/", &["b.example"]), None);
        assert_eq!(request("/", &["a.example", "a.example"]), None);
        assert_eq!(request("/", &[]), None);
    }

    #[test]
    fn an_authority_is_a_name_with_or_without_a_port() {
        let name = Fqdn::parse("a.example").unwrap();
        for (good, port) in [("a.example", None), ("A.Example.", None), ("a.example:8080", Some(8080))] {
            assert_eq!(split_authority(good), Some((name.clone(), port)), "{good}");
        }
        for bad in ["", ":80", "a.example:x", "a.example:99999", "u@a.example", "[::1]:80", "127.0.0.1", "a"]
        {
            assert_eq!(split_authority(bad), None, "{bad}");
        }
    }
}
