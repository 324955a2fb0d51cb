//! TLS, HTTP/2 and the method: the same for whoever accepts, and for whoever dials.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kit::{Accepted, Kit, Verdict, failed};
use crate::registry::Case;
use crate::stream::Heard;
use crate::tls::Face;

/// Flow-control window of connections that have nothing to do with flow control, in bytes.
const WINDOW: u32 = 1 << 20;
/// gRPC status codes.
const UNIMPLEMENTED: i32 = 12;
/// First byte of a TLS alert.
const TLS_ALERT: u8 = 0x15;

/// An owner under test.
pub(crate) const OWNER: &[Case] = &[
    case!("OWN-001", Both, Happy, Nothing, "a client with a trusted certificate opens a stream", |k| {
        Box::pin(opens(k))
    }),
    case!("OWN-001", Both, Hostile, Target, "a client without a certificate", |k| {
        Box::pin(turned_away(k, Face::Nobody))
    }),
    case!("OWN-001", Both, Hostile, Target, "a client whose certificate nobody signed", |k| {
        Box::pin(turned_away(k, Face::Stranger))
    }),
    case!("OWN-001", Both, Hostile, Target, "HTTP/2 without TLS", |k| Box::pin(plaintext(k))),
    case!("OWN-001", Both, Hostile, Target, "a connection that never completes its handshake", |k| {
        Box::pin(silent_tcp(k))
    }),
    case!("OWN-001", Two, Hostile, Listen, "a server whose certificate nobody signed", |k| {
        Box::pin(shuns(k, Face::Stranger))
    }),
    case!("OWN-002", Both, Happy, Target, "TLS 1.3 is chosen where both sides have it", |k| {
        Box::pin(newest_tls(k))
    }),
    case!("OWN-002", Both, Hostile, Target, "a client that has TLS 1.2 only", |k| {
        Box::pin(turned_away(k, Face::OldTls))
    }),
    case!("OWN-002", Both, Hostile, Target, "a client that names no protocol (ALPN)", |k| {
        Box::pin(turned_away(k, Face::NoAlpn))
    }),
    case!("OWN-003", Both, Happy, Target, "the method's path is served", |k| Box::pin(opens(k))),
    case!("OWN-003", Both, Hostile, Target, "an unknown method", |k| Box::pin(unknown_path(
        k,
        "/conformance.Nowhere/EstablishStream"
    ))),
    case!("OWN-003", Both, Hostile, Target, "a version that doesn't exist", |k| {
        Box::pin(unknown_path(k, "/federation.resourcediscovery.v9.DiscoveryService/EstablishStream"))
    }),
    case!("OWN-004", Both, Happy, Target, "a POST with content type application/grpc", |k| Box::pin(opens(
        k
    ))),
    case!("OWN-004", Both, Hostile, Target, "GET", |k| Box::pin(no_grpc(k, "GET", "application/grpc"))),
    case!("OWN-004", Both, Hostile, Target, "content type text/plain", |k| {
        Box::pin(no_grpc(k, "POST", "text/plain"))
    }),
    case!("OWN-004", Both, Hostile, Target, "16 KiB of headers", |k| Box::pin(large_headers(k))),
];

