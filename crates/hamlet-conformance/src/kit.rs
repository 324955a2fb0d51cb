//! What every case works with: fresh connections to (or from) the implementation under test, the
//! first steps of a subscription, and commands. Every wait is bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::{Shutdown, Spawner, Supervisor};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::options::{Options, Side};
use crate::process::{self, Started};
use crate::speech::{Offer, Operation, Role, Said, Service, Version};
use crate::stream::{Body, Heard, Stream, body, chain};
use crate::tls::{Face, Identity};

/// Most requests of one connection that wait for their case to take them.
const CALLS_WAITING: usize = 64;
/// gRPC status of a method that isn't there.
const UNIMPLEMENTED: i32 = 12;

/// Why a case has no good end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The requirement isn't met.
    Failed(String),
    /// It can't be judged here.
    NotApplicable(String),
}

/// What a case saw, or why it stopped.
pub type Verdict = Result<String, Stop>;

/// A failed requirement.
pub(crate) fn failed<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(text.into()))
}

/// Something that can't be judged.
pub(crate) fn not_applicable<T>(text: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::NotApplicable(text.into()))
}

/// Runs HTTP/2's tasks as children of the case.
#[derive(Clone)]
struct Tasks(Spawner);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn("http2", task);
    }
}

/// A connection that we dialled.
pub(crate) struct Client {
    sender: SendRequest<Body>,
    version: Version,
    them: Role,
    context: String,
}

impl Client {
    /// Opens the protocol's stream.
    pub(crate) fn stream(&self) -> Stream {
        self.call("POST", &self.version.path(), "application/grpc", &[])
    }

    /// Opens a stream with any request.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        headers: &[(&str, &str)],
    ) -> Stream {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("https://conformance.invalid{path}"))
            .header("content-type", content_type)
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // A request of the kit's own making that can't be built is told by what comes of it.
        let request = request.body(()).unwrap_or_default();
        Stream::dialled(self.version, self.them, &self.context, self.sender.clone(), request)
    }
}

type Call = (http::Request<Incoming>, oneshot::Sender<http::Response<Body>>);

/// What came of one connection to us.
pub(crate) enum Accepted {
    /// The protocol's stream was opened.
    Stream(Box<Stream>, Box<http::request::Parts>),
    /// TLS failed, or nothing was asked for.
    Refused(String),
}

/// What a case works with.
pub struct Kit {
    pub(crate) options: Arc<Options>,
    identity: Arc<Identity>,
    supervisor: Supervisor,
    started: Option<Started>,
    /// Unique names: the number of the case, and how many names it has taken.
    number: usize,
    names: usize,
    /// Paths of other methods that were asked for on the way.
    pub(crate) other_paths: Vec<String>,
    /// Names that were published for this case, to be deleted at its end.
    pub(crate) made: Vec<String>,
}

impl Kit {
    /// For one case.
    pub(crate) fn new(options: Arc<Options>, identity: Arc<Identity>, number: usize) -> Result<Kit, String> {
        let started = match (&options.start, &options.side) {
            (Some(command), Side::Listen(listener)) => {
                let address = listener.local_addr().map_err(|e| e.to_string())?;
                Some(Started::start(command, &address.to_string())?)
            }
            (Some(command), Side::Target(address)) => Some(Started::start(command, address)?),
            (None, _) => None,
        };
        let supervisor = Supervisor::new(Shutdown::new());
        Ok(Kit {
            options,
            identity,
            supervisor,
            started,
            number,
            names: 0,
            other_paths: vec![],
            made: vec![],
        })
    }

    /// Closes everything of the case, and ends what it started.
    pub(crate) async fn close(self) {
        for name in &self.made {
            // It may be gone already.
            let _ = self.publish("delete", name).await;
        }
        self.supervisor.stop(Duration::ZERO, Duration::from_secs(1)).await;
        if let Some(started) = self.started {
            started.stop().await;
        }
        if let Side::Listen(listener) = &self.options.side {
            // Whoever is still in the queue has been left alone for too long.
            if self.options.start.is_some() {
                while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await
                {
                }
            }
        }
    }

    /// The version that is tested.
    pub fn version(&self) -> Version {
        self.options.version
    }

    /// How long something may take.
    pub fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// How long is waited for what must not come.
    pub fn quiet(&self) -> Duration {
        self.options.quiet
    }

