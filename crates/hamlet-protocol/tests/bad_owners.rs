//! A trusted peer that we dial and that misbehaves as a server, over real sockets: each thing is
//! shown for what it is, dialled again slowly, and the honest peer gets its next change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use hamlet_protocol::link::{Connection, LinkStatus};
use hamlet_protocol::session::PeerClass;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::tls::stranger_server;
use hamlet_testkit::{GENEROUS, eventually, eventually_ok};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

mod common;
use common::agent::CONTEXT;
use common::raw::{framed, offers, subscription, upsert};
use common::stage::Stage;

/// What the server does with a connection.
#[derive(Debug, Clone)]
enum Manner {
    /// Takes the socket and says nothing.
    SilentSocket,
    /// Says something that isn't TLS.
    NotTls,
    /// Completes TLS, then says something that isn't HTTP/2.
    NotHttp2,
    /// Completes TLS and closes.
    Hangup,
    /// Answers with this HTTP status and these headers, and nothing more.
    Headers(u16, Vec<(&'static str, &'static str)>),
    /// Answers 200, writes this, and ends with these trailers (none: keeps the stream open).
    Body(Vec<Bytes>, Option<Vec<(&'static str, &'static str)>>),
    /// Never answers the request.
    NoHeaders,
}

type AnswerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

struct Server {
    address: SocketAddr,
    dials: Arc<AtomicUsize>,
}

impl Server {
    async fn start(leaf: &TestLeaf, manner: Manner) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dials = Arc::new(AtomicUsize::new(0));
        let (counted, acceptor) = (dials.clone(), TlsAcceptor::from(stranger_server(leaf, &[b"h2"])));
        // The hostile server is no part of the agent: nobody supervises it.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(behave(socket, acceptor.clone(), manner.clone()));
            }
        });
        Server { address, dials }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

