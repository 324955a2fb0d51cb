//! "Connected but silently not syncing", as an operator sees it: a real agent, peers over real TLS
//! and HTTP/2 that are connected and do nothing more, and the command line.
//!
//! The agent goes by a clock that the test moves, so nothing here waits for half a minute, and no
//! stall ends by itself before it was looked at.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::channel::mpsc;
use hamlet::cli::agent::AgentOptions;
use hamlet::config::init::{InitOptions, init};
use hamlet_core::{MeshName, TrustDomain};
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::dialect::v1alpha2::PATH;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::rpc;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use hamlet_runtime::{Clock, ManualClock, SystemClock};
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::tls::stranger_client;
use hamlet_testkit::{GENEROUS, eventually};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const T: fn(u64) -> Duration = Duration::from_secs;
/// The peer that says nothing of extensions, and the one that says that it is a Hamlet agent.
const PEERS: [&str; 2] = ["foreign", "agent"];

/// A mesh folder that knows [`PEERS`], with a service for the first of them.
fn folder(root: &Path, cas: &[TestCa; 2], clock: Arc<dyn Clock>) -> PathBuf {
    let folder = root.join("acme");
    let options = InitOptions {
        mesh: MeshName::parse("acme").unwrap(),
        trust_domain: TrustDomain::parse("acme.example").unwrap(),
        hosts: vec![],
        advertise: vec![],
        clock,
    };
    init(&folder, &options).unwrap();
    let mesh = "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {name: acme}
spec:
  trustDomain: acme.example
  identity:
    agent: {cert: identity/agent.pem, key: identity/agent.key}
    gateway: {cert: identity/gateway.pem, key: identity/gateway.key}
    ca: {cert: identity/ca.pem, key: identity/ca.key}
  listen: {agent: \"127.0.0.1:0\", ingress: \"127.0.0.1:0\", egressHttp: off, dns: off, admin: off}
  advertise: {ingress: [\"127.0.0.1:7444\"]}
  data: ../data
  socket: ../admin.sock
";
    fs::write(folder.join("mesh.yaml"), mesh).unwrap();
    fs::create_dir_all(folder.join("peers")).unwrap();
    for (peer, ca) in PEERS.iter().zip(cas) {
        fs::write(folder.join(format!("peers/{peer}.pem")), ca.pem()).unwrap();
        let (domain, agent, gateway) = (ca.trust_domain(), ca.agent_id(), ca.gateway_id());
        let text = format!(
            "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {{name: {peer}}}
spec:
  trustDomain: {domain}
  trust: {{bundle: peers/{peer}.pem}}
  agentIds: [\"{agent}\"]
  gatewayIds: [\"{gateway}\"]
"
        );
        fs::write(folder.join(format!("peer-{peer}.yaml")), text).unwrap();
    }
    let service = "\
apiVersion: hamlet.dev/v1
kind: Service
metadata: {name: ledger}
spec:
  fqdn: ledger.acme.example
  protocol: TCP
  port: 443
  backends: [\"127.0.0.1:9\"]
---
apiVersion: hamlet.dev/v1
kind: Publication
metadata: {name: ledger}
spec: {services: {names: [ledger]}, peers: [foreign]}
";
    fs::write(folder.join("service-ledger.yaml"), service).unwrap();
    for example in ["service-example.yaml", "publication-example.yaml", "peer-example.yaml"] {
        let _ = fs::remove_file(folder.join(example));
    }
    folder
}

type Piece = Result<Frame<Bytes>, std::convert::Infallible>;

/// A peer that is connected, and says only what it is told to say.
struct Silent {
    out: mpsc::UnboundedSender<Piece>,
    body: Incoming,
    buffer: BytesMut,
    /// Dropping it closes the connection.
    _connection: SendRequest<StreamBody<mpsc::UnboundedReceiver<Piece>>>,
}

impl Silent {
    /// Connects, and opens a stream that takes so many bytes at first.
    async fn connect(to: SocketAddr, ca: &TestCa, window: u32) -> Silent {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = "acme.example".to_owned().try_into().unwrap();
        let tls = TlsConnector::from(stranger_client(Some(&ca.agent()), &[b"h2"]));
        let tls = tls.connect(name, tcp).await.unwrap();
        let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        http.initial_stream_window_size(window);
        let (mut sender, connection) = http.handshake(TokioIo::new(tls)).await.unwrap();
        // The peer is no part of the agent: nobody supervises it.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(connection);
        let (out, body) = mpsc::unbounded();
        let request = http::Request::post(format!("https://acme.example{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(body))
            .unwrap();
        sender.ready().await.unwrap();
        let response = tokio::time::timeout(GENEROUS, sender.send_request(request)).await.unwrap().unwrap();
        Silent { out, body: response.into_body(), buffer: BytesMut::new(), _connection: sender }
    }

    fn say(&self, request: pb::StreamRequest) {
        let message = pb::BidirectionalStream { request: Some(request), response: None }.encode_to_vec();
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(&message);
        self.out.unbounded_send(Ok(Frame::data(frame.freeze()))).unwrap();
    }

    /// The first offer that comes.
    async fn offer(&mut self) -> pb::StreamResponse {
        loop {
            if self.buffer.len() >= 5 {
                let len = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + len {
                    let message = self.buffer.split_to(5 + len).split_off(5);
                    let message = pb::BidirectionalStream::decode(message).unwrap();
                    match message.response.filter(|r| r.resource.is_some()) {
                        Some(offer) => return offer,
                        None => continue,
                    }
                }
            }
            let frame = tokio::time::timeout(GENEROUS, self.body.frame()).await.unwrap();
            if let Ok(data) = frame.expect("the stream goes on").unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

fn subscription() -> pb::StreamRequest {
    pb::StreamRequest { resource_url: TYPE_URL.to_owned(), ..pb::StreamRequest::default() }
}

/// An agent's hello that promises no beats, so that its silence alone is no offence.
fn hello() -> ext::Control {
    let hello = ext::Hello {
        version: 1,
        agent: "silent".to_owned(),
        window_messages: 64,
        window_bytes: 1 << 20,
        log_id: vec![7; 16].into(),
        ..ext::Hello::default()
    };
    ext::Control { kind: Some(ext::control::Kind::Hello(hello)) }
}

/// What the command line says, by the real program.
fn cli(root: &Path, words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hamlet"))
        .args(words)
        .arg("--socket")
        .arg(root.join("admin.sock"))
        .env_clear()
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

fn state(root: &Path, peer: &str) -> Value {
    serde_json::from_str(&cli(root, &["get", "peer", peer, "-o", "json"])).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_connected_and_does_nothing_is_shown_as_stalled_with_its_reason_and_age() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let cas = PEERS.map(|peer| TestCa::new(&format!("{peer}.example")));
    let clock = ManualClock::at(SystemClock::new().wall());
    let options = AgentOptions {
        config: folder(root, &cas, clock.clone()),
        log_format: None,
        log_level: Some("warn".to_owned()),
        ready_file: Some(root.join("ready")),
    };
    let agent = {
        let clock = clock.clone();
        std::thread::spawn(move || hamlet::agent::run_by(&options, clock).map(|_| ()))
    };
    eventually("the agent is ready", GENEROUS, || root.join("ready").exists()).await;
    let ready: Value = serde_json::from_str(&fs::read_to_string(root.join("ready")).unwrap()).unwrap();
    let at: SocketAddr = ready["agent"].as_str().unwrap().parse().unwrap();

    // One takes the change and never answers; nothing is wrong with it before half a minute.
    let mut foreign = Silent::connect(at, &cas[0], 1 << 20).await;
    foreign.say(subscription());
    let offer = foreign.offer().await;
    clock.advance(T(20));
    let page = cli(root, &["get", "peers", "-o", "wide"]);
    assert!(!page.contains("talled"), "{page}");
    clock.advance(T(11));
    assert_eq!(state(root, "foreign")["state"]["kind"], "stalled");
    let reason = "the peer has left a change unanswered for 31s";
    for words in [&["get", "peers", "-o", "wide"][..], &["describe", "peer", "foreign"]] {
        let page = cli(root, words);
        assert!(page.contains("publish") && page.contains(reason), "{page}");
    }
    // It stays, and its age goes on: a foreign peer that was cut off would not come back.
    clock.advance(T(60));
    let page = cli(root, &["describe", "peer", "foreign"]);
    assert!(page.contains("unanswered for 1m31s") || page.contains("unanswered for 91s"), "{page}");
    foreign.say(pb::StreamRequest {
        response_nonce: offer.nonce,
        status: Some(rpc::Status::default()),
        ..subscription()
    });
    eventually("it answered", GENEROUS, || state(root, "foreign")["state"]["kind"] != "stalled").await;

    // The other is a Hamlet agent by its hello, and opens no window: nothing of ours gets out.
    let silent = Silent::connect(at, &cas[1], 0).await;
    silent.say(pb::StreamRequest { control: Some(hello()), ..subscription() });
    eventually("it is up", GENEROUS, || state(root, "agent")["hello"]["agent"] == "silent").await;
    clock.advance(T(36));
    let page = cli(root, &["describe", "peer", "agent"]);
    assert!(page.contains("the peer takes no data, and has not for 31s"), "{page}");
    let page = cli(root, &["get", "peers", "-o", "wide"]);
    assert!(page.contains("takes no data"), "{page}");
    // It is bounded: at the second look the stream ends, and says why.
    eventually("the stream is ended", GENEROUS, || {
        clock.advance(Duration::from_millis(200));
        state(root, "agent")["state"]["kind"] == "down"
    })
    .await;
    let ended = state(root, "agent");
    let said = ended["lastError"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(said.contains("takes no data"), "{ended}");
    drop((foreign, silent));
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    eventually("the agent has stopped", GENEROUS * 2, || agent.is_finished()).await;
    agent.join().unwrap().unwrap();
}
