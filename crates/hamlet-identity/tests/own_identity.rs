//! Our own certificate, the local CA, minted leaves and hot reload.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{Fqdn, PeerName, TrustDomain};
use hamlet_identity::ca::{CA_LIFETIME, LEAF_LIFETIME, SNI_LIFETIME};
use hamlet_identity::{
    CaError, IdentityError, IdentityWatch, LocalCa, LocalIdentity, MINTED_MAX, PeerTrust, SniMinter,
    TrustBundle, TrustTable, VerifyError, gateway_client_config, gateway_server_config,
};
use hamlet_runtime::{Clock, ManualClock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::{ExtendedKeyUsagePurpose, LeafSpec, TestCa, TestLeaf, trust_table, write_key};
use hamlet_testkit::tls::handshake;
use hamlet_testkit::{GENEROUS, eventually};
use rustls_pki_types::ServerName;

fn domain() -> TrustDomain {
    TrustDomain::parse("acme.example").unwrap()
}

fn name(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

fn load(leaf: &TestLeaf, folder: &Path) -> Result<Arc<LocalIdentity>, IdentityError> {
    let (cert, key) = leaf.write(folder, "agent");
    LocalIdentity::from_pem_files(&cert, &key, SystemClock::shared())
}

#[test]
fn an_unusable_identity_is_refused_at_load_and_its_neighbour_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("acme.example");
    let spec = || LeafSpec::of("spiffe://acme.example/agent");
    let leaf = |spec: LeafSpec| ca.leaf(spec);
    let mut swapped = ca.agent();
    swapped.key_pem = ca.agent().key_pem;
    let mut no_key = ca.agent();
    no_key.key_pem = String::from("-----BEGIN NOTHING-----\n");
    let mut no_cert = ca.agent();
    no_cert.cert_pem.clear();
    let one_use = LeafSpec { purposes: vec![ExtendedKeyUsagePurpose::ServerAuth], ..spec() };
    for (what, bad, hint) in [
        ("another's key", swapped, "replace both files together"),
        ("no key", no_key, "no usable private key"),
        ("no certificate", no_cert, "no certificate"),
        ("no URI", leaf(LeafSpec { uris: vec![], ..spec() }), "exactly one"),
        ("for servers only", leaf(one_use), "clientAuth"),
        ("a CA", leaf(LeafSpec { ca: true, ..spec() }), "leaf certificate"),
    ] {
        let error = load(&bad, dir.path()).expect_err(what).to_string();
        assert!(error.contains(hint) && !error.contains("BEGIN"), "{what}: {error}");
        let loaded = load(&ca.agent(), dir.path()).unwrap();
        assert_eq!(loaded.spiffe_id(), ca.agent_id());
    }
    // Expired: served with a warning, so that a restarted agent still serves what it knows.
    assert!(load(&leaf(LeafSpec { not_after: -60, ..spec() }), dir.path()).is_ok());
}

#[test]
fn a_reload_publishes_a_whole_pair_and_keeps_the_last_good_one_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("acme.example");
    let identity = load(&ca.agent(), dir.path()).unwrap();
    let (first, changed) = (identity.fingerprint(), identity.changed());
    assert!(!identity.reload().unwrap(), "nothing changed");

    let next = ca.agent();
    std::fs::write(dir.path().join("agent.pem"), &next.cert_pem).unwrap();
    assert!(matches!(identity.reload(), Err(IdentityError::Mismatch { .. })), "half of a pair");
    assert!(identity.last_error().unwrap().contains("replace both files"));
    assert_eq!(identity.fingerprint(), first);

    write_key(&dir.path().join("agent.key"), &next.key_pem);
    assert!(!changed.has_changed().unwrap());
    assert!(identity.reload().unwrap());
    assert_eq!((identity.last_error(), identity.chain()), (None, next.chain));
    assert!(changed.has_changed().unwrap());

    let expired = LeafSpec { not_after: -60, ..LeafSpec::of("spiffe://acme.example/agent") };
    ca.leaf(expired).write(dir.path(), "agent");
    assert!(matches!(identity.reload(), Err(IdentityError::Expired { .. })));
    std::fs::write(dir.path().join("agent.pem"), "-----BEGIN CERTIFICATE-----\nMII").unwrap();
    assert!(identity.reload().is_err());
    std::fs::remove_file(dir.path().join("agent.pem")).unwrap();
    assert!(matches!(identity.reload(), Err(IdentityError::File(_))));
    assert_ne!(identity.fingerprint(), first);
}

