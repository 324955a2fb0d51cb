//! The authority on a real folder: what peers prove of it, crashes at every file, moved clocks.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::SeqCst;

use hamlet_core::PeerName;
use hamlet_runtime::{ManualClock, SystemClock};

use super::plan::{LEAF_LIFE, OVERLAP};
use super::*;
use crate::{
    Expect, LocalIdentity, PeerTrust, ProvenPeer, Role, SniMinter, TrustBundle, TrustTable, Usage,
    VerifyError, verify_peer_chain,
};

fn domain() -> TrustDomain {
    TrustDomain::parse("acme.example").unwrap()
}

fn settings(folder: &Path, clock: &Arc<ManualClock>) -> AuthoritySettings {
    let spec = |role: LeafRole| LeafSpec {
        id: domain().id(&format!("hamlet/{role}")).unwrap(),
        names: vec![Fqdn::parse("gw.acme.example").unwrap()],
    };
    AuthoritySettings {
        folder: folder.to_owned(),
        domain: domain(),
        lives: Lives::default(),
        leaves: LeafRole::ALL.into_iter().map(|role| (role, spec(role))).collect(),
        clock: clock.clone(),
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    authority: Authority,
}

impl Fixture {
    fn new() -> Fixture {
        let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::at(SystemClock::new().wall()));
        let authority = Authority::create(settings(&dir.path().join("identity"), &clock)).unwrap();
        Fixture { dir, clock, authority }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("identity")
    }

    /// As after a restart.
    fn again(&self) -> Authority {
        Authority::new(settings(&self.folder(), &self.clock)).unwrap()
    }

    fn bundle(&self) -> Vec<u8> {
        std::fs::read(self.authority.bundle_file()).unwrap()
    }

    fn roots_in_bundle(&self) -> usize {
        TrustBundle::from_pem(domain(), &self.bundle()).unwrap().anchors().len()
    }

    fn identity(&self, role: LeafRole) -> Arc<LocalIdentity> {
        let (cert, key) = self.authority.leaf_files(role);
        LocalIdentity::from_pem_files(&cert, &key, self.clock.clone()).unwrap()
    }

    /// What a peer that holds `bundle` makes of both of our leaves.
    fn proven_by(&self, bundle: &[u8]) -> Result<Vec<ProvenPeer>, VerifyError> {
        let trust = TrustTable::new(self.clock.clone());
        trust
            .replace(vec![PeerTrust {
                peer: PeerName::parse("acme").unwrap(),
                trust_domain: domain(),
                bundle: Arc::new(TrustBundle::from_pem(domain(), bundle).unwrap()),
                agent_ids: vec![domain().id("hamlet/agent").unwrap()],
                gateway_ids: vec![domain().id("hamlet/gateway").unwrap()],
                foreign: None,
                revoked: None,
                given_lists: None,
            }])
            .unwrap();
        let mut proven = Vec::new();
        for (leaf, role) in [(LeafRole::Agent, Role::Agent), (LeafRole::Gateway, Role::Gateway)] {
            for usage in [Usage::Client, Usage::Server] {
                let chain = self.identity(leaf).chain();
                proven.push(verify_peer_chain(&trust, &chain, role, usage, Expect::AnyPeer)?);
            }
        }
        Ok(proven)
    }
}

fn steps(done: &[Planned]) -> Vec<Step> {
    done.iter().map(|planned| planned.step).collect()
}

#[test]
fn a_new_authority_has_leaves_that_peers_prove_and_keys_for_its_owner_only() {
    let f = Fixture::new();
    let proven = f.proven_by(&f.bundle()).unwrap();
    assert_eq!(proven.len(), 4);
    let wall = f.clock.wall().as_secs();
    for leaf in f.authority.seen().unwrap().leaves.values() {
        assert_eq!((leaf.made_s, leaf.not_after_s), (wall, wall + LEAF_LIFE.as_secs()));
    }
    assert_eq!(f.identity(LeafRole::Agent).dns_names(), ["gw.acme.example"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&f.folder()), mode(&f.folder().join("authority"))), (0o700, 0o700));
    for entry in std::fs::read_dir(f.folder().join("authority")).unwrap() {
        let path = entry.unwrap().path();
        let public = path.extension().is_some_and(|e| e == "pem");
        assert_eq!(mode(&path), if public { 0o644 } else { 0o600 }, "{}", path.display());
    }
    assert_eq!((mode(&f.folder().join("agent.key")), mode(&f.folder().join("ca.pem"))), (0o600, 0o644));
    assert!(matches!(Authority::create(settings(&f.folder(), &f.clock)), Err(AuthorityError::Exists(_))));
    assert_eq!(steps(&f.again().look(true).unwrap()), [], "a restart finds nothing to do");
}

