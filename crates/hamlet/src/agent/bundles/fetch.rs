//! Asking a bundle endpoint: one GET over TLS, bounded in time and size. *Hardened to untrusted peer.*
//!
//! It reads no bundle and keeps nothing. Invariants: every hop of a redirect proves itself by the same
//! profile, a permanent redirect is an error (the URL is the operator's), and a redirect never leads
//! to a special-purpose address that the configured URL did not lead to by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::EndpointAddress;
use hamlet_core::rejection::one_line;
use hamlet_identity::{BUNDLE_BYTES_MAX, refusal_in};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::cli::version::BUILD;
use crate::config::EndpointUrl;

/// Longest time that one look at an endpoint takes, redirects included.
const FETCH_TIME_MAX: Duration = Duration::from_secs(30);
/// How many redirects are followed in one look.
const REDIRECTS_MAX: usize = 3;
/// Largest head of an endpoint's answer, in bytes.
const ANSWER_HEAD_BYTES: usize = 16 * 1024;
/// Longest time to reach one address of an endpoint.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Why an endpoint gave no bundle. The next look is at its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} can't be reached: {1}; check the URL, and the way there")]
    Unreachable(String, String),
    #[error("{0} does not prove itself: {1}; check the endpoint's profile, id and authorities")]
    Tls(String, String),
    #[error("{0} broke off: {1}")]
    Broken(String, String),
    #[error("{0} answers {1}; ask the peer for its bundle endpoint")]
    Status(String, StatusCode),
    #[error("{0} has moved for good to {1}; if the peer confirms it, write that as `url`")]
    Moved(String, String),
    #[error("{0} leads to {1}, which is not followed: {2}")]
    Redirect(String, String, String),
    #[error("{0} leads on more than {REDIRECTS_MAX} times")]
    TooManyRedirects(String),
    #[error("{0} answers with more than {BUNDLE_BYTES_MAX} bytes, which is no bundle")]
    TooLarge(String),
    #[error("{0} gave no whole answer within {limit} s", limit = FETCH_TIME_MAX.as_secs())]
    TimedOut(String),
}

/// Gets the document behind `url`.
pub(super) async fn fetch(url: &EndpointUrl, tls: Arc<ClientConfig>) -> Result<Vec<u8>, FetchError> {
    match tokio::time::timeout(FETCH_TIME_MAX, follow(url.clone(), tls)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(FetchError::TimedOut(url.to_string())),
    }
}

enum Answer {
    Body(Vec<u8>),
    Elsewhere(EndpointUrl),
}

async fn follow(mut url: EndpointUrl, tls: Arc<ClientConfig>) -> Result<Vec<u8>, FetchError> {
    let start = url.to_string();
    let (stream, special) = connect(&url, true).await?;
    let mut stream = Some(stream);
    'hops: for _ in 0..=REDIRECTS_MAX {
        let at = match stream.take() {
            Some(first) => first,
            None => connect(&url, special).await?.0,
        };
        match ask(&url, at, tls.clone()).await? {
            Answer::Body(body) => return Ok(body),
            Answer::Elsewhere(next) => {
                url = next;
                continue 'hops;
            }
        }
    }
    Err(FetchError::TooManyRedirects(start))
}

/// Whether no endpoint on the public Internet has that address.
fn is_special(address: SocketAddr) -> bool {
    EndpointAddress::try_from(address.ip()).map_or(true, |a| a.special_purpose().is_some())
}

/// A connection, and whether it goes to a special-purpose address. With `special` false none of those
/// is tried.
async fn connect(url: &EndpointUrl, special: bool) -> Result<(TcpStream, bool), FetchError> {
    let failed = |why: String| FetchError::Unreachable(url.to_string(), why);
    let found = tokio::net::lookup_host((url.host(), url.port())).await.map_err(|e| failed(e.to_string()))?;
    let mut why = "its name has no address that may be used".to_owned();
    for address in found.filter(|a| special || !is_special(*a)) {
        match tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, is_special(address))),
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address}: no answer within {} s", CONNECT_TIME_MAX.as_secs()),
        }
    }
    Err(failed(why))
}