#[tokio::test]
async fn a_watched_identity_follows_its_files_and_so_do_bundles() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("acme.example");
    let identity = load(&ca.agent(), dir.path()).unwrap();
    let bundle = dir.path().join("globex.pem");
    std::fs::write(&bundle, "one").unwrap();
    let watch = IdentityWatch::new(vec![identity.clone()])
        .with_files([bundle.clone()])
        .with_poll(Duration::from_millis(200));
    let files = watch.files_changed();
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    spawner.spawn("identity/watch", watch.run(spawner.shutdown()));

    let next = ca.agent();
    std::fs::write(dir.path().join("agent.pem"), &next.cert_pem).unwrap();
    eventually("the half pair is reported", GENEROUS, || identity.last_error().is_some()).await;
    write_key(&dir.path().join("agent.key"), &next.key_pem);
    eventually("the new pair is presented", GENEROUS, || identity.chain() == next.chain).await;
    eventually("the error is gone", GENEROUS, || identity.last_error().is_none()).await;
    assert!(!files.has_changed().unwrap());
    std::fs::write(&bundle, "two").unwrap();
    eventually("the bundle's change is told", GENEROUS, || files.has_changed().unwrap()).await;
    assert!(supervisor.stop(GENEROUS, Duration::ZERO).await.is_empty());
}

#[tokio::test]
async fn events_alone_bring_a_swapped_symlink_in() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("acme.example");
    // As an orchestrator mounts secrets: agent.pem -> ..data/agent.pem, ..data -> ..1
    let (one, two) = (dir.path().join("..1"), dir.path().join("..2"));
    let next = ca.agent();
    for (folder, leaf) in [(&one, &ca.agent()), (&two, &next)] {
        std::fs::create_dir(folder).unwrap();
        leaf.write(folder, "agent");
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, dir.path().join(to)).unwrap();
    link("..1", "..data");
    link("..data/agent.pem", "agent.pem");
    link("..data/agent.key", "agent.key");
    let files = (dir.path().join("agent.pem"), dir.path().join("agent.key"));
    let identity = LocalIdentity::from_pem_files(&files.0, &files.1, SystemClock::shared()).unwrap();
    let never = Duration::from_secs(24 * 60 * 60);
    let watch = IdentityWatch::new(vec![identity.clone()]).with_poll(never);
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    spawner.spawn("identity/watch", watch.run(spawner.shutdown()));

    link("..2", "..new");
    std::fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
    eventually("the swapped pair is presented", GENEROUS, || identity.chain() == next.chain).await;
    assert!(supervisor.stop(GENEROUS, Duration::ZERO).await.is_empty());
}

/// What a partner configures from the files that a CA writes.
fn trust_from(ca: &LocalCa) -> PeerTrust {
    let bundle = TrustBundle::from_pem(ca.trust_domain().clone(), ca.pem().as_bytes()).unwrap();
    let id = |path: &str| vec![domain().id(path).unwrap()];
    PeerTrust::new(PeerName::parse("acme").unwrap(), Arc::new(bundle), id("agent"), id("gateway"))
}

fn verify(
    trust: &TrustTable,
    identity: &LocalIdentity,
    role: hamlet_identity::Role,
) -> Result<(), VerifyError> {
    use hamlet_identity::{Expect, Usage, verify_peer_chain};
    for usage in [Usage::Client, Usage::Server] {
        verify_peer_chain(trust, &identity.chain(), role, usage, Expect::AnyPeer)?;
    }
    Ok(())
}

