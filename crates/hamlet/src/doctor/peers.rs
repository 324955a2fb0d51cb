//! Looks at each peer: its bundle, the way to its agent, and whether both sides prove themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hamlet_identity::{
    Authorities, Expect, GivenLists, Lenience, ListedCrl, LocalIdentity, PeerTrust, Role, TrustBundle,
    TrustTable, Validity, agent_client_config, peer_server_name, proven_server, refusal_in,
};
use hamlet_protocol::transport::HTTP2_OPENING;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::identity::Own;
use super::{AT_ONCE, Examination, Finding, age, of_expiry};
use crate::agent::bundles::{federated, given_lists, read_bundle};
use crate::agent::peers::{revoked, trusted};
use crate::config::{CrlFile, PeerAddress, PeerConfig};

/// All peers, several at a time, in order of their names.
pub(super) async fn all(look: &Examination<'_>, own: &Own) -> Vec<Finding> {
    let peers = look.config.peers.values();
    let looks = futures::stream::iter(peers).map(|peer| one(look, peer, own)).buffered(AT_ONCE);
    looks.collect::<Vec<_>>().await.concat()
}

async fn one(look: &Examination<'_>, peer: &PeerConfig, own: &Own) -> Vec<Finding> {
    let about = format!("peer/{}", peer.name);
    let mut findings = vec![];
    let given = own.workload_api.as_ref().and_then(|api| given_lists(api, peer));
    let believed = bundle(look, peer, own, &mut findings).map(|bundle| trusted(peer, bundle, given.clone()));
    findings.extend(peer.crl.as_ref().map(|crl| revocation(look, peer, crl)));
    findings.extend(given.and_then(|lists| given_revocation(look, peer, &lists)));
    if let Some(Err(error)) = peer.context.as_ref().map(|file| file.read()) {
        findings.push(Finding::of_error(&about, error));
    }
    if peer.paused {
        findings.push(Finding::pass(&about, "paused: not dialled"));
        return findings;
    }
    let Some(address) = &peer.address else {
        findings.push(Finding::pass(&about, "has no address: it dials us"));
        return findings;
    };
    // Without these there is no handshake, and a bare connection would only be noise over there.
    let (Some(Ok(believed)), Some(identity)) = (believed, &own.agent) else { return findings };
    let Some(stream) = connect(look, &about, address, &mut findings).await else { return findings };
    findings.push(shake_hands(look, peer, believed, identity, stream).await);
    findings
}

/// Its CA certificates, if they are in a file or our Workload API gives them to this command; findings
/// where they can't be used or end soon.
fn bundle(
    look: &Examination<'_>,
    peer: &PeerConfig,
    own: &Own,
    findings: &mut Vec<Finding>,
) -> Option<TrustBundle> {
    let about = format!("bundle/{}", peer.name);
    if peer.workload_api {
        // Without it the identities' finding says why.
        let bundle = match federated(own.workload_api.as_ref()?, peer) {
            Ok(bundle) => bundle,
            Err(why) => {
                findings.push(Finding::of_error(&about, why));
                return None;
            }
        };
        let remedy = "its SPIRE server should have rotated it; see its log";
        holds(look, &about, &bundle, "", remedy, peer, findings);
        return Some(bundle);
    }
    if let Some(endpoint) = &peer.endpoint {
        // Its file is only the first bundle: what is in force now, the agent knows.
        let found = format!("followed at {}; `hamlet bundle list` shows what is in force", endpoint.url);
        findings.push(Finding::pass(&about, found));
        return None;
    }
    let file = peer.bundle.as_ref()?;
    let path = file.display();
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            let remedy = "put the peer's CA certificates there, as that peer gave them to you";
            findings.push(Finding::fail(&about, format!("{path}: {error}"), remedy));
            return None;
        }
    };
    let bundle = match read_bundle(peer, &bytes).map(|read| read.authorities) {
        Ok(Authorities::Certificates(bundle)) => bundle,
        Ok(Authorities::Revoked | Authorities::NoX509) => {
            let found = format!("{path}: there is no CA certificate in it, so the peer is not trusted");
            findings.push(Finding::fail(&about, found, "ask the peer for the bundle that is meant"));
            return None;
        }
        Err(error) => {
            let finding = Finding::of_error(&about, error);
            findings.push(Finding { found: format!("{path}: {}", finding.found), ..finding });
            return None;
        }
    };
    let remedy = format!("ask {} for its new bundle and put it into {path}", peer.name);
    let changed = std::fs::metadata(file).and_then(|m| m.modified()).ok();
    let since = changed.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let old = since.map(|at| format!(", changed {} ago", age(look.clock.wall().saturating_sub(at))));
    holds(look, &about, &bundle, &old.unwrap_or_default(), &remedy, peer, findings);
    Some(bundle)
}