    /// Whether we dial.
    pub(crate) fn dials(&self) -> bool {
        matches!(self.options.side, Side::Target(_))
    }

    /// TCP to the target.
    pub(crate) async fn tcp(&self) -> Result<TcpStream, String> {
        let Side::Target(address) = &self.options.side else { return Err("we listen".to_owned()) };
        let mut last = "no time".to_owned();
        let connecting = async {
            loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => return stream,
                    // It may be starting.
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let connected = tokio::time::timeout(self.deadline(), connecting).await;
        let stream = connected.map_err(|_| format!("cannot connect to {address}: {last}"))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// TLS to the target; the protocol and the version of TLS that were chosen.
    pub(crate) async fn tls(&self, face: Face) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let tcp = self.tcp().await?;
        let config = self.identity.client(face).map_err(|e| e.to_string())?;
        let name = self.identity.server_name().map_err(|e| e.to_string())?;
        let handshake = TlsConnector::from(config).connect(name, tcp);
        match tokio::time::timeout(self.deadline(), handshake).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => Err(format!("TLS failed: {}", chain(&error))),
            Err(_) => Err("no complete TLS handshake in time".to_owned()),
        }
    }

    /// HTTP/2 to the target; `window` is how many bytes of a stream it may send unasked.
    pub(crate) async fn dial_with(&self, face: Face, window: u32) -> Result<Client, String> {
        let tls = self.tls(face).await?;
        let tasks = Tasks(self.supervisor.spawner());
        let mut builder = hyper::client::conn::http2::Builder::new(tasks.clone());
        builder.initial_stream_window_size(window).initial_connection_window_size(window.max(65_535));
        let handshake = builder.handshake::<_, Body>(TokioIo::new(tls));
        let shaken = tokio::time::timeout(self.deadline(), handshake).await;
        let (sender, connection) = match shaken {
            Ok(Ok(shaken)) => shaken,
            Ok(Err(error)) => return Err(format!("HTTP/2 failed: {}", chain(&error))),
            Err(_) => return Err("no HTTP/2 in time".to_owned()),
        };
        tasks.execute(async move {
            let _ = connection.await;
        });
        let Options { version, role, context, .. } = &*self.options;
        Ok(Client { sender, version: *version, them: *role, context: context.clone() })
    }

    /// HTTP/2 to the target as a good peer does it.
    pub(crate) async fn dial(&self) -> Result<Client, Stop> {
        self.dial_with(Face::Proper, 1 << 20).await.map_err(Stop::Failed)
    }

    fn listener(&self) -> Result<Arc<TcpListener>, Stop> {
        match &self.options.side {
            Side::Listen(listener) => Ok(listener.clone()),
            Side::Target(_) => not_applicable("the implementation under test doesn't dial here"),
        }
    }

    /// Waits for a connection to us.
    pub(crate) async fn accept_tcp(&self, within: Duration) -> Result<TcpStream, Stop> {
        let listener = self.listener()?;
        match tokio::time::timeout(within, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => not_applicable(format!("accepting failed: {error}")),
            Err(_) => failed(format!("nobody connected within {} s", within.as_secs())),
        }
    }