async fn ask(url: &EndpointUrl, stream: TcpStream, tls: Arc<ClientConfig>) -> Result<Answer, FetchError> {
    let shown = url.to_string();
    let tls_failed = |why: String| FetchError::Tls(shown.clone(), one_line(&why, 1024));
    let broken = |e: hyper::Error| FetchError::Broken(shown.clone(), one_line(&e.to_string(), 256));
    let name = ServerName::try_from(url.host().to_owned()).map_err(|e| tls_failed(e.to_string()))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream =
        stream.map_err(|e| tls_failed(refusal_in(&e).map_or_else(|| e.to_string(), ToString::to_string)))?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(url.path())
        .header(header::HOST, url.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, format!("hamlet/{}", BUILD.version))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| FetchError::Broken(shown.clone(), e.to_string()))?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(ANSWER_HEAD_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Nobody else drives the connection, and it ends with this look.
    let exchange = async {
        let mut response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_redirection() {
            let location =
                response.headers().get(header::LOCATION).map(|l| String::from_utf8_lossy(l.as_bytes()));
            return redirect(url, status, &location.unwrap_or_default());
        }
        if status != StatusCode::OK {
            return Err(FetchError::Status(shown.clone(), status));
        }
        let mut body = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            if let Ok(chunk) = frame.map_err(broken)?.into_data() {
                if body.len() + chunk.len() > BUNDLE_BYTES_MAX {
                    return Err(FetchError::TooLarge(shown.clone()));
                }
                body.extend_from_slice(&chunk);
            }
        }
        Ok(Answer::Body(body))
    };
    let (mut exchange, mut connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    let mut open = true;
    std::future::poll_fn(|cx| {
        if open {
            open = connection.as_mut().poll(cx).is_pending();
        }
        exchange.as_mut().poll(cx)
    })
    .await
}

/// Only what is temporary is followed; the URL in the configuration stays what it is.
fn redirect(from: &EndpointUrl, status: StatusCode, location: &str) -> Result<Answer, FetchError> {
    let (shown, to) = (from.to_string(), one_line(location, 512));
    match status {
        StatusCode::FOUND | StatusCode::SEE_OTHER | StatusCode::TEMPORARY_REDIRECT => {
            let next = from.redirected(location);
            next.map(Answer::Elsewhere).map_err(|why| FetchError::Redirect(shown, to, why))
        }
        StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT => Err(FetchError::Moved(shown, to)),
        other => Err(FetchError::Status(shown, other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_temporary_redirect_to_https_is_followed_and_a_permanent_one_names_the_place() {
        let from = EndpointUrl::parse("https://globex.example:8443/a").unwrap();
        let to = |status: u16, location: &str| {
            redirect(&from, StatusCode::from_u16(status).unwrap(), location).map(|answer| match answer {
                Answer::Elsewhere(url) => url.to_string(),
                Answer::Body(_) => String::new(),
            })
        };
        for status in [302, 303, 307] {
            assert_eq!(to(status, "/b").unwrap(), "https://globex.example:8443/b", "{status}");
            assert!(
                matches!(to(status, "http://globex.example/"), Err(FetchError::Redirect(..))),
                "{status}"
            );
        }
        for status in [301, 308] {
            let moved = to(status, "https://new.example/").unwrap_err();
            assert!(matches!(&moved, FetchError::Moved(_, to) if to == "https://new.example/"), "{moved}");
        }
        assert!(matches!(to(304, "/b"), Err(FetchError::Status(..))));
    }

    #[test]
    fn a_special_purpose_address_is_known_and_a_public_one_is_none() {
        for (address, special) in [
            ("127.0.0.1:443", true),
            ("169.254.169.254:443", true),
            ("10.0.0.1:443", true),
            ("[::1]:443", true),
            ("[::ffff:127.0.0.1]:443", true),
            ("9.9.9.9:443", false),
        ] {
            assert_eq!(is_special(address.parse().unwrap()), special, "{address}");
        }
    }
}