/// A consumer under test.
pub(crate) const CONSUMER: &[Case] = &[
    case!("CON-001", Both, Happy, Nothing, "peers with trusted certificates open a stream", |k| Box::pin(
        opens(k)
    )),
    case!("CON-001", Both, Hostile, Listen, "a server whose certificate nobody signed", |k| {
        Box::pin(shuns(k, Face::Stranger))
    }),
    case!("CON-001", Both, Hostile, Listen, "a server that speaks no TLS", |k| Box::pin(no_tls_server(k))),
    case!("CON-001", Two, Hostile, Target, "a client without a certificate", |k| {
        Box::pin(turned_away(k, Face::Nobody))
    }),
    case!("CON-001", Two, Hostile, Target, "a client whose certificate nobody signed", |k| {
        Box::pin(turned_away(k, Face::Stranger))
    }),
    case!("CON-001", Two, Hostile, Target, "HTTP/2 without TLS", |k| Box::pin(plaintext(k))),
    case!("CON-001", Two, Hostile, Target, "a connection that never completes its handshake", |k| {
        Box::pin(silent_tcp(k))
    }),
    case!("CON-002", Two, Happy, Target, "TLS 1.3 is chosen where both sides have it", |k| Box::pin(
        newest_tls(k)
    )),
    case!("CON-002", Both, Happy, Listen, "it connects where TLS 1.3 is offered", |k| Box::pin(opens(k))),
    case!("CON-002", Two, Hostile, Target, "a client that has TLS 1.2 only", |k| {
        Box::pin(turned_away(k, Face::OldTls))
    }),
    case!("CON-002", Both, Hostile, Listen, "a server that has TLS 1.2 only", |k| Box::pin(shuns(
        k,
        Face::OldTls
    ))),
    case!("CON-003", Both, Happy, Listen, "it calls the method as gRPC does", |k| Box::pin(calls_well(k))),
    case!("CON-003", Both, Hostile, Listen, "the server answers UNIMPLEMENTED", |k| Box::pin(
        refused_politely(k)
    )),
    case!("CON-003", Two, Happy, Target, "the method's path is served", |k| Box::pin(opens(k))),
    case!("CON-003", Two, Hostile, Target, "an unknown method", |k| Box::pin(unknown_path(
        k,
        "/conformance.Nowhere/EstablishStream"
    ))),
    case!("CON-003", Two, Hostile, Target, "a version that doesn't exist", |k| {
        Box::pin(unknown_path(k, "/federation.resourcediscovery.v9.DiscoveryService/EstablishStream"))
    }),
];

async fn opens(k: &mut Kit) -> Verdict {
    let mut stream = k.stream().await?;
    if k.dials() {
        stream.say(&stream.initial());
    }
    match stream.hear(k.deadline()).await {
        Heard::Headers | Heard::Said(_) => Ok("the stream is open".to_owned()),
        Heard::Nothing => Ok("the stream stays open; no headers yet".to_owned()),
        other => failed(format!("{other}")),
    }
}

/// A client that must not be served.
async fn turned_away(k: &mut Kit, face: Face) -> Verdict {
    let client = match k.dial_with(face, WINDOW).await {
        Ok(client) => client,
        Err(text) => return Ok(text),
    };
    let mut stream = client.stream();
    stream.say(&stream.initial());
    loop {
        match stream.hear(k.deadline()).await {
            Heard::Headers => {}
            Heard::Broken(text) => return Ok(format!("the connection was closed ({text})")),
            // PERMISSION_DENIED, UNAUTHENTICATED.
            heard @ Heard::End(7 | 16, _) => return Ok(format!("{heard}")),
            heard @ Heard::Http(401 | 403 | 421 | 426) => return Ok(format!("{heard}")),
            other => return failed(format!("{other} instead of a closed connection")),
        }
    }
}

async fn plaintext(k: &mut Kit) -> Verdict {
    let mut tcp = k.tcp().await.map_err(crate::kit::Stop::Failed)?;
    let _ = tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut first = [0; 9];
    match tokio::time::timeout(k.deadline(), tcp.read(&mut first)).await {
        Ok(Ok(0) | Err(_)) => Ok("the connection was closed".to_owned()),
        Ok(Ok(_)) if first[0] == TLS_ALERT => Ok("a TLS alert".to_owned()),
        Ok(Ok(_)) => failed(format!("bytes that are no TLS: {first:02x?}")),
        Err(_) => Ok("no answer".to_owned()),
    }
}

async fn silent_tcp(k: &mut Kit) -> Verdict {
    let _silent = k.tcp().await.map_err(crate::kit::Stop::Failed)?;
    opens(k).await.map(|seen| format!("beside it, {seen}"))
}

async fn newest_tls(k: &mut Kit) -> Verdict {
    let tls = k.tls(Face::Proper).await.map_err(crate::kit::Stop::Failed)?;
    let (_, session) = tls.get_ref();
    let protocol = session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned());
    match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => Ok(format!("TLS 1.3, ALPN {protocol:?}")),
        other => failed(format!("{other:?}, ALPN {protocol:?}")),
    }
}