    /// Takes one connection to us, up to its first request for the protocol's stream. Requests for
    /// other methods are answered with UNIMPLEMENTED.
    pub(crate) async fn accept_once(&mut self, face: Face, within: Duration) -> Result<Accepted, Stop> {
        let tcp = self.accept_tcp(within).await?;
        let config = self.identity.server(face).map_err(|e| Stop::NotApplicable(e.to_string()))?;
        let handshake = TlsAcceptor::from(config).accept(tcp);
        let tls = match tokio::time::timeout(self.deadline(), handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return Ok(Accepted::Refused(format!("TLS failed: {}", chain(&error)))),
            Err(_) => return Ok(Accepted::Refused("no complete TLS handshake in time".to_owned())),
        };
        let (calls, mut waiting) = mpsc::channel::<Call>(CALLS_WAITING);
        let service = hyper::service::service_fn(move |request| {
            let calls = calls.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let _ = calls.send((request, answer)).await;
                let gone = |_| std::io::Error::other("the case has ended");
                answered.await.map_err(gone)
            }
        });
        let tasks = Tasks(self.supervisor.spawner());
        let mut builder = hyper::server::conn::http2::Builder::new(tasks.clone());
        builder.initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 20);
        let connection = builder.serve_connection(TokioIo::new(tls), service);
        tasks.execute(async move {
            let _ = connection.await;
        });
        let Options { version, role, context, .. } = &*self.options.clone();
        let other_paths = &mut self.other_paths;
        let wanted = async {
            while let Some((request, answer)) = waiting.recv().await {
                let (parts, inbound) = request.into_parts();
                if parts.uri.path() == version.path() {
                    let stream = Stream::accepted(*version, *role, context, inbound, answer);
                    return Some((Box::new(stream), Box::new(parts)));
                }
                other_paths.push(parts.uri.path().to_owned());
                let _ = answer.send(unimplemented());
            }
            None
        };
        let taken = tokio::time::timeout(self.options.deadline, wanted).await;
        // Further calls on this connection are nobody's.
        self.supervisor.spawner().spawn("calls", async move {
            while let Some((_, answer)) = waiting.recv().await {
                let _ = answer.send(unimplemented());
            }
        });
        Ok(match taken {
            Ok(Some((stream, parts))) => Accepted::Stream(stream, parts),
            Ok(None) => Accepted::Refused("the connection ended before a stream was opened".to_owned()),
            Err(_) => Accepted::Refused("no stream was opened in time".to_owned()),
        })
    }

    /// Takes the next stream that is opened to us.
    pub(crate) async fn accept(&mut self) -> Result<(Stream, http::request::Parts), Stop> {
        let mut refused = VecDeque::new();
        // Tries that led nowhere: connections that were given up while nobody listened.
        while refused.len() < 8 {
            match self.accept_once(Face::Proper, self.options.connect).await? {
                Accepted::Stream(stream, parts) => return Ok((*stream, *parts)),
                Accepted::Refused(text) => refused.push_back(text),
            }
        }
        failed(format!("it connects, but opens no stream: {}", refused.pop_back().unwrap_or_default()))
    }

    /// A fresh stream on a fresh connection, on which nothing was said.
    pub(crate) async fn stream(&mut self) -> Result<Stream, Stop> {
        if self.dials() { Ok(self.dial().await?.stream()) } else { Ok(self.accept().await?.0) }
    }

    /// A stream on which an owner under test was asked for its services.
    pub(crate) async fn subscribed(&mut self) -> Result<Stream, Stop> {
        let mut stream = self.stream().await?;
        stream.say(&stream.initial());
        Ok(stream)
    }

    /// A stream on which a consumer under test has asked for ours.
    pub(crate) async fn publishing(&mut self) -> Result<Stream, Stop> {
        let mut stream = self.stream().await?;
        let two = self.version() == Version::V1alpha2;
        if two && self.dials() {
            stream.say(&stream.initial());
        }
        stream.start();
        match stream.next_ask(self.deadline()).await {
            Ok(ask) if ask.is_initial() => {}
            Ok(ask) => return failed(format!("{:?} instead of an initial request", ask.nonce)),
            Err(heard) => return failed(format!("{heard} instead of an initial request")),
        }
        if two && !self.dials() {
            stream.say(&stream.initial());
        }
        Ok(stream)
    }

    /// A name that no other case uses.
    pub(crate) fn name(&mut self) -> String {
        self.names += 1;
        format!("kit-c{}-{}", self.number, self.names)
    }

    /// A service that a consumer under test has to take.
    pub(crate) fn service(&mut self) -> Service {
        let name = self.name();
        let template = &self.options.template;
        let fqdn = format!("{name}.{}", template.domain);
        let two = self.version() == Version::V1alpha2;
        Service {
            // The id of v1alpha1 is also the SNI.
            key: if two { name } else { fqdn.clone() },
            description: "made by the conformance kit".to_owned(),
            sans: vec![template.san.clone()],
            protocols: vec!["HTTP2".to_owned()],
            endpoints: vec![(template.address.clone(), template.port.into())],
            metadata: if two { vec![("SNI".to_owned(), fqdn.clone())] } else { vec![] },
            fqdn,
            ..Service::default()
        }
    }

    /// An offer of a good service.
    pub(crate) fn good_offer(&mut self, stream: &Stream) -> Offer {
        let service = self.service();
        let nonce = format!("n-{}", service.key);
        let create = self.version().operation(Operation::Create);
        stream.offer(&nonce, &service.key, create, service.encode(self.version()))
    }

    /// A consumer under test still takes good offers on this stream.
    pub(crate) async fn lives(&mut self, stream: &mut Stream) -> Result<(), Stop> {
        let offer = self.good_offer(stream);
        stream.say(&Said::offer(offer.clone()));
        match stream.answer_to(&offer.nonce, self.deadline()).await {
            crate::stream::Answer::Ack(_) => Ok(()),
            other => failed(format!("a good offer afterwards got {other}")),
        }
    }

    /// The implementation serves a new stream, or at least has not ended.
    pub(crate) async fn recovers(&mut self) -> Result<(), Stop> {
        if self.started.is_some() {
            // What a message has killed may take a moment to die.
            tokio::time::sleep(self.quiet()).await;
        }
        if let Some(ended) = self.started.as_mut().and_then(Started::ended) {
            return failed(format!("the implementation under test ended: {ended}"));
        }
        if !self.dials() {
            return Ok(());
        }
        let told = |stop| match stop {
            Stop::Failed(text) => Stop::Failed(format!("afterwards, on a new connection: {text}")),
            other => other,
        };
        match self.options.role {
            Role::Consumer => {
                let mut stream = self.publishing().await.map_err(told)?;
                self.lives(&mut stream).await.map_err(told)
            }
            Role::Owner => {
                let mut stream = self.subscribed().await?;
                match stream.next_offer(self.deadline()).await {
                    Ok(_) => Ok(()),
                    Err(Heard::Nothing) if self.options.publish.is_none() => {
                        not_applicable("the owner offers nothing; give --publish-cmd")
                    }
                    Err(heard) => failed(format!("afterwards, a new subscription got {heard}")),
                }
            }
        }
    }

    /// Provokes a change in an owner under test.
    pub(crate) async fn publish(&self, verb: &str, name: &str) -> Result<(), Stop> {
        match &self.options.publish {
            Some(command) => process::publish(command, verb, name).await.map_err(Stop::NotApplicable),
            None => not_applicable("needs --publish-cmd"),
        }
    }

    /// The next offer of an owner under test. That there is none is its fault only if we know that
    /// it has some.
    pub(crate) async fn offer(&self, stream: &mut Stream) -> Result<Offer, Stop> {
        match stream.next_offer(self.deadline()).await {
            Ok(offer) => Ok(offer),
            Err(Heard::Nothing) if self.options.publish.is_none() => {
                not_applicable("the owner offers too little; give --publish-cmd")
            }
            Err(heard) => failed(format!("{heard} instead of an offer")),
        }
    }

    /// Takes and acknowledges until nothing more comes.
    pub(crate) async fn settle(&self, stream: &mut Stream) -> Result<Vec<Offer>, Stop> {
        let mut all = vec![self.offer(stream).await?];
        stream.ack(&all[0].clone());
        loop {
            match stream.next_offer(self.quiet()).await {
                Ok(offer) => {
                    stream.ack(&offer);
                    all.push(offer);
                }
                Err(Heard::Nothing) => return Ok(all),
                Err(heard) => return failed(format!("{heard} during the full state")),
            }
        }
    }

    /// Acknowledges until an offer about `name` comes.
    pub(crate) async fn until_offer(&self, stream: &mut Stream, name: &str) -> Result<Offer, Stop> {
        let wanted = async {
            loop {
                let offer = stream.next_offer(self.deadline()).await;
                match offer {
                    Ok(offer) => {
                        stream.ack(&offer);
                        if about(&offer, name, self.version()) {
                            return Ok(offer);
                        }
                    }
                    Err(heard) => return failed(format!("{heard} instead of an offer of {name}")),
                }
            }
        };
        match tokio::time::timeout(self.deadline() * 2, wanted).await {
            Ok(found) => found,
            Err(_) => failed(format!("no offer of {name} in time")),
        }
    }
}

fn unimplemented() -> http::Response<Body> {
    let (_, body) = body();
    let mut response = http::Response::new(body);
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", http::HeaderValue::from(UNIMPLEMENTED));
    response
}

/// Whether an offer is about a service of that name, whatever it is keyed by.
pub(crate) fn about(offer: &Offer, name: &str, version: Version) -> bool {
    let named = |service: Service| service.key.contains(name) || service.fqdn.contains(name);
    let resource = offer.resource.as_ref().and_then(|any| Service::decode(version, &any.value).ok());
    offer.resource_id.contains(name) || resource.is_some_and(named)
}