#[test]
fn leaves_are_renewed_for_months_and_the_one_presented_is_always_valid() {
    let f = Fixture::new();
    let identity = f.identity(LeafRole::Agent);
    let (bundle, mut seen) = (f.bundle(), 0);
    for _ in 0..40 {
        f.clock.advance(LEAF_LIFE / 3);
        assert!(identity.not_after() > f.clock.wall());
        let done = steps(&f.authority.look(true).unwrap());
        seen += usize::from(done.contains(&Step::RenewLeaf(LeafRole::Agent)));
        identity.reload().unwrap();
        f.proven_by(&bundle).unwrap();
    }
    assert!((18..=22).contains(&seen), "{seen} renewals in 40 thirds of a life");
    for _ in 0..4 {
        f.clock.advance(plan::ISSUING_LIFE / 4);
        f.again().look(true).unwrap();
        f.proven_by(&bundle).unwrap();
    }
    assert!(f.authority.read().unwrap().issuing.unwrap().number > 2, "the intermediate was renewed as well");
}

#[test]
fn a_rotated_root_is_believed_by_peers_of_before_during_and_after() {
    let f = Fixture::new();
    let old = f.bundle();
    assert_eq!(steps(&f.authority.rotate(Release::AfterOverlap).unwrap()), [Step::StageRoot]);
    assert!(matches!(
        f.authority.rotate(Release::AfterOverlap),
        Err(AuthorityError::RotationUnderWay(number)) if number > 1
    ));
    let both = f.bundle();
    assert_eq!(f.roots_in_bundle(), 2);
    f.proven_by(&old).unwrap();
    f.clock.advance(OVERLAP - Duration::from_secs(5));
    f.authority.look(true).unwrap();
    assert!(f.authority.seen().unwrap().leaves.values().all(|leaf| leaf.root == 1));

    f.clock.advance(Duration::from_secs(5));
    assert_eq!(steps(&f.authority.look(true).unwrap())[0], Step::IssueFromStaged);
    assert!(f.authority.seen().unwrap().leaves.values().all(|leaf| leaf.root > 1));
    for bundle in [&old, &both, &f.bundle()] {
        f.proven_by(bundle).unwrap();
    }
    f.clock.advance(LEAF_LIFE);
    assert!(steps(&f.authority.look(true).unwrap()).contains(&Step::DropRoot(1)));
    assert_eq!(f.roots_in_bundle(), 1);
    let new = f.bundle();
    for bundle in [&old, &both, &new] {
        f.proven_by(bundle).unwrap();
    }
    assert!(!f.folder().join("authority/root-1.key").exists(), "its key is gone with it");
    // Another authority's root is nobody's.
    let foreign = Fixture::new();
    assert!(matches!(f.proven_by(&foreign.bundle()), Err(VerifyError::UntrustedIssuer { .. })));
}

#[test]
fn a_root_is_released_by_an_operator_or_by_the_last_peer_that_holds_it() {
    let f = Fixture::new();
    let old = f.bundle();
    assert!(steps(&f.authority.rotate(Release::Now).unwrap()).contains(&Step::IssueFromStaged));
    f.proven_by(&old).unwrap();
    f.proven_by(&f.bundle()).unwrap();

    let done = f.authority.rotate(Release::AfterOverlap).unwrap();
    assert_eq!(steps(&done), [Step::StageRoot]);
    assert!(matches!(f.authority.rotate(Release::AfterOverlap), Err(AuthorityError::RotationUnderWay(_))));
    let staged = f.authority.read().unwrap().staged().unwrap().0.number;
    assert!(!f.authority.all_peers_hold(staged + 1).unwrap());
    assert!(f.authority.all_peers_hold(staged).unwrap());
    assert!(!f.authority.all_peers_hold(staged).unwrap(), "it is not staged any more");
    assert!(f.authority.seen().unwrap().leaves.values().all(|leaf| leaf.root == staged));
    assert_eq!(f.roots_in_bundle(), 3);
    assert!(matches!(f.authority.rotate(Release::Now), Err(AuthorityError::TooManyRoots(3))));
    assert_eq!(steps(&f.authority.drop_leaving().unwrap()).len(), 2);
    assert_eq!(f.roots_in_bundle(), 1);
    assert!(matches!(f.authority.drop_leaving(), Err(AuthorityError::NothingToDrop)));
    f.proven_by(&f.bundle()).unwrap();
}

