//! Laws of peering by token: the texts and messages that strangers send, and the exchange in which one
//! of them was changed on its way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::fingerprint_of;
use hamlet_identity::peering::key_fingerprint;
use hamlet_peering::{
    Accepter, AgentAddress, AllowedAddresses, Binding, Invitation, InvitationId, Inviter, Known,
    MESSAGE_BYTES_MAX, MeshDocument, Message, Secret, TOKEN_PREFIX, Token, Words,
};
use hamlet_runtime::{Clock, SystemClock};
use hamlet_testkit::pki::TestCa;
use rustls_pki_types::CertificateDer;

const ID: InvitationId = [3; 16];
const SECRET: [u8; 32] = [1; 32];
const NONCE_A: [u8; 32] = [0xa1; 32];
const NONCE_B: [u8; 32] = [0xb2; 32];
/// Most edits of one message.
const EDITS_MAX: usize = 16;

/// One side.
struct Mesh {
    chain: Vec<CertificateDer<'static>>,
    bytes: Vec<u8>,
    known: Known,
}

impl Mesh {
    fn of(ca: &TestCa, address: &str) -> Mesh {
        let must = "a constant of this file";
        let document = MeshDocument {
            trust_domain: ca.trust_domain().clone(),
            roots: vec![ca.root().clone()],
            sequence: 1,
            agent_ids: vec![ca.agent_id()],
            gateway_ids: vec![ca.gateway_id()],
            addresses: vec![AgentAddress::parse(address).expect(must)],
        };
        let mut chain = ca.agent().identity().chain();
        chain.push(ca.root().clone());
        let own = key_fingerprint(ca.root()).expect("a root has a key");
        let known = Known {
            own_domain: Some(document.trust_domain.clone()),
            root_keys: [(own, None)].into(),
            ..Known::default()
        };
        Mesh { chain, bytes: document.encode().expect(must), known }
    }
}

/// Both sides, made once in a process.
struct World {
    a: Mesh,
    b: Mesh,
    token: Token,
    invitation: Invitation,
    clock: Arc<dyn Clock>,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (acme, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
        let clock = SystemClock::shared();
        // Longer than any run.
        let expires = Duration::from_secs(clock.wall().as_secs()) + Duration::from_secs(30 * 86_400);
        let name = PeerName::parse("globex").expect("a name");
        let token = Token {
            id: ID,
            secret: Secret::new(SECRET),
            addresses: vec![AgentAddress::parse("agent.acme.example:7443").expect("an address")],
            trust_domain: acme.trust_domain().clone(),
            agent_id: acme.agent_id(),
            roots: vec![fingerprint_of(acme.root())],
            expires,
            expected_domain: None,
        };
        World {
            a: Mesh::of(&acme, "agent.acme.example:7443"),
            b: Mesh::of(&globex, "agent.globex.example:7443"),
            token,
            invitation: Invitation::new(ID, &Secret::new(SECRET).key(&ID), name, expires),
            clock,
        }
    })
}

/// What came out of an exchange.
#[derive(Debug, Default)]
struct Outcome {
    /// The inviter would make the peer.
    a: Option<Words>,
    /// The accepter does.
    b: Option<Words>,
    /// Whether the message that was to be changed is another one now.
    changed: bool,
    /// Whether it was reached.
    reached: bool,
}

impl World {
    /// The whole exchange; `wire` may change message `step` on its way.
    fn play(&self, step: usize, wire: impl Fn(&mut Vec<u8>)) -> Outcome {
        let mut outcome = Outcome::default();
        self.played(step, &wire, &mut outcome);
        outcome
    }

    fn played(&self, step: usize, wire: &dyn Fn(&mut Vec<u8>), outcome: &mut Outcome) -> Option<()> {
        let pass = |this: usize, message: Message, outcome: &mut Outcome| {
            let mut bytes = message.encode();
            if this == step {
                let before = bytes.clone();
                wire(&mut bytes);
                (outcome.reached, outcome.changed) = (true, bytes != before);
            }
            Message::parse(&bytes).ok()
        };
        let (a, b, clock) = (&self.a, &self.b, &self.clock);
        let allowed = AllowedAddresses::default();
        let binding = Binding { exporter: [5; 32], leaf_a: a.chain[0].to_vec(), leaf_b: b.chain[0].to_vec() };
        let accepter = Accepter::new(&self.token, b.bytes.clone(), NONCE_B);
        let Message::Open { id, commitment } = pass(1, accepter.open(), outcome)? else { return None };
        if id != self.invitation.id {
            return None;
        }
        let inviter = Inviter::open(self.invitation.view(), commitment, a.bytes.clone(), NONCE_A);
        let offer = pass(2, inviter.offer(), outcome)?;
        let (reveal, revealed) = accepter.offer(offer, &binding, &a.chain, &b.known, &allowed, clock).ok()?;
        let reveal = pass(3, reveal, outcome)?;
        let redemption = inviter.reveal(reveal, &binding, &b.chain, &a.known, &allowed, clock).ok()?;
        outcome.a = Some(redemption.words.clone());
        let sealed = pass(4, redemption.sealed(), outcome)?;
        outcome.b = revealed.sealed(sealed).ok().map(|agreement| agreement.words);
        Some(())
    }
}

