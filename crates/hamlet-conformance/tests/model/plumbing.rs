//! Sockets, TLS, HTTP/2 and frames of the models.
#![allow(clippy::disallowed_methods, reason = "a model is no part of the agent: nobody supervises it")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::channel::mpsc;
use futures::{Stream, StreamExt};
use hamlet_conformance::{Role, Version, framed};
use hamlet_testkit::pki::TestCa;
use http_body_util::{BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Fault, Stage, consumer, owner};

/// Largest message that a model takes, in bytes.
const MESSAGE_BYTES: usize = 4 << 20;

type OutItem = Result<Frame<Bytes>, Infallible>;
type Body = StreamBody<mpsc::UnboundedReceiver<OutItem>>;
type Inbound = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// What a model session knows.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) version: Version,
    pub(crate) fault: Fault,
    pub(crate) services: std::path::PathBuf,
    pub(crate) dialled: bool,
}

/// Why no further message comes.
pub(crate) enum Stop {
    /// The other side has ended, or is gone.
    Gone,
    /// What it sent is no message: code and text.
    Bad(i32, &'static str),
}

/// The messages of the other side.
pub(crate) struct Frames {
    inbound: Inbound,
    buffer: BytesMut,
}

impl Frames {
    pub(crate) async fn next(&mut self) -> Result<Bytes, Stop> {
        loop {
            if let Some(header) = self.buffer.get(..5) {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
                if header[0] != 0 {
                    return Err(Stop::Bad(12, "compression"));
                }
                if length > MESSAGE_BYTES {
                    return Err(Stop::Bad(8, "too large"));
                }
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Ok(self.buffer.split_to(length).freeze());
                }
            }
            match self.inbound.next().await {
                Some(Ok(data)) => self.buffer.put(data),
                Some(Err(_)) | None => return Err(Stop::Gone),
            }
        }
    }
}

/// Where a model writes.
pub(crate) struct Out(mpsc::UnboundedSender<OutItem>);

impl Out {
    pub(crate) fn bytes(&self, message: &[u8]) {
        let _ = self.0.unbounded_send(Ok(Frame::data(framed(message))));
    }

    pub(crate) fn end(&self, code: i32, text: &'static str) {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from(code));
        trailers.insert("grpc-message", http::HeaderValue::from_static(text));
        let _ = self.0.unbounded_send(Ok(Frame::trailers(trailers)));
    }
}

fn roots(ca: &TestCa) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root().clone()).unwrap();
    Arc::new(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn server_config(stage: &Stage) -> Arc<ServerConfig> {
    let leaf = stage.model.agent();
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let builder = if stage.fault == Fault::TrustsAnyone {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&stage.kit), provider());
        builder.with_client_cert_verifier(verifier.build().unwrap())
    };
    let mut config = builder.with_single_cert(leaf.chain.clone(), leaf.key()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn client_config(stage: &Stage) -> Arc<ClientConfig> {
    let leaf = stage.model.agent();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(&stage.kit), provider()).build().unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(leaf.chain.clone(), leaf.key())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn session(role: Role, model: Model, frames: Frames, out: Out) {
    match role {
        Role::Owner => owner::session(model, frames, out).await,
        Role::Consumer => consumer::session(model, frames, out).await,
    }
}

/// A model that accepts, for as long as the test's runtime lives.
pub(crate) async fn serve(stage: &Stage, role: Role) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (config, fault) = (server_config(stage), stage.fault);
    let model = Model { version: stage.version, fault, services: stage.services(), dialled: false };
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (config, model) = (config.clone(), model.clone());
            tokio::spawn(async move {
                let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await else { return };
                if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                    return;
                }
                let service = hyper::service::service_fn(move |request| {
                    let answer = called(request, role, model.clone());
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(4).max_header_list_size(8 << 10);
                let _ = builder.serve_connection(TokioIo::new(tls), service).await;
            });
        }
    });
    address
}

fn refusal(http: u16, grpc: Option<i32>) -> http::Response<Body> {
    let (_, body) = mpsc::unbounded();
    let mut response = http::Response::new(StreamBody::new(body));
    *response.status_mut() = http::StatusCode::from_u16(http).unwrap();
    if let Some(code) = grpc {
        response.headers_mut().insert("grpc-status", http::HeaderValue::from(code));
    }
    response
}

async fn called(request: http::Request<Incoming>, role: Role, model: Model) -> http::Response<Body> {
    if request.uri().path() != model.version.path() {
        return refusal(200, Some(12));
    }
    let content_type = request.headers().get("content-type").cloned();
    if request.method() != http::Method::POST || content_type.is_none_or(|c| c != "application/grpc") {
        return refusal(415, None);
    }
    let (out, body) = mpsc::unbounded();
    let inbound = BodyStream::new(request.into_body()).filter_map(|frame| async {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(error.to_string())),
        }
    });
    let late = model.fault == Fault::LateHeaders;
    let frames = Frames { inbound: Box::pin(inbound), buffer: BytesMut::new() };
    tokio::spawn(session(role, model, frames, Out(out)));
    let mut body = Box::pin(body.peekable());
    if late {
        body.as_mut().peek().await;
    }
    let (again, rest) = mpsc::unbounded();
    tokio::spawn(async move {
        while let Some(item) = body.next().await {
            if again.unbounded_send(item).is_err() {
                break;
            }
        }
    });
    let mut response = http::Response::new(StreamBody::new(rest));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
}

/// A model that dials, again and again.
pub(crate) fn dial_for_ever(stage: &Stage, role: Role, address: SocketAddr) -> JoinHandle<()> {
    let (config, fault, version) = (client_config(stage), stage.fault, stage.version);
    let model = Model { version, fault, services: stage.services(), dialled: true };
    let pause = if fault == Fault::Hammers { Duration::from_millis(20) } else { Duration::from_millis(700) };
    tokio::spawn(async move {
        loop {
            let _ = dial(&config, role, address, &model).await;
            if fault == Fault::NeverReturns {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(pause).await;
        }
    })
}

async fn dial(
    config: &Arc<ClientConfig>,
    role: Role,
    address: SocketAddr,
    model: &Model,
) -> Result<(), Box<dyn std::error::Error>> {
    let tcp = TcpStream::connect(address).await?;
    let name = "kit.example".to_owned().try_into()?;
    let tls = TlsConnector::from(config.clone()).connect(name, tcp).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
    let (mut sender, connection) = handshake?;
    let driver = tokio::spawn(connection);
    let (out, body) = mpsc::unbounded();
    let request = http::Request::post(format!("https://kit.example{}", model.version.path()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(body))?;
    let response = sender.send_request(request);
    let inbound: Inbound = if model.fault == Fault::WaitsForHeaders {
        let body = response.await?.into_body();
        Box::pin(BodyStream::new(body).filter_map(data))
    } else {
        let body = async move { response.await.map(|r| BodyStream::new(r.into_body())) };
        Box::pin(futures::stream::once(body).flat_map(|opened| match opened {
            Ok(body) => body.filter_map(data).boxed(),
            Err(error) => futures::stream::once(async move { Err(error.to_string()) }).boxed(),
        }))
    };
    session(role, model.clone(), Frames { inbound, buffer: BytesMut::new() }, Out(out)).await;
    driver.abort();
    Ok(())
}

async fn data(frame: Result<Frame<Bytes>, hyper::Error>) -> Option<Result<Bytes, String>> {
    match frame {
        Ok(frame) => frame.into_data().ok().map(Ok),
        Err(error) => Some(Err(error.to_string())),
    }
}
