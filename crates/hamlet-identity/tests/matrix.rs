//! Ten authorities by ten trust domains, over the one function and over real handshakes of agents'
//! and gateways' configurations: only the diagonal passes, on both sides of the handshake.

use hamlet_identity::{
    Expect, Role, Usage, VerifyError, agent_client_config, agent_server_config, gateway_client_config,
    gateway_server_config, refusal_in, verify_peer_chain,
};
use hamlet_testkit::matrix::{Matrix, SIDE};
use hamlet_testkit::pki::{TestCa, trust_table};
use hamlet_testkit::tls::{handshake, stranger_client, stranger_server};

const ROLES: [(Role, &str); 2] = [(Role::Agent, "agent"), (Role::Gateway, "gateway")];

fn refused_by(error: &std::io::Error) -> Option<&'static str> {
    refusal_in(error).map(VerifyError::rule)
}

/// What refuses `signer`'s certificate for `claimed`, when `dialled` was meant.
fn rule(signer: usize, claimed: usize, dialled: usize) -> Option<&'static str> {
    if dialled != claimed {
        return Some("other-trust-domain");
    }
    (signer != claimed).then_some("untrusted-issuer")
}

#[test]
fn only_the_diagonal_of_authorities_and_trust_domains_is_proven() {
    let matrix = Matrix::new();
    let trust = trust_table(matrix.peers());
    let (mut passed, mut checks) = (0, 0);
    for (signer, claimed) in Matrix::pairs() {
        for (role, path) in ROLES {
            let leaf = matrix.leaf(signer, claimed, path);
            let mut check = |usage, expect: Expect<'_>, expected: Option<&str>| {
                let proven = verify_peer_chain(&trust, &leaf.chain, role, usage, expect);
                let shown = proven.as_ref().map(|p| p.peer.clone()).map_err(VerifyError::rule);
                let wanted = expected.map_or(Ok(matrix.peer(claimed)), Err);
                assert_eq!(shown, wanted, "CA {signer} for domain {claimed}: {role}, {usage:?}, {expect:?}");
                checks += 1;
                passed += usize::from(proven.is_ok());
            };
            for usage in [Usage::Client, Usage::Server] {
                check(usage, Expect::AnyPeer, rule(signer, claimed, claimed));
                for dialled in 0..SIDE {
                    let peer = matrix.peer(dialled);
                    check(usage, Expect::Peer(&peer), rule(signer, claimed, dialled));
                    // A careless offer that names anybody's gateway changes nothing.
                    let sans: Vec<_> = (0..SIDE).map(|at| matrix.ca(at).id(path)).collect();
                    check(usage, Expect::PeerSans(&peer, &sans), rule(signer, claimed, dialled));
                }
            }
        }
    }
    println!("{checks} checks, {passed} passed: those of the diagonal");
    assert_eq!(passed, SIDE * ROLES.len() * 2 * 3);
}

#[tokio::test]
async fn only_the_diagonal_of_authorities_and_trust_domains_passes_a_handshake() {
    let matrix = Matrix::new();
    let home = TestCa::new("home.example");
    let trust = trust_table(matrix.peers());
    let (mut passed, mut handshakes) = (0, 0);
    for (signer, claimed) in Matrix::pairs() {
        for (role, path) in ROLES {
            let leaf = matrix.leaf(signer, claimed, path);
            let what = format!("CA {signer} for domain {claimed}, {role}");
            let (us, alpn): (_, &[&[u8]]) = match role {
                Role::Agent => (home.agent().identity(), &[b"h2"]),
                Role::Gateway => (home.gateway().identity(), &[]),
            };
            let server = match role {
                Role::Agent => agent_server_config(&us, &trust),
                Role::Gateway => gateway_server_config(&us, None, &trust),
            };
            let done = handshake(stranger_client(Some(&leaf), alpn), server, "home.example").await;
            assert_eq!(done.is_ok(), signer == claimed, "{what}, as client");
            passed += usize::from(done.is_ok());
            if let Err(error) = done.server {
                assert_eq!(refused_by(&error), rule(signer, claimed, claimed), "{what}, as client");
            }
            // Dialled as the peer that it claims to be, and as the one whose CA it has.
            for dialled in [claimed, signer] {
                let peer = matrix.peer(dialled);
                let client = match role {
                    Role::Agent => agent_client_config(&us, &trust, &peer),
                    Role::Gateway => {
                        gateway_client_config(&us, &trust, &peer, &[matrix.ca(dialled).gateway_id()])
                    }
                };
                let done = handshake(client, stranger_server(&leaf, alpn), "x.example").await;
                assert_eq!(done.is_ok(), signer == claimed, "{what}, dialled as {dialled}");
                passed += usize::from(done.is_ok());
                if let Err(error) = done.client {
                    assert_eq!(
                        refused_by(&error),
                        rule(signer, claimed, dialled),
                        "{what}, dialled as {dialled}"
                    );
                }
                handshakes += 1;
            }
            handshakes += 1;
        }
    }
    println!("{handshakes} handshakes, {passed} passed: those of the diagonal");
    assert_eq!(passed, SIDE * ROLES.len() * 3);
}
