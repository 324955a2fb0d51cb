//! The exchange as values: every message altered, replayed, swapped, and the man in the middle.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::peering::{fingerprint, key_fingerprint};
use hamlet_peering::{
    AcceptError, Accepter, AgentAddress, Agreement, AllowedAddresses, Binding, Invitation, InvitationId,
    Inviter, Known, Ledger, MadePeer, MeshDocument, Message, Redemption, Refusal, Secret, Token,
};
use hamlet_runtime::{Clock, SystemClock};
use hamlet_testkit::pki::TestCa;
use rustls_pki_types::CertificateDer;

const ID: InvitationId = [3; 16];
const NONCE_A: [u8; 32] = [0xa1; 32];
const NONCE_B: [u8; 32] = [0xb2; 32];

struct Mesh {
    ca: TestCa,
    chain: Vec<CertificateDer<'static>>,
    document: MeshDocument,
    bytes: Vec<u8>,
}

impl Mesh {
    fn new(domain: &str, address: &str) -> Mesh {
        let ca = TestCa::new(domain);
        // As a server presents it: with the root.
        let mut chain = ca.agent().identity().chain();
        chain.push(ca.root().clone());
        let document = MeshDocument {
            trust_domain: ca.trust_domain().clone(),
            roots: vec![ca.root().clone()],
            sequence: 1,
            agent_ids: vec![ca.agent_id()],
            gateway_ids: vec![ca.gateway_id()],
            addresses: vec![AgentAddress::parse(address).unwrap()],
        };
        let bytes = document.encode().unwrap();
        Mesh { ca, chain, document, bytes }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    fn leaf(&self) -> Vec<u8> {
        self.chain[0].to_vec()
    }

    fn known(&self) -> Known {
        let own = key_fingerprint(self.ca.root()).unwrap();
        Known {
            own_domain: Some(self.document.trust_domain.clone()),
            root_keys: [(own, None)].into(),
            ..Known::default()
        }
    }
}

struct World {
    a: Mesh,
    b: Mesh,
    clock: Arc<dyn Clock>,
    ledger: Ledger,
}

fn allowed() -> AllowedAddresses {
    AllowedAddresses::default()
}

impl World {
    fn new() -> World {
        let a = Mesh::new("acme.example", "agent.acme.example:7443");
        let b = Mesh::new("globex.example", "agent.globex.example:7443");
        let clock = SystemClock::shared();
        let mut ledger = Ledger::default();
        let expires = clock.wall() + Duration::from_secs(900);
        let name = PeerName::parse("globex").unwrap();
        let invitation = Invitation::new(ID, &Secret::new([1; 32]).key(&ID), name, expires);
        ledger.invite(invitation, clock.wall()).unwrap();
        World { a, b, clock, ledger }
    }

    fn token(&self) -> Token {
        Token {
            id: ID,
            secret: Secret::new([1; 32]),
            addresses: self.a.document.addresses.clone(),
            trust_domain: self.a.document.trust_domain.clone(),
            agent_id: self.a.ca.agent_id(),
            roots: vec![fingerprint(self.a.ca.root())],
            expires: self.ledger.invitations[0].expires,
            expected_domain: None,
        }
    }

    fn binding(&self) -> Binding {
        Binding { exporter: [5; 32], leaf_a: self.a.leaf(), leaf_b: self.b.leaf() }
    }

    fn accepter(&self) -> Accepter {
        Accepter::new(&self.token(), self.b.bytes(), NONCE_B)
    }

    /// A's answer to message 1.
    fn inviter(&self, open: Message) -> Result<Inviter, Refusal> {
        let Message::Open { id, commitment } = open else { return Err(Refusal::Malformed) };
        let view = self.ledger.invitation(&id, self.clock.wall())?.view();
        Ok(Inviter::open(view, commitment, self.a.bytes(), NONCE_A))
    }

    fn reveal(&self, inviter: Inviter, reveal: Message, binding: &Binding) -> Result<Redemption, Refusal> {
        inviter.reveal(reveal, binding, &self.b.chain(), &self.a.known(), &allowed(), &self.clock)
    }