async fn behave(mut socket: TcpStream, acceptor: TlsAcceptor, manner: Manner) {
    let mut sink = vec![];
    match manner {
        Manner::SilentSocket => drop(socket.read_to_end(&mut sink).await),
        Manner::NotTls => {
            let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await;
            let _ = socket.read_to_end(&mut sink).await;
        }
        _ => {
            let Ok(mut tls) = acceptor.accept(socket).await else { return };
            match manner {
                Manner::Hangup => drop(tls.shutdown().await),
                Manner::NotHttp2 => {
                    let _ = tls.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
                    let _ = tls.read_to_end(&mut sink).await;
                }
                _ => {
                    let service = hyper::service::service_fn(move |request| answer(request, manner.clone()));
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = http2.serve_connection(TokioIo::new(tls), service).await;
                }
            }
        }
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> http::HeaderMap {
    let pair = |(k, v): &(&'static str, &'static str)| {
        (http::HeaderName::from_static(k), http::HeaderValue::from_static(v))
    };
    pairs.iter().map(pair).collect()
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    manner: Manner,
) -> Result<http::Response<AnswerBody>, std::convert::Infallible> {
    let (status, more, frames, open) = match manner {
        Manner::Headers(status, more) => (status, more, vec![], false),
        Manner::Body(messages, trailers) => {
            let open = trailers.is_none();
            let data = messages.into_iter().map(Frame::data);
            let end = trailers.map(|t| Frame::trailers(headers(&t)));
            (200, vec![("content-type", "application/grpc")], data.chain(end).collect::<Vec<_>>(), open)
        }
        _ => std::future::pending().await,
    };
    // What the agent says is read to the end, so that nothing but our manner ends the stream.
    let mut said = request.into_body();
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move { while let Some(Ok(_)) = said.frame().await {} });
    let body = futures::stream::iter(frames.into_iter().map(Ok::<_, std::convert::Infallible>));
    let body = match open {
        true => StreamBody::new(body.chain(futures::stream::pending())).boxed_unsync(),
        false => StreamBody::new(body).boxed_unsync(),
    };
    let mut response = http::Response::new(body);
    *response.status_mut() = status.try_into().unwrap();
    response.headers_mut().extend(headers(&more));
    Ok(response)
}

fn message(message: pb::BidirectionalStream) -> Bytes {
    framed(&message.encode_to_vec())
}

async fn stage(manner: Manner) -> (Stage, Server) {
    let evil = TestCa::new("evil.example");
    let leaf = evil.agent();
    let server = Server::start(&leaf, manner).await;
    (Stage::with(evil, leaf, Some(server.address)).await, server)
}

fn is_refused(status: &LinkStatus) -> bool {
    matches!(status.connection, Connection::Refused { .. })
}

fn is_down(status: &LinkStatus) -> bool {
    matches!(status.connection, Connection::Down { .. })
}

/// The link comes to be shown in this way with a text that contains `text`; and the server isn't
/// dialled in a fast loop while the honest peer is served.
async fn shown(manner: Manner, fits: fn(&LinkStatus) -> bool, text: &str) {
    let what = format!("{manner:?}");
    let what = what.chars().take(80).collect::<String>();
    let (stage, server) = stage(manner).await;
    let error = eventually_ok(&format!("{what} is shown with {text:?}"), GENEROUS, async || {
        let status = stage.status();
        let error = status.last_error.clone().filter(|e| fits(&status) && e.contains(text));
        error.ok_or((status.connection, status.last_error))
    })
    .await;
    assert!(!error.chars().any(char::is_control), "{error:?}");
    assert!(!error.contains(CONTEXT), "a context value is never shown");
    stage.still_serves().await;
    // Full jitter from a second on: this many at once would be a loop.
    assert!(server.dials() < 12, "{what}: dialled {} times", server.dials());
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_well_before_a_word_points_at_the_context_value() {
    let ok = || vec![("grpc-status", "0")];
    let alone = vec![("content-type", "application/grpc"), ("grpc-status", "0")];
    shown(Manner::Headers(200, alone), is_refused, "check the context value").await;
    shown(Manner::Body(vec![], Some(ok())), is_refused, "check the context value").await;
    // Its neighbour, which said something first, merely ended.
    let word = vec![message(subscription())];
    shown(Manner::Body(word, Some(ok())), is_down, "the peer ended the stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shown_with_its_reason_and_dialled_again_slowly() {
    let status = |code, text| {
        vec![("content-type", "application/grpc"), ("grpc-status", code), ("grpc-message", text)]
    };
    shown(Manner::Headers(200, status("16", "not%20federated")), is_refused, "not federated").await;
    shown(Manner::Headers(200, status("3", "a%0Ab%1B[31m")), is_refused, "a\\u{a}b\\u{1b}[31m").await;
    shown(Manner::Headers(200, status("12", "v1alpha1%20only")), is_refused, "v1alpha1 only").await;
    shown(Manner::Headers(200, status("14", "starting")), is_down, "starting").await;
    shown(Manner::Headers(401, vec![]), is_refused, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_grpc_answer_is_shown_as_what_it_is() {
    shown(Manner::Headers(404, vec![]), is_refused, "404").await;
    shown(Manner::Headers(503, vec![("content-type", "text/html")]), is_down, "503").await;
    shown(Manner::Body(vec![Bytes::from_static(b"<html>")], Some(vec![])), is_down, "").await;
    shown(Manner::Body(vec![], Some(vec![])), |s| is_down(s) || is_refused(s), "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_message_can_be_ends_the_stream_and_is_not_asked_for_again_at_once() {
    let over = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    shown(Manner::Body(vec![message(subscription()), over], None), is_refused, "").await;
    let undecodable = framed(b"\x0a\xff\xff\xff");
    shown(Manner::Body(vec![message(subscription()), undecodable], None), is_refused, "BidirectionalStream")
        .await;
    let unknown_frame = Bytes::from_static(&[9, 0, 0, 0, 0]);
    shown(Manner::Body(vec![unknown_frame], None), is_down, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_speaks_is_given_up_after_a_while() {
    shown(Manner::SilentSocket, is_down, "no complete handshake within 5 s").await;
    shown(Manner::NotTls, is_down, "TLS with").await;
    shown(Manner::Hangup, is_down, "").await;
    shown(Manner::NotHttp2, is_down, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_headers_is_foreign_after_a_while_and_never_proven() {
    let (stage, server) = stage(Manner::NoHeaders).await;
    eventually("foreign", GENEROUS, || stage.status().class == PeerClass::Foreign).await;
    assert!(!stage.link().is_proven());
    let dials = server.dials();
    stage.still_serves().await;
    assert_eq!(server.dials(), dials, "that is no reason to dial again");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_changes_of_a_server_are_refused_and_the_good_ones_beside_them_taken() {
    let good = || upsert("good", "n");
    let words = vec![
        // It speaks before it subscribes, and says much that is wrong; then one good thing.
        message(offers(pb::StreamResponse { resource: None, ..good() })),
        message(subscription()),
        message(subscription()),
        message(pb::BidirectionalStream::default()),
        message(offers(pb::StreamResponse { operation: 7, ..good() })),
        message(offers(pb::StreamResponse { resource_url: "other".into(), ..good() })),
        message(offers(pb::StreamResponse { resource_id: "\u{1b}[31m".into(), ..good() })),
        framed(&vec![0x52; 70_000]),
        message(offers(good())),
    ];
    // The last but one isn't a message; without it everything else is taken.
    let (stage, _server) =
        stage(Manner::Body(words.iter().filter(|w| w.len() < 70_000).cloned().collect(), None)).await;
    eventually("taken", GENEROUS, || stage.bank.imports() == ["good.evil.example"]).await;
    let status = stage.status();
    assert_eq!(status.violations, 3);
    let shown: Vec<&str> = status.refused.iter().map(|(key, _, _)| key.as_str()).collect();
    assert_eq!(shown, ["\\u{1b}[31m"], "a refused key is shown without control characters");
    stage.close().await;
    shown_ends(words).await;
}

async fn shown_ends(words: Vec<Bytes>) {
    shown(Manner::Body(words, None), is_refused, "BidirectionalStream").await;
}