/// How long a peer's CAs hold.
fn holds(
    look: &Examination<'_>,
    about: &str,
    bundle: &TrustBundle,
    old: &str,
    remedy: &str,
    peer: &PeerConfig,
    findings: &mut Vec<Finding>,
) {
    let ends = bundle.anchors().iter().filter_map(|anchor| {
        let what = format!("the CA {}", anchor.subject);
        of_expiry(look, about, &what, Validity::of(&anchor.der)?, remedy)
    });
    let ends: Vec<Finding> = ends.collect();
    if ends.is_empty() {
        let left = age(bundle.earliest_not_after().saturating_sub(look.clock.wall()));
        let n = bundle.anchors().len();
        findings
            .push(Finding::pass(about, format!("{n} CA of {}, expires in {left}{old}", peer.trust_domain)));
    }
    findings.extend(ends);
}

/// Its revocation lists: whether they can be read, and how long they are good.
fn revocation(look: &Examination<'_>, peer: &PeerConfig, crl: &CrlFile) -> Finding {
    let about = format!("crl/{}", peer.name);
    let path = crl.path.display();
    let lists = match revoked(crl) {
        Ok(lists) => lists,
        Err(why) => return Finding::fail(about, why, "until then nothing of this peer is believed"),
    };
    let remedy = format!("put the current lists of {}'s CAs into {path}", peer.name);
    let listed: Vec<&ListedCrl> = lists.listed().iter().collect();
    good_for(look, about, &listed, &path.to_string(), crl.policy.stale, remedy)
}

/// The lists that our Workload API gives of its CAs, if there are any: how long they are good.
fn given_revocation(look: &Examination<'_>, peer: &PeerConfig, lists: &GivenLists) -> Option<Finding> {
    let listed = lists.listed();
    let remedy = "renew the list where the Workload API has it from".to_owned();
    let about = format!("crl/{}", peer.name);
    (!listed.is_empty())
        .then(|| good_for(look, about, &listed, "from the Workload API", lists.stale(), remedy))
}

/// How long lists are good; `of` says where they are from.
fn good_for(
    look: &Examination<'_>,
    about: String,
    listed: &[&ListedCrl],
    of: &str,
    stale: Lenience,
    remedy: String,
) -> Finding {
    let (wall, ends) = (look.clock.wall(), listed.iter().map(|list| list.next_update).min());
    let ends = ends.unwrap_or_default();
    let count: usize = listed.iter().map(|list| list.revoked).sum();
    if ends >= wall {
        let (left, n) = (age(ends.saturating_sub(wall)), listed.len());
        return Finding::pass(about, format!("lists: {n}, revoked: {count}, good for {left}"));
    }
    let found = format!("{of}: outdated for {}", age(wall.saturating_sub(ends)));
    match stale {
        Lenience::Refuse => Finding::fail(about, format!("{found}: nobody is believed on it"), remedy),
        Lenience::Accept => Finding::warn(about, found, remedy),
    }
}