#[test]
fn a_ca_is_made_once_and_its_files_issue_identities_that_peers_prove() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("identity");
    let clock = SystemClock::shared();
    let made = LocalCa::create(&folder, &domain(), CA_LIFETIME, clock.clone()).unwrap();
    assert!(matches!(LocalCa::create(&folder, &domain(), CA_LIFETIME, clock.clone()), Err(CaError::File(_))));
    let opened = LocalCa::open(&folder, clock.clone()).unwrap();
    assert_eq!((opened.trust_domain(), opened.pem()), (made.trust_domain(), made.pem()));
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&folder), 0o700);
    assert_eq!((mode(&folder.join("ca.key")), mode(&folder.join("ca.pem"))), (0o600, 0o644));

    let trust = trust_table(vec![trust_from(&opened)]);
    for (ca, role, path) in
        [(&made, hamlet_identity::Role::Agent, "agent"), (&opened, hamlet_identity::Role::Gateway, "gateway")]
    {
        let id = domain().id(path).unwrap();
        let pair = ca.issue_agent(&id, &[name("host.acme.example")], LEAF_LIFETIME).unwrap();
        assert!(!format!("{pair:?}").contains("PRIVATE"));
        let (cert, key) = pair.write(&folder, path).unwrap();
        assert!(pair.write(&folder, path).is_err(), "never overwritten");
        assert_eq!((mode(&key), mode(&cert)), (0o600, 0o644));
        let identity = LocalIdentity::from_pem_files(&cert, &key, clock.clone()).unwrap();
        assert_eq!((identity.spiffe_id(), identity.dns_names()), (id, vec!["host.acme.example".to_owned()]));
        verify(&trust, &identity, role).unwrap();
    }
}

#[test]
fn a_ca_signs_only_for_its_own_domain_and_never_past_its_own_end() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(SystemClock::new().wall());
    let month = Duration::from_secs(30 * 24 * 60 * 60);
    let ca = LocalCa::create(dir.path(), &domain(), month, clock.clone()).unwrap();
    let globex = TrustDomain::parse("globex.example").unwrap().id("agent").unwrap();
    assert!(matches!(ca.issue_agent(&globex, &[], LEAF_LIFETIME), Err(CaError::ForeignId { .. })));
    let id = domain().id("agent").unwrap();
    let underscore = ca.issue_agent(&id, &[name("a_b.acme.example")], LEAF_LIFETIME);
    assert!(matches!(underscore, Err(CaError::NotHostName(_))));
    let pair = ca.issue_agent(&id, &[], LEAF_LIFETIME).unwrap();
    let identity = LocalIdentity::from_pem(pair.cert.as_bytes(), pair.key.as_bytes(), clock.clone()).unwrap();
    assert_eq!(identity.not_after().as_secs(), ca.not_after().as_secs());
    clock.advance(month + Duration::from_secs(1));
    assert!(matches!(ca.issue_agent(&id, &[], LEAF_LIFETIME), Err(CaError::Expired(_))));
    assert!(matches!(
        LocalCa::create(&dir.path().join("x"), &domain(), Duration::MAX / 2, clock),
        Err(CaError::Time(_))
    ));
}

#[test]
fn files_that_are_not_a_ca_are_refused_and_a_foreign_ca_needs_its_domain() {
    let dir = tempfile::tempdir().unwrap();
    let clock = SystemClock::shared();
    let acme = TestCa::new("acme.example");
    let (cert, key) = acme.agent().write(dir.path(), "agent");
    let leaf = LocalCa::open_files(&cert, &key, Some(&domain()), clock.clone());
    assert!(matches!(leaf, Err(CaError::Certificate { .. })));

    let made = dir.path().join("made");
    LocalCa::create(&made, &domain(), CA_LIFETIME, clock.clone()).unwrap();
    let (ca_cert, ca_key) = (made.join("ca.pem"), made.join("ca.key"));
    let mismatch = LocalCa::open_files(&ca_cert, &key, None, clock.clone());
    assert!(matches!(mismatch, Err(CaError::Key { .. })));
    let globex = TrustDomain::parse("globex.example").unwrap();
    let foreign = LocalCa::open_files(&ca_cert, &ca_key, Some(&globex), clock.clone());
    assert!(matches!(foreign, Err(CaError::Certificate { .. })));
    assert!(LocalCa::open_files(&ca_cert, &ca_key, Some(&domain()), clock).is_ok());
}

