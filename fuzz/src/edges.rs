//! Laws of what strangers and operators send: HTTP/2 frames, ClientHellos, DNS questions,
//! certificates, and configuration.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arbitrary::Unstructured;
use futures::FutureExt;
use hamlet::config::{PROBLEMS_MAX, SourceFile, load_sources};
use hamlet_adapters::dns::{OwnedName, ServiceTarget, Transport, Zone, ZoneSuffix, answer};
use hamlet_core::{Fqdn, NameSuffix, TrustDomain};
use hamlet_identity::{HelloError, Role, TrustBundle, TrustTable, hello_name, proven_client, read_hello};
use hamlet_protocol::frames::{FRAMES_SAVED_MAX, FrameKind, FrameLimits, FrameMeter, Side};
use hamlet_testkit::pki::{TestCa, TestLeaf, trust_table};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// However bytes are cut, the counts are the same; no budget is above its bound; a flood stays one.
pub(crate) fn frames(input: &[u8]) {
    let mut bytes = Unstructured::new(input);
    let Ok((dialled, cuts)) = bytes.arbitrary::<(bool, [u8; 4])>() else { return };
    let rest = bytes.take_rest();
    let side = if dialled { Side::Dialled } else { Side::Accepted };
    let limits = FrameLimits { burst: 16, a_second: 2 };
    let (mut whole, mut parts) =
        (FrameMeter::new(limits, side, Duration::ZERO), FrameMeter::new(limits, side, Duration::ZERO));
    // Half is theirs and half ours.
    let (theirs, ours) = rest.split_at(rest.len() / 2);
    let at = Duration::from_millis(700);
    let _ = (whole.outbound(ours, at), whole.inbound(theirs, at));
    let mut left = ours;
    for cut in cuts.iter().cycle() {
        let (now, later) = left.split_at(left.len().min(usize::from(*cut) + 1));
        let _ = parts.outbound(now, at);
        left = later;
        if left.is_empty() {
            break;
        }
    }
    let mut left = theirs;
    for cut in cuts.iter().cycle() {
        let (now, later) = left.split_at(left.len().min(usize::from(*cut) + 1));
        let taken = parts.inbound(now, at);
        assert_eq!(taken.err(), parts.flood());
        left = later;
        if left.is_empty() {
            break;
        }
    }
    assert_eq!(whole.flood().map(|f| f.kind), parts.flood().map(|f| f.kind));
    for kind in FrameKind::ALL {
        assert_eq!((whole.seen(kind), whole.left(kind)), (parts.seen(kind), parts.left(kind)), "{kind}");
        assert!(whole.left(kind) <= u64::from(FRAMES_SAVED_MAX));
        assert!(whole.seen(kind) <= rest.len() as u64 / 9);
    }
    if whole.flood().is_some() {
        assert!(whole.inbound(&[], Duration::from_secs(3_600)).is_err(), "a flood stays one");
    }
}

/// A socket whose bytes come in pieces.
struct Pieces<'a> {
    left: &'a [u8],
    piece: usize,
    answered: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.piece.min(self.left.len()).min(buf.remaining());
        let (now, later) = self.left.split_at(most);
        buf.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.answered += buf.len();
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A ClientHello says the same however it is cut, and the name it asks for is canonical.
pub(crate) fn hello(input: &[u8]) {
    let asked = |piece: usize| {
        let mut socket = Pieces { left: input, piece, answered: 0 };
        let read = read_hello(&mut socket).now_or_never().expect("the socket always has an answer");
        assert!(socket.answered <= 64, "no more than an alert");
        match read {
            Ok(accepted) => Ok(hello_name(&accepted)),
            Err(HelloError::Closed) => Err("closed"),
            Err(HelloError::TooLong) => Err("long"),
            Err(HelloError::NotTls(_)) => Err("not TLS"),
        }
    };
    let whole = asked(usize::MAX);
    if let Ok(Some(name)) = &whole {
        assert_eq!(Fqdn::parse(name.as_str()).as_ref(), Ok(name));
    }
    for piece in [1, 7] {
        let cut = asked(piece);
        // A hello that is refused may be refused for another reason when less of it is there.
        assert_eq!(cut.as_ref().ok(), whole.as_ref().ok(), "in pieces of {piece}: {cut:?}, whole: {whole:?}");
    }
}

fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let name = |text: &str| Fqdn::parse(text).expect("a name");
        let owned = |text: &str, addresses: u8, services: u16| OwnedName {
            name: name(text),
            addresses: (0..addresses).map(|n| [127, 64, 0, n].into()).collect(),
            services: (1..=services)
                .filter_map(|port| Some(ServiceTarget { port: port.try_into().ok()?, target: name(text) }))
                .collect(),
        };
        let suffix = |text: &str, exclusive| ZoneSuffix {
            suffix: NameSuffix::parse(text).expect("a suffix"),
            exclusive,
        };
        let names = [owned("ledger.acme.example", 1, 2), owned("many.acme.example", 20, 100)];
        Zone::build(names, [suffix("acme.example", false), suffix("hamlet", true)], 5, 1)
    })
}

