//! A server that behaves on the wire as the Go library's does: headers only with the first
//! message, and whatever else it is told to do, by version.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use futures::channel::mpsc;
use hamlet_protocol::dialect::Dialect;
use hamlet_testkit::pki::TestLeaf;
use hamlet_testkit::tls::stranger_server;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::raw::framed;

/// What it does with a call.
#[derive(Debug, Clone)]
pub enum Does {
    /// Ends it at once with this gRPC status.
    Status(u8, &'static str),
    /// Answers with this HTTP status.
    Http(u16),
    /// Nothing until it is told to say something; headers come with that.
    Go,
}

type Frames = mpsc::UnboundedSender<Frame<Bytes>>;
type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

#[derive(Default)]
struct Seen {
    asked: Vec<Dialect>,
    /// The newest open call.
    open: Option<Frames>,
    /// What was said in it, frame after frame.
    heard: BytesMut,
}

/// A running server.
pub struct GoServer {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Its certificate.
    pub leaf: TestLeaf,
}

impl GoServer {
    /// Starts it with a certificate.
    pub async fn start(leaf: TestLeaf, does: impl Fn(Dialect) -> Does + Send + Sync + 'static) -> GoServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let acceptor = TlsAcceptor::from(stranger_server(&leaf, &[b"h2"]));
        let (shared, does) = (seen.clone(), Arc::new(does));
        // It is no part of the agent: nobody supervises it.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, shared, does) = (acceptor.clone(), shared.clone(), does.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(socket).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, shared.clone(), does.clone())
                    });
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = http2.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
        GoServer { address, seen, leaf }
    }

    /// The versions that it was asked for, call after call.
    pub fn asked(&self) -> Vec<Dialect> {
        self.seen.lock().asked.clone()
    }

    /// Says a message in the newest call.
    pub fn say(&self, message: &impl prost::Message) {
        self.raw(framed(&message.encode_to_vec()));
    }

    /// Says bytes in the newest call.
    pub fn raw(&self, bytes: Bytes) {
        let seen = self.seen.lock();
        let open = seen.open.as_ref().expect("an open call");
        open.unbounded_send(Frame::data(bytes)).expect("an open call");
    }

    /// Ends the newest call, with a gRPC status or without a word.
    pub fn end(&self, status: Option<u8>) {
        let Some(open) = self.seen.lock().open.take() else { return };
        if let Some(code) = status {
            let value = http::HeaderValue::from_str(&code.to_string()).unwrap();
            let trailers: http::HeaderMap =
                [(http::HeaderName::from_static("grpc-status"), value)].into_iter().collect();
            let _ = open.unbounded_send(Frame::trailers(trailers));
        }
    }

    /// All that was said to it in the newest call.
    pub fn heard<M: prost::Message + Default>(&self) -> Vec<M> {
        let mut rest = self.seen.lock().heard.clone();
        let mut messages = vec![];
        while rest.len() >= 5 {
            let length = u32::from_be_bytes([rest[1], rest[2], rest[3], rest[4]]) as usize;
            if rest.len() < 5 + length {
                break;
            }
            rest.advance(5);
            messages.push(M::decode(rest.split_to(length)).expect("a message"));
        }
        messages
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    shared: Arc<Mutex<Seen>>,
    does: Arc<impl Fn(Dialect) -> Does>,
) -> Result<http::Response<Body>, std::convert::Infallible> {
    let version = Dialect::of_path(request.uri().path()).expect("a method of the protocol");
    let does = does(version);
    let (frames, mut told) = mpsc::unbounded();
    {
        let mut seen = shared.lock();
        seen.asked.push(version);
        if matches!(does, Does::Go) {
            seen.open = Some(frames);
            seen.heard.clear();
        }
    }
    let mut response = match does {
        Does::Status(code, text) => {
            let mut response = http::Response::new(StreamBody::new(futures::stream::empty()).boxed_unsync());
            response.headers_mut().insert("grpc-status", code.to_string().parse().unwrap());
            response.headers_mut().insert("grpc-message", text.parse().unwrap());
            response
        }
        Does::Http(status) => {
            let mut response = http::Response::new(StreamBody::new(futures::stream::empty()).boxed_unsync());
            *response.status_mut() = status.try_into().unwrap();
            return Ok(response);
        }
        Does::Go => {
            let mut said = request.into_body();
            #[allow(clippy::disallowed_methods)]
            tokio::spawn(async move {
                while let Some(Ok(frame)) = said.frame().await {
                    if let Ok(data) = frame.into_data() {
                        shared.lock().heard.extend_from_slice(&data);
                    }
                }
            });
            let first = told.next().await;
            let frames = futures::stream::iter(first).chain(told).map(Ok::<_, std::convert::Infallible>);
            http::Response::new(StreamBody::new(frames).boxed_unsync())
        }
    };
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    Ok(response)
}