#[tokio::test]
async fn the_ingress_presents_a_leaf_minted_for_the_sni_and_proves_the_same_id() {
    let dir = tempfile::tempdir().unwrap();
    let clock = SystemClock::shared();
    let ca = Arc::new(LocalCa::create(dir.path(), &domain(), CA_LIFETIME, clock.clone()).unwrap());
    let id = domain().id("gateway").unwrap();
    let pair = ca.issue_gateway(&id, &[name("host.acme.example")], LEAF_LIFETIME).unwrap();
    let gateway = LocalIdentity::from_pem(pair.cert.as_bytes(), pair.key.as_bytes(), clock.clone()).unwrap();
    let minter = SniMinter::new(ca.clone(), gateway.clone(), clock).unwrap();
    let globex = TestCa::new("globex.example");
    let at_acme = trust_table(vec![globex.trust_as("globex")]);
    let at_globex = trust_table(vec![trust_from(&ca)]);
    let server = gateway_server_config(&gateway, Some(minter.clone()), &at_acme);
    let acme = PeerName::parse("acme").unwrap();
    let us = globex.gateway().identity();
    for sni in ["ledger.acme.example", "https.ledger.acme.example", "LEDGER.acme.example"] {
        let client = gateway_client_config(&us, &at_globex, &acme, std::slice::from_ref(&id));
        let done = handshake(client, server.clone(), sni).await;
        assert!(done.server.is_ok());
        let stream = done.client.unwrap();
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let cert = webpki::EndEntityCert::try_from(&leaf).unwrap();
        cert.verify_is_valid_for_subject_name(&ServerName::try_from(sni.to_owned()).unwrap()).unwrap();
        assert_eq!(cert.valid_uri_names().collect::<Vec<_>>(), [id.as_str()]);
        assert_eq!(cert.valid_dns_names().count(), 1);
    }
    assert_eq!(minter.kept(), 2, "spellings of one name share a leaf");
}

#[test]
fn a_minted_leaf_is_kept_until_it_must_be_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(SystemClock::new().wall());
    let ca = Arc::new(LocalCa::create(dir.path(), &domain(), CA_LIFETIME, clock.clone()).unwrap());
    let pair = ca.issue_gateway(&domain().id("gateway").unwrap(), &[], LEAF_LIFETIME).unwrap();
    let gateway = LocalIdentity::from_pem(pair.cert.as_bytes(), pair.key.as_bytes(), clock.clone()).unwrap();
    let minter = SniMinter::new(ca, gateway, clock.clone()).unwrap();
    let sni = name("ledger.acme.example");
    let first = minter.leaf(&sni).unwrap();
    clock.advance(SNI_LIFETIME / 2);
    assert!(Arc::ptr_eq(&first, &minter.leaf(&sni).unwrap()));
    clock.advance(SNI_LIFETIME / 4);
    let second = minter.leaf(&sni).unwrap();
    assert!(first.cert != second.cert, "renewed before its end");

    let foreign = TestCa::new("globex.example").gateway().identity();
    let other = LocalCa::open(dir.path(), clock.clone()).unwrap();
    assert!(matches!(SniMinter::new(Arc::new(other), foreign, clock), Err(CaError::ForeignId { .. })));
}

#[test]
fn minted_leaves_are_bounded_and_the_oldest_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(SystemClock::new().wall());
    let ca = Arc::new(LocalCa::create(dir.path(), &domain(), CA_LIFETIME, clock.clone()).unwrap());
    let pair = ca.issue_gateway(&domain().id("gateway").unwrap(), &[], LEAF_LIFETIME).unwrap();
    let gateway = LocalIdentity::from_pem(pair.cert.as_bytes(), pair.key.as_bytes(), clock.clone()).unwrap();
    let minter = SniMinter::new(ca, gateway, clock.clone()).unwrap();
    let sni = |n: usize| name(&format!("s{n}.acme.example"));
    let oldest = minter.leaf(&sni(0)).unwrap();
    clock.advance(Duration::from_secs(1));
    let second = minter.leaf(&sni(1)).unwrap();
    clock.advance(Duration::from_secs(1));
    for n in 2..=MINTED_MAX {
        minter.leaf(&sni(n)).unwrap();
    }
    assert_eq!(minter.kept(), MINTED_MAX);
    assert!(Arc::ptr_eq(&second, &minter.leaf(&sni(1)).unwrap()));
    assert!(!Arc::ptr_eq(&oldest, &minter.leaf(&sni(0)).unwrap()));
}