/// What the crash test does to an authority.
type Change = fn(&Authority) -> Result<Vec<Planned>, AuthorityError>;

#[test]
fn a_crash_at_any_file_leaves_an_authority_that_goes_on() {
    let changes: [(&str, Change); 4] = [
        ("leaves are renewed", |a| a.look(true)),
        ("a root is staged", |a| a.rotate(Release::AfterOverlap)),
        ("a root begins to issue", |a| a.rotate(Release::Now)),
        ("roots leave", Authority::drop_leaving),
    ];
    for (at, (what, change)) in changes.iter().enumerate() {
        let mut crashes = 0;
        for budget in 0.. {
            let f = Fixture::new();
            let old = f.bundle();
            // Stages as they follow each other; the last one has something to drop.
            if at == 3 {
                f.authority.rotate(Release::Now).unwrap();
            }
            f.clock.advance(LEAF_LIFE * 3 / 4);
            f.authority.disk.budget.store(budget, SeqCst);
            let outcome = change(&f.authority);
            let again = f.again();
            again.look(true).unwrap_or_else(|e| panic!("{what}, crash {budget}: {e}"));
            for bundle in [&old, &f.bundle()] {
                f.proven_by(bundle).unwrap_or_else(|e| panic!("{what}, crash {budget}: {e}"));
            }
            assert!(again.issuer().load().is_some());
            if outcome.is_ok() {
                break;
            }
            crashes += 1;
        }
        assert!(crashes > 2, "{what}: {crashes} crashes");
    }
}

#[test]
fn an_authority_goes_on_after_a_restart_in_every_state_at_any_later_time() {
    let prepare: [Change; 4] = [
        |a| a.look(true),
        |a| a.rotate(Release::AfterOverlap),
        |a| a.rotate(Release::Now),
        |a| {
            a.rotate(Release::Now)?;
            a.rotate(Release::AfterOverlap)
        },
    ];
    for change in prepare {
        for later in
            [LEAF_LIFE / 2, OVERLAP, plan::ISSUING_LIFE * 2, plan::ROOT_LIFE - LEAF_LIFE, plan::ROOT_LIFE * 2]
        {
            let f = Fixture::new();
            change(&f.authority).unwrap();
            f.clock.advance(later);
            f.again().look(true).unwrap();
            f.proven_by(&f.bundle()).unwrap();
            assert_eq!(steps(&f.again().look(true).unwrap()), []);
            // And back again: leaves and their CA may not be of the future.
            f.clock.set_wall(f.clock.wall() - later);
            f.again().look(true).unwrap();
            // Roots that were made years ahead stay: that is for an operator.
            if later < plan::ROOT_LIFE / 2 {
                f.proven_by(&f.bundle()).unwrap();
            }
        }
    }
}