/// Four bytes an edit: what, where, with what.
fn edit(bytes: &mut Vec<u8>, edits: &[u8]) {
    for edit in edits.chunks_exact(4).take(EDITS_MAX) {
        let at = usize::from(u16::from_be_bytes([edit[1], edit[2]])) % bytes.len().max(1);
        match edit[0] % 5 {
            0 if at < bytes.len() => bytes[at] = edit[3],
            1 => bytes.insert(at, edit[3]),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] ^= 1 << (edit[3] % 8),
            4 => bytes.truncate(at),
            _ => {}
        }
    }
}

/// An exchange in which one message was changed, or another put in its place, makes no peer; the same
/// one unchanged makes it on both sides, with the same words. Input: which message, whether the rest
/// are edits or the message itself, and that.
pub(crate) fn peering(input: &[u8]) {
    let [which, rest @ ..] = input else { return };
    let step = usize::from(which % 4) + 1;
    let outcome = world().play(step, |bytes| match which & 0x80 {
        0 => edit(bytes, rest),
        _ => rest.clone_into(bytes),
    });
    assert!(outcome.reached, "message {step} is said whatever comes later");
    if outcome.changed {
        assert!(outcome.b.is_none(), "the accepter takes message {step} although it was changed");
        // By message 4 the inviter has committed: all that is left is not to believe it.
        assert!(outcome.a.is_none() || step == 4, "the inviter takes message {step} although it was changed");
    } else {
        assert!(outcome.a.is_some() && outcome.a == outcome.b, "both agree, and see the same words");
    }
}

/// A message, a document and a token are refused or are exactly the bytes that they were read from;
/// nothing larger than allowed is taken. Input: which of the three, and the bytes.
pub(crate) fn peering_texts(input: &[u8]) {
    let [which, rest @ ..] = input else { return };
    match which % 3 {
        0 => {
            let Ok(message) = Message::parse(rest) else { return };
            assert!(rest.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(message.encode(), rest);
        }
        1 => {
            let Ok(document) = MeshDocument::parse(rest) else { return };
            let bytes = document.encode().expect("what was read can be written");
            assert_eq!(MeshDocument::parse(&bytes).as_ref(), Ok(&document));
        }
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            match Token::parse(text) {
                Ok(token) => {
                    let text = token.encode().expect("what was read can be written");
                    assert!(Token::parse(&text).is_ok_and(|again| again == token));
                    let shown = format!("{token:?}");
                    assert!(!shown.contains(&text[TOKEN_PREFIX.len()..]), "a token is shown");
                }
                Err(error) => {
                    let shown = error.to_string();
                    assert!(!shown.contains(char::is_control) && shown.len() < 1_024, "{shown:?}");
                }
            }
        }
    }
}

/// Seeds of `peering`: no edit and one of each kind, for each message; a whole message in another's
/// place.
pub(crate) fn exchange_seeds() -> Vec<(String, Vec<u8>)> {
    let mut out = vec![];
    for step in 0..4_u8 {
        out.push((format!("unchanged-{}", step + 1), vec![step]));
        let edits: Vec<u8> = (0..5_u8).flat_map(|kind| [kind, 0, 7 * kind, 0x55]).collect();
        out.push((format!("edited-{}", step + 1), [&[step][..], &edits[12..16]].concat()));
        out.push((format!("edited-more-{}", step + 1), [&[step][..], &edits].concat()));
        let open = Message::Open { id: ID, commitment: [7; 32] }.encode();
        out.push((format!("replaced-{}", step + 1), [&[step | 0x80][..], &open].concat()));
    }
    out
}

/// Seeds of `peering_texts`, without certificates: those are made anew in each process.
pub(crate) fn text_seeds() -> Vec<(String, Vec<u8>)> {
    let document = || vec![9; 40];
    let messages = [
        Message::Open { id: ID, commitment: [7; 32] },
        Message::Offer { nonce: NONCE_A, document: document() },
        Message::Reveal { nonce: NONCE_B, document: document(), mac: [8; 32] },
        Message::Sealed { mac: [8; 32] },
        Message::Refused(hamlet_peering::Refusal::Busy),
    ];
    let mut out = vec![];
    for (i, message) in messages.iter().enumerate() {
        out.push((format!("message-{}", i + 1), [&[0][..], &message.encode()].concat()));
    }
    let mesh = b"\0\x0cacme.example\0\0\0\0\0\0\0\x01".to_vec();
    out.push(("document-begin".to_owned(), [&[1][..], &mesh].concat()));
    let token = Token {
        id: ID,
        secret: Secret::new(SECRET),
        addresses: vec![AgentAddress::parse("agent.acme.example:7443").expect("an address")],
        trust_domain: hamlet_core::TrustDomain::parse("acme.example").expect("a domain"),
        agent_id: hamlet_core::SpiffeId::parse("spiffe://acme.example/hamlet/agent").expect("an id"),
        roots: vec![[9; 32]],
        expires: Duration::from_secs(2_000_000_000),
        expected_domain: None,
    };
    let text = token.encode().expect("a token of this file");
    out.push(("token".to_owned(), [&[2][..], text.as_bytes()].concat()));
    out.push(("token-altered".to_owned(), [&[2][..], text.replace('A', "B").as_bytes()].concat()));
    out
}