async fn unknown_path(k: &mut Kit, path: &str) -> Verdict {
    let mut stream = k.dial().await?.call("POST", path, "application/grpc", &[]);
    stream.say(&stream.initial());
    match stream.ending(k.deadline()).await {
        heard @ Heard::End(UNIMPLEMENTED, _) => Ok(format!("{heard}")),
        other => failed(format!("{other} instead of UNIMPLEMENTED (12)")),
    }
}

async fn no_grpc(k: &mut Kit, method: &str, content_type: &str) -> Verdict {
    let path = k.version().path();
    let mut stream = k.dial().await?.call(method, &path, content_type, &[]);
    if method == "GET" {
        stream.half_close();
    } else {
        stream.say(&stream.initial());
    }
    match stream.ending(k.deadline()).await {
        heard @ (Heard::End(1.., _) | Heard::Http(400..=499) | Heard::Broken(_)) => Ok(format!("{heard}")),
        other => failed(format!("{other} instead of a refusal")),
    }
}

async fn large_headers(k: &mut Kit) -> Verdict {
    let (path, large) = (k.version().path(), "x".repeat(16 << 10));
    let mut stream = k.dial().await?.call("POST", &path, "application/grpc", &[("x-large", &large)]);
    stream.raw(Bytes::new());
    let heard = stream.ending(k.deadline()).await;
    k.recovers().await?;
    match heard {
        Heard::Nothing | Heard::End(0, _) => failed("they were taken".to_owned()),
        other => Ok(format!("{other}; a new connection is served")),
    }
}

/// A server that it must not talk to.
async fn shuns(k: &mut Kit, face: Face) -> Verdict {
    match k.accept_once(face, k.options.connect).await? {
        Accepted::Refused(text) => Ok(text),
        Accepted::Stream(mut stream, _) => match stream.hear(k.quiet()).await {
            Heard::Broken(text) => Ok(text),
            other => failed(format!("it opened a stream; then came {other}")),
        },
    }
}

async fn no_tls_server(k: &mut Kit) -> Verdict {
    let mut tcp = k.accept_tcp(k.options.connect).await?;
    let _ = tcp.write_all(b"\0\0\0\x04\0\0\0\0\0").await;
    let mut bytes = vec![];
    let mut limited = tcp.take(64 << 10);
    let _ = tokio::time::timeout(k.deadline(), limited.read_to_end(&mut bytes)).await;
    let talked = bytes.windows(4).any(|w| w == b"PRI " || w == b"fede");
    if talked {
        failed("it spoke HTTP/2 in clear text")
    } else {
        Ok(format!("{} bytes of TLS, no HTTP/2", bytes.len()))
    }
}

async fn calls_well(k: &mut Kit) -> Verdict {
    let (_stream, parts) = k.accept().await?;
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let content_type = header("content-type");
    if parts.method != http::Method::POST || !content_type.starts_with("application/grpc") {
        return failed(format!("{} with content type {content_type:?}", parts.method));
    }
    Ok(format!("POST, {content_type}, te: {:?}", header("te")))
}

async fn refused_politely(k: &mut Kit) -> Verdict {
    let (mut stream, _) = k.accept().await?;
    stream.end(UNIMPLEMENTED, "this version is not served");
    drop(stream);
    // Whatever it does next, it must not hammer.
    let mut again = 0;
    let counting = async {
        loop {
            match k.accept_once(Face::Proper, k.options.connect).await {
                Ok(Accepted::Stream(mut stream, _)) => {
                    stream.end(UNIMPLEMENTED, "this version is not served")
                }
                Ok(Accepted::Refused(_)) => {}
                Err(_) => std::future::pending().await,
            }
            again += 1;
        }
    };
    let window = std::time::Duration::from_secs(3);
    let _: Result<(), _> = tokio::time::timeout(window, counting).await;
    if again > 5 {
        failed(format!("it came back {again} times within 3 s"))
    } else {
        Ok(format!("it came back {again} times within 3 s"))
    }
}