#[test]
fn what_is_broken_is_made_anew_or_named_and_the_rest_stays_in_use() {
    let f = Fixture::new();
    let folder = f.folder();
    let path = |name: &str| folder.join(name);
    let issuing = f.authority.seen().unwrap().issuing.unwrap().number;
    // Made anew: leaves from the issuing CA, the issuing CA from the root, the bundle from the roots.
    for (name, expected) in [
        ("agent.key".to_owned(), Some(Step::RenewLeaf(LeafRole::Agent))),
        ("gateway.pem".to_owned(), Some(Step::RenewLeaf(LeafRole::Gateway))),
        (format!("authority/issuing-{issuing}.key"), Some(Step::RenewIssuing)),
        ("ca.pem".to_owned(), None),
    ] {
        std::fs::write(path(&name), "nothing").unwrap();
        let done = steps(&f.again().look(true).unwrap());
        assert_eq!(done.first(), expected.as_ref(), "{name}");
        f.proven_by(&f.bundle()).unwrap();
    }
    // A root's key may be kept elsewhere, until a new issuing CA is due.
    std::fs::rename(path("authority/root-1.key"), path("elsewhere")).unwrap();
    f.clock.advance(LEAF_LIFE);
    let done = steps(&f.authority.look(true).unwrap());
    assert_eq!(done, LeafRole::ALL.map(Step::RenewLeaf));
    f.clock.advance(plan::ISSUING_LIFE * 2 / 3);
    let error = f.authority.look(true).unwrap_err().to_string();
    assert!(error.contains("root-1.key") && !error.contains("PRIVATE"), "{error}");
    assert!(f.authority.issuer().load().is_some());
    std::fs::rename(path("elsewhere"), path("authority/root-1.key")).unwrap();
    assert_eq!(steps(&f.authority.look(true).unwrap())[0], Step::RenewIssuing);
    // Named: what nobody can make anew.
    let key = path("authority/root-1.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = f.authority.rotate(Release::Now).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let state = std::fs::read(f.authority.state_file()).unwrap();
    std::fs::write(f.authority.state_file(), "{").unwrap();
    let broken = f.again();
    assert!(matches!(broken.look(true), Err(AuthorityError::State { .. })));
    std::fs::write(f.authority.state_file(), &state).unwrap();
    broken.look(true).unwrap();
    let foreign = Fixture::new();
    std::fs::copy(foreign.folder().join("authority/root-1.pem"), path("authority/root-1.pem")).unwrap();
    assert!(matches!(broken.look(true), Err(AuthorityError::Replaced { .. })));
    std::fs::remove_file(f.authority.state_file()).unwrap();
    assert!(matches!(broken.look(true), Err(AuthorityError::Absent(_))));
    let other = AuthoritySettings {
        domain: TrustDomain::parse("globex.example").unwrap(),
        ..settings(&foreign.folder(), &foreign.clock)
    };
    let other = Authority::new(other).unwrap().look(true);
    assert!(matches!(other, Err(AuthorityError::OtherDomain { .. })));
}

#[test]
fn a_ca_that_was_there_is_adopted_and_peers_notice_nothing() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::at(SystemClock::new().wall()));
    let folder = dir.path().join("identity");
    let ca = LocalCa::create(&folder, &domain(), crate::ca::CA_LIFETIME, clock.clone()).unwrap();
    let (cert, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    let authority = Authority::adopt(settings(&folder, &clock), &cert, &key).unwrap();
    let f = Fixture { dir, clock, authority };
    assert_eq!(f.bundle(), ca.pem().as_bytes());
    assert!(f.authority.seen().unwrap().issuing.unwrap().is_root(), "it may have no intermediate");
    f.proven_by(ca.pem().as_bytes()).unwrap();
    f.clock.advance(LEAF_LIFE);
    f.again().look(true).unwrap();
    f.proven_by(ca.pem().as_bytes()).unwrap();
    // The next root can't be signed by it: peers need the bundle before the overlap has ended.
    f.authority.rotate(Release::AfterOverlap).unwrap();
    f.clock.advance(OVERLAP);
    f.authority.look(true).unwrap();
    assert!(!f.authority.seen().unwrap().issuing.unwrap().is_root());
    f.proven_by(&f.bundle()).unwrap();
    assert!(f.proven_by(ca.pem().as_bytes()).is_err());
}

#[test]
fn minted_leaves_follow_the_issuing_ca() {
    let f = Fixture::new();
    let gateway = f.identity(LeafRole::Gateway);
    let minter = SniMinter::following(f.authority.issuer(), gateway, f.clock.clone()).unwrap();
    let sni = Fqdn::parse("ledger.acme.example").unwrap();
    let first = minter.leaf(&sni).unwrap();
    assert!(Arc::ptr_eq(&first, &minter.leaf(&sni).unwrap()));
    f.authority.rotate(Release::Now).unwrap();
    f.authority.drop_leaving().unwrap();
    let second = minter.leaf(&sni).unwrap();
    assert_ne!(first.cert, second.cert);
    assert_eq!(second.cert.len(), 3, "leaf, issuing CA, and the new root as the old one signed it");
    let absent = Authority::new(settings(&f.folder(), &f.clock)).unwrap();
    let waiting = SniMinter::following(absent.issuer(), f.identity(LeafRole::Gateway), f.clock.clone());
    assert!(matches!(waiting.unwrap().leaf(&sni), Err(CaError::Absent)));
}