/// A reply is bounded by what was asked, carries its id, and says that it is a reply.
pub(crate) fn dns(input: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut reply = vec![];
        answer(zone(), input, transport, &mut reply);
        if reply.is_empty() {
            continue;
        }
        assert!(input.len() >= 12, "a reply to what has no header");
        assert_eq!(reply[..2], input[..2], "the id");
        assert_eq!(reply[2] & 0x80, 0x80, "a reply");
        assert!(reply.len() <= 65_535);
        if transport == Transport::Udp {
            assert!(reply.len() <= 1_232 && reply.len() <= 3 * input.len(), "{}", reply.len());
        }
    }
}

struct Pki {
    trust: Arc<TrustTable>,
    leaf: TestLeaf,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let ca = TestCa::new("acme.example");
        Pki { trust: trust_table(vec![ca.trust_as("acme")]), leaf: ca.agent() }
    })
}

/// A certificate that differs in any bit from a good one proves nothing; neither do any bytes.
/// Input: edits of a good one, four bytes each; or, with a first byte of 255, a chain as it is.
pub(crate) fn chain(input: &[u8]) {
    let pki = pki();
    let good = pki.leaf.chain[0].as_ref();
    if let Some((255, der)) = input.split_first() {
        for certificates in [vec![der], vec![der, good], vec![good, der, der, der, der]] {
            let chain: Vec<_> = certificates.iter().map(|d| CertificateDer::from(*d)).collect();
            let proven = proven_client(&pki.trust, Some(&chain), Role::Agent);
            assert!(proven.is_err() || der == good, "bytes prove a peer");
        }
        return;
    }
    let mut der = good.to_vec();
    for edit in input.chunks_exact(4).take(16) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % der.len().max(1);
        match edit[0] % 4 {
            0 if at < der.len() => der[at] = edit[3],
            1 => der.insert(at, edit[3]),
            2 if at < der.len() => drop(der.remove(at)),
            3 if at < der.len() => der[at] ^= 1 << (edit[3] % 8),
            _ => {}
        }
    }
    let proven = proven_client(&pki.trust, Some(&[CertificateDer::from(der.as_slice())]), Role::Agent);
    assert_eq!(proven.is_ok(), der == good, "{:?}", proven.map(|p| p.id));
}

/// Of any chain that is really signed, exactly that proves a peer which a second and simpler look
/// finds good. Input: a plan for the chain.
pub(crate) fn trust(input: &[u8]) {
    hamlet_testkit::law::chain_law(input);
}

/// A bundle is refused in one line or holds what it says.
pub(crate) fn bundle(input: &[u8]) {
    let domain = || TrustDomain::parse("acme.example").expect("a domain");
    let mut pem = vec![];
    // A first byte of 1 puts a good CA before what comes, so that more of the reader is reached.
    let rest = match input.split_first() {
        Some((1, rest)) => {
            static CA: OnceLock<String> = OnceLock::new();
            pem.extend_from_slice(CA.get_or_init(|| TestCa::new("acme.example").pem().to_owned()).as_bytes());
            rest
        }
        _ => input,
    };
    pem.extend_from_slice(rest);
    match TrustBundle::from_pem(domain(), &pem) {
        Ok(bundle) => {
            assert!((1..=hamlet_identity::ANCHORS_MAX).contains(&bundle.anchors().len()));
            assert_eq!(bundle.fingerprints().len(), bundle.anchors().len());
        }
        Err(error) => assert!(!error.to_string().contains('\0')),
    }
}

/// A configuration is taken or refused, the same way each time, in a bounded number of lines. Files
/// are parted by a byte of 0.
pub(crate) fn config(input: &[u8]) {
    let files = || -> Vec<SourceFile> {
        let texts = input.split(|b| *b == 0).take(4).enumerate();
        texts
            .map(|(i, text)| SourceFile {
                path: format!("{i}.yaml").into(),
                text: String::from_utf8_lossy(text).into(),
            })
            .collect()
    };
    match (load_sources(files()), load_sources(files())) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => {
            assert!(!a.list.is_empty() && a.list.len() <= 2 * PROBLEMS_MAX, "{} problems", a.list.len());
            let lines =
                |p: &hamlet::config::Problems| p.list.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(lines(&a), lines(&b));
            for line in lines(&a) {
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
        (a, b) => panic!("once {}, once {}", a.is_ok(), b.is_ok()),
    }
}