/// A connection to the first of its addresses that takes one.
async fn connect(
    look: &Examination<'_>,
    about: &str,
    address: &PeerAddress,
    findings: &mut Vec<Finding>,
) -> Option<TcpStream> {
    let asked = tokio::net::lookup_host((address.host(), address.port()));
    let found: Vec<SocketAddr> = match tokio::time::timeout(look.patience, asked).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => {
            let remedy = "correct spec.address of the Peer, or this machine's resolver";
            findings.push(Finding::fail(
                about,
                format!("{address}: the name can't be resolved: {error}"),
                remedy,
            ));
            return None;
        }
        Err(_) => {
            let text = format!("{address}: the resolver gave no answer in {}", age(look.patience));
            findings.push(Finding::fail(about, text, "see whether this machine's resolver works"));
            return None;
        }
    };
    let mut last = "the name has no address".to_owned();
    for at in found {
        match tokio::time::timeout(look.patience, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => last = format!("{at}: {error}"),
            Err(_) => last = format!("{at}: no answer in {}", age(look.patience)),
        }
    }
    let remedy = "see whether the peer's agent runs and whether a firewall on the way lets this port through";
    findings.push(Finding::fail(about, format!("{address} can't be reached: {last}"), remedy));
    None
}

async fn shake_hands(
    look: &Examination<'_>,
    peer: &PeerConfig,
    believed: PeerTrust,
    identity: &Arc<LocalIdentity>,
    stream: TcpStream,
) -> Finding {
    let about = format!("peer/{}", peer.name);
    let trust = TrustTable::new(look.clock.clone());
    let name = peer_server_name(&believed);
    if let Err(error) = trust.replace(vec![believed]) {
        return Finding::of_error(about, error);
    }
    let began = look.clock.now();
    let config = agent_client_config(identity, &trust, &peer.name);
    let shaking = TlsConnector::from(config).connect(name, stream);
    let mut stream = match tokio::time::timeout(look.patience, shaking).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return refused(&about, &error),
        Err(_) => {
            let text = format!("the TLS handshake was not over in {}", age(look.patience));
            return Finding::fail(
                about,
                text,
                "see what listens there, and whether something on the way inspects TLS",
            );
        }
    };
    let took = look.clock.now().saturating_sub(began);
    let proven = {
        let certs = stream.get_ref().1.peer_certificates();
        proven_server(&trust, certs, Role::Agent, Expect::Peer(&peer.name))
    };
    let proven = match proven {
        Ok(proven) => proven,
        Err(error) => return Finding::of_error(about, error),
    };
    if let Err(why) = taken(&mut stream, look.patience).await {
        let found = format!("{} proves itself, but does not take our certificate: {why}", peer.name);
        let remedy = format!(
            "on the other side `hamlet describe peer` says why; it needs our bundle and {} among its agentIds",
            identity.spiffe_id()
        );
        return Finding::fail(about, found, remedy);
    }
    let left = proven.not_after.saturating_sub(look.clock.wall());
    let (tls, suite) = {
        let tls = stream.get_ref().1;
        let suite = tls.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite())).unwrap_or_default();
        (tls.protocol_version().map(|v| format!("{v:?}")).unwrap_or_default(), suite)
    };
    let (id, took) = (&proven.id, took.as_millis());
    Finding::pass(
        about,
        format!("both sides proven in {took} ms, {tls} {suite}, {id}, expires in {}", age(left)),
    )
}

fn refused(about: &str, error: &std::io::Error) -> Finding {
    match refusal_in(error) {
        Some(refusal) => Finding::of_error(about, refusal),
        None => {
            let remedy = "see what listens at that address, and whether something on the way ends TLS";
            Finding::fail(about, format!("the TLS handshake failed: {error}"), remedy)
        }
    }
}

/// Whether the other side takes our certificate: it says a word of HTTP/2, or closes.
async fn taken(stream: &mut TlsStream<TcpStream>, patience: Duration) -> Result<(), String> {
    let asking = async {
        // In TLS 1.3 a client learns only from the first byte of an answer that its own certificate
        // was taken.
        stream.write_all(HTTP2_OPENING).await?;
        stream.read_u8().await
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it said nothing in {}", age(patience))),
    }
}