    /// The whole exchange; `wire` may alter each message on its way.
    fn play(&self, mut wire: impl FnMut(usize, Message) -> Option<Message>) -> Outcome {
        let accepter = self.accepter();
        let mut pass = |step, message: Message| wire(step, message).ok_or(());
        let Ok(open) = pass(1, accepter.open()) else { return Outcome::default() };
        let Ok(inviter) = self.inviter(open) else { return Outcome::default() };
        let Ok(offer) = pass(2, inviter.offer()) else { return Outcome::default() };
        let offered =
            accepter.offer(offer, &self.binding(), &self.a.chain(), &self.b.known(), &allowed(), &self.clock);
        let (reveal, revealed) = match offered {
            Ok(offered) => offered,
            Err(error) => return Outcome { b_error: Some(error), ..Outcome::default() },
        };
        let Ok(reveal) = pass(3, reveal) else { return Outcome::default() };
        let redemption = match self.reveal(inviter, reveal, &self.binding()) {
            Ok(redemption) => redemption,
            Err(refusal) => return Outcome { a_refusal: Some(refusal), ..Outcome::default() },
        };
        let sealed = pass(4, redemption.sealed());
        let mut outcome = Outcome { a: Some(redemption), ..Outcome::default() };
        if let Ok(sealed) = sealed {
            match revealed.sealed(sealed) {
                Ok(agreement) => outcome.b = Some(agreement),
                Err(error) => outcome.b_error = Some(error),
            }
        }
        outcome
    }
}

#[derive(Debug, Default)]
struct Outcome {
    a: Option<Redemption>,
    b: Option<Agreement>,
    a_refusal: Option<Refusal>,
    b_error: Option<AcceptError>,
}

#[test]
fn both_sides_learn_each_others_document_and_see_the_same_words() {
    let world = World::new();
    let outcome = world.play(|_, message| Message::parse(&message.encode()).ok());
    let (a, b) = (outcome.a.unwrap(), outcome.b.unwrap());
    assert_eq!(a.words, b.words);
    assert_eq!((&a.document, &b.document), (&world.b.document, &world.a.document));
    assert_eq!(a.repeated, None);
}

#[test]
fn any_flipped_bit_in_any_message_is_refused() {
    let world = World::new();
    for step in 1..=4 {
        let mut bits = 0;
        let mut at = 0;
        loop {
            let mut flipped = false;
            let outcome = world.play(|this, message| {
                if this != step {
                    return Some(message);
                }
                let mut bytes = message.encode();
                bits = bytes.len() * 8;
                bytes[at / 8] ^= 1 << (at % 8);
                flipped = true;
                Message::parse(&bytes).ok()
            });
            assert!(flipped);
            assert!(outcome.b.is_none(), "message {step}, bit {at}: B took it");
            // By message 4 A has committed; all B can do is not to believe it.
            assert!(step == 4 || outcome.a.is_none(), "message {step}, bit {at}: A took it");
            at += 1;
            if at >= bits {
                break;
            }
        }
        assert!(bits >= 37 * 8, "message {step} was looked at");
    }
}

#[test]
fn a_man_in_the_middle_who_swaps_a_part_is_refused() {
    let world = World::new();
    let evil = Mesh::new("globex.example", "agent.evil.example:7443");
    let evil_a = Mesh::new("acme.example", "agent.evil.example:7443");
    // What he can put in the place of the honest part, without the secret.
    type Swap<'a> = Box<dyn Fn(Message) -> Message + 'a>;
    let swaps: [(&str, usize, Swap<'_>); 5] = [
        ("A's bundle", 2, Box::new(|_| Message::Offer { nonce: NONCE_A, document: evil_a.bytes() })),
        ("A's nonce", 2, Box::new(|_| Message::Offer { nonce: [9; 32], document: world.a.bytes() })),
        (
            "A's endpoint",
            2,
            Box::new(|_| {
                let addresses = evil.document.addresses.clone();
                let document = MeshDocument { addresses, ..world.a.document.clone() };
                Message::Offer { nonce: NONCE_A, document: document.encode().unwrap() }
            }),
        ),
        (
            "B's bundle",
            3,
            Box::new(|message| match message {
                Message::Reveal { nonce, mac, .. } => Message::Reveal { nonce, mac, document: evil.bytes() },
                other => other,
            }),
        ),
        (
            "B's nonce",
            3,
            Box::new(|message| match message {
                Message::Reveal { document, mac, .. } => Message::Reveal { nonce: [9; 32], mac, document },
                other => other,
            }),
        ),
    ];
    for (what, step, swap) in swaps {
        let outcome = world.play(|this, message| Some(if this == step { swap(message) } else { message }));
        assert!(outcome.a.is_none() && outcome.b.is_none(), "{what} was swapped unnoticed");
    }
    assert!(world.play(|_, message| Some(message)).b.is_some());
}

#[test]
fn another_channel_or_another_leaf_is_refused_even_with_the_right_messages() {
    let world = World::new();
    let honest = world.binding();
    let others = [
        Binding { exporter: [6; 32], ..honest.clone() },
        Binding { leaf_a: world.b.leaf(), ..honest.clone() },
        Binding { leaf_b: world.a.leaf(), ..honest.clone() },
    ];
    for (binding, taken) in others.iter().map(|b| (b, false)).chain([(&honest, true)]) {
        let accepter = world.accepter();
        let inviter = world.inviter(accepter.open()).unwrap();
        let (chain, known) = (world.a.chain(), world.b.known());
        let (reveal, _) =
            accepter.offer(inviter.offer(), &honest, &chain, &known, &allowed(), &world.clock).unwrap();
        let result = world.reveal(inviter, reveal, binding);
        assert_eq!(result.is_ok(), taken, "{binding:?}");
        assert!(taken || result == Err(Refusal::Proof));
    }
}

#[test]
fn a_holder_of_the_token_in_the_middle_can_not_play_a_and_gets_other_words_as_b() {
    let world = World::new();
    let honest = world.play(|_, message| Some(message)).b.unwrap().words;
    // As B, with the stolen token and a mesh of his own.
    let thief = Mesh::new("thief.example", "agent.thief.example:7443");
    let accepter = Accepter::new(&world.token(), thief.bytes(), [0x7f; 32]);
    let inviter = world.inviter(accepter.open()).unwrap();
    let binding = Binding { leaf_b: thief.leaf(), ..world.binding() };
    let (chain, known) = (world.a.chain(), thief.known());
    let (reveal, _) =
        accepter.offer(inviter.offer(), &binding, &chain, &known, &allowed(), &world.clock).unwrap();
    let taken =
        inviter.reveal(reveal, &binding, &thief.chain(), &world.a.known(), &allowed(), &world.clock).unwrap();
    assert_ne!(taken.words, honest, "the people see that it is somebody else");
    // As A, he has no certificate under the pinned root.
    let false_a = Mesh::new("acme.example", "agent.acme.example:7443");
    let accepter = world.accepter();
    let offer = Message::Offer { nonce: NONCE_A, document: world.a.bytes() };
    let binding = Binding { leaf_a: false_a.leaf(), ..world.binding() };
    let (chain, known) = (false_a.chain(), world.b.known());
    let refused = accepter.offer(offer, &binding, &chain, &known, &allowed(), &world.clock);
    assert!(matches!(refused, Err(AcceptError::Certificate(_))), "{refused:?}");
}

#[test]
fn a_wrong_secret_never_burns_the_invitation() {
    let mut world = World::new();
    let wrong = Token { secret: Secret::new([2; 32]), ..world.token() };
    for _ in 0..100 {
        let accepter = Accepter::new(&wrong, world.b.bytes(), NONCE_B);
        let inviter = world.inviter(accepter.open()).unwrap();
        let (chain, known, binding) = (world.a.chain(), world.b.known(), world.binding());
        let (reveal, _) =
            accepter.offer(inviter.offer(), &binding, &chain, &known, &allowed(), &world.clock).unwrap();
        assert_eq!(world.reveal(inviter, reveal, &binding), Err(Refusal::Proof));
    }
    let redemption = world.play(|_, message| Some(message)).a.unwrap();
    let now = world.clock.wall();
    assert!(world.ledger.redeem(&redemption, now, |_| false).is_ok());
}

#[test]
fn the_same_redeemer_may_repeat_and_nobody_else_may() {
    let mut world = World::new();
    let now = world.clock.wall();
    let first = world.play(|_, message| Some(message)).a.unwrap();
    let name = world.ledger.redeem(&first, now, |_| false).unwrap();
    assert_eq!(name.as_str(), "globex");
    let MadePeer { confirmed, ref words, .. } = world.ledger.peers[&name];
    assert!(!confirmed && *words == first.words.to_string());
    // A knows the domain now, but it is the same mesh.
    let again = world.play(|_, message| Some(message)).a.unwrap();
    assert_eq!(again.repeated, Some(name.clone()));
    assert_eq!(world.ledger.redeem(&again, now, |_| true), Ok(name.clone()));
    assert_eq!(world.ledger.peers.len(), 1);
    // Another leaf key, then another document.
    let honest = std::mem::replace(&mut world.b, Mesh::new("globex.example", "agent.globex.example:7443"));
    assert_eq!(world.play(|_, message| Some(message)).a_refusal, Some(Refusal::Used));
    let document = MeshDocument { sequence: 2, ..honest.document.clone() };
    world.b = Mesh { bytes: document.encode().unwrap(), document, ..honest };
    assert_eq!(world.play(|_, message| Some(message)).a_refusal, Some(Refusal::Used));
    // Removed, it doesn't come back by the old token.
    world.ledger.peers.clear();
    assert_eq!(world.ledger.redeem(&first, now, |_| false), Err(Refusal::Used));
}

#[test]
fn of_two_exchanges_at_once_one_wins() {
    let mut world = World::new();
    let now = world.clock.wall();
    let first = world.play(|_, message| Some(message)).a.unwrap();
    world.b = Mesh::new("initech.example", "agent.initech.example:7443");
    let second = world.play(|_, message| Some(message)).a.unwrap();
    assert!(world.ledger.redeem(&first, now, |_| false).is_ok());
    assert_eq!(world.ledger.redeem(&second, now, |_| false), Err(Refusal::Used));
    world.ledger.invitations[0].uses = 2;
    assert_eq!(world.ledger.redeem(&second, now, |_| false).unwrap().as_str(), "globex-2");
}

#[test]
fn expired_unknown_and_foreign_invitations_are_refused() {
    let mut world = World::new();
    world.ledger.invitations[0].expected_domain = Some(world.a.document.trust_domain.clone());
    assert_eq!(world.play(|_, message| Some(message)).a_refusal, Some(Refusal::ForeignDomain));
    world.ledger.invitations[0].expected_domain = Some(world.b.document.trust_domain.clone());
    let redemption = world.play(|_, message| Some(message)).a.unwrap();
    let expires = world.ledger.invitations[0].expires;
    assert_eq!(world.ledger.invitation(&ID, expires), Err(Refusal::Expired));
    assert_eq!(world.ledger.redeem(&redemption, expires, |_| false), Err(Refusal::Expired));
    assert_eq!(world.ledger.invitation(&[4; 16], expires).map(|_| ()), Err(Refusal::Unknown));
}

#[test]
fn known_meshes_and_known_roots_are_refused_on_both_sides() {
    let world = World::new();
    let other = PeerName::parse("initech").unwrap();
    let root = key_fingerprint(world.b.ca.root()).unwrap();
    let domain = world.b.document.trust_domain.clone();
    let own = Known { own_domain: Some(domain.clone()), ..Known::default() };
    let taken = Known { domains: [(domain, other.clone())].into(), ..Known::default() };
    let key = Known { root_keys: [(root, Some(other.clone()))].into(), ..Known::default() };
    let ours = Known { root_keys: [(root, None)].into(), ..Known::default() };
    let document = &world.b.document;
    assert_eq!(own.check(document, None), Err(Refusal::OwnDomain));
    assert_eq!(taken.check(document, None), Err(Refusal::KnownDomain));
    assert_eq!(key.check(document, None), Err(Refusal::KnownRoot));
    assert_eq!(ours.check(document, None), Err(Refusal::KnownRoot));
    assert_eq!(ours.check(document, Some(&other)), Err(Refusal::KnownRoot), "our own root is nobody else's");
    assert_eq!(taken.check(document, Some(&other)), Ok(()));
    assert_eq!(key.check(document, Some(&other)), Ok(()));
    assert_eq!(Known::default().check(document, None), Ok(()));
}

#[test]
fn a_ledger_is_read_back_and_shows_no_key() {
    let mut world = World::new();
    let now = world.clock.wall();
    let redemption = world.play(|_, message| Some(message)).a.unwrap();
    world.ledger.redeem(&redemption, now, |_| false).unwrap();
    let index = world.ledger.index().unwrap();
    let made = Ledger::peer_bytes(&world.ledger.peers.values().next().unwrap().clone()).unwrap();
    assert_eq!(Ledger::read(&index, |_| Ok(made.clone())).unwrap(), world.ledger);
    assert!(Ledger::read(&index[1..], |_| Ok(made.clone())).is_err());
    assert!(Ledger::read(&index, |_| Ok(b"{}".to_vec())).is_err());
    let secret = "01".repeat(32);
    assert!(!String::from_utf8_lossy(&index).contains(&secret), "the secret is not kept");
    assert!(!format!("{:?}", world.ledger).contains("key:"));
}
