//! A Workload API server: the wire as the SPIFFE Workload API says it (the service has no package),
//! written here anew so that it shares nothing with the client. The tests of two meshes use it as well.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// `X509SVIDRequest`: empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SvidRequest {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    pub(crate) federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Svid {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) hint: String,
}

impl Svid {
    /// What `leaf` is, of `ca`.
    pub(crate) fn of(id: &str, leaf: &TestLeaf, ca: &TestCa) -> Svid {
        Svid {
            spiffe_id: id.to_owned(),
            x509_svid: leaf.chain.iter().flat_map(|der| der.to_vec()).collect(),
            x509_svid_key: leaf.key().secret_der().to_vec(),
            bundle: ca.root().to_vec(),
            hint: String::new(),
        }
    }
}

/// What the server says: a full state, or a refusal.
pub(crate) type Word = Result<SvidResponse, Status>;

/// A running server; what it says can be changed.
pub(crate) struct Server {
    word: watch::Sender<Option<Word>>,
    /// How many streams were opened.
    pub(crate) opened: Arc<AtomicUsize>,
    stop: tokio::task::AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

impl Server {
    /// Serves at `socket`.
    #[allow(clippy::disallowed_methods, reason = "the other side of the wire, not ours")]
    pub(crate) fn start(socket: &Path, word: Word) -> Server {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (word, _) = watch::channel(Some(word));
        let opened = Arc::new(AtomicUsize::new(0));
        let service = Service { word: word.subscribe(), opened: opened.clone() };
        let accepting = async move {
            let mut streams = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = move |request: http::Request<hyper::body::Incoming>| {
                    service.clone().answer(request.map(tonic::body::Body::new))
                };
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
                streams.spawn(connection);
            }
        };
        let stop = tokio::spawn(accepting).abort_handle();
        Server { word, opened, stop }
    }

    /// Says something else, on streams that are open as well.
    pub(crate) fn say(&self, word: Word) {
        self.word.send_replace(Some(word));
    }

    /// Closes the open streams in order, and says that again on new ones.
    pub(crate) fn close_streams(&self, then: Word) {
        self.word.send_replace(None);
        self.word.send_replace(Some(then));
    }
}

#[derive(Clone)]
struct Service {
    word: watch::Receiver<Option<Word>>,
    opened: Arc<AtomicUsize>,
}

impl ServerStreamingService<SvidRequest> for Service {
    type Response = SvidResponse;
    type ResponseStream = BoxStream<'static, Result<SvidResponse, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<SvidRequest>) -> Self::Future {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let mut word = self.word.clone();
        Box::pin(async move {
            // Without it a Workload API must refuse (SPIFFE Workload Endpoint section 6).
            if request.metadata().get("workload.spiffe.io").is_none_or(|v| v != "true") {
                return Err(Status::invalid_argument("security header missing from request"));
            }
            word.mark_changed();
            let words = futures::stream::unfold((word, false), |(mut word, over)| async move {
                if over || word.changed().await.is_err() {
                    return None;
                }
                let now = word.borrow_and_update().clone()?;
                let over = now.is_err();
                Some((now, (word, over)))
            });
            Ok(Response::new(words.boxed()))
        })
    }
}

impl Service {
    async fn answer(
        self,
        request: http::Request<tonic::body::Body>,
    ) -> Result<http::Response<tonic::body::Body>, std::convert::Infallible> {
        if request.uri().path() != "/SpiffeWorkloadAPI/FetchX509SVID" {
            return Ok(Status::unimplemented("only FetchX509SVID").into_http());
        }
        let mut grpc = Grpc::new(ProstCodec::<SvidResponse, SvidRequest>::default());
        Ok(grpc.server_streaming(self, request).await)
    }
}
