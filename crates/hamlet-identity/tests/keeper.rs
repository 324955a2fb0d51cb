//! What keeps an authority going: new leaves are presented, failures are told and tried again, and a
//! clock that stepped is waited out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::TrustDomain;
use hamlet_identity::authority::plan::{CLOCK_SETTLES, LEAF_LIFE, Lives};
use hamlet_identity::authority::state::LeafRole;
use hamlet_identity::{Authority, AuthorityKeeper, AuthoritySettings, LeafSpec, LocalIdentity};
use hamlet_runtime::{Clock, ManualClock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::{GENEROUS, eventually};

fn keeper(folder: &Path, clock: Arc<dyn Clock>, lives: Lives) -> (Arc<AuthorityKeeper>, Arc<LocalIdentity>) {
    let domain = TrustDomain::parse("acme.example").unwrap();
    let leaf = LeafSpec { id: domain.id("hamlet/agent").unwrap(), names: vec![] };
    let id = leaf.id.clone();
    let leaves = BTreeMap::from([(LeafRole::Agent, leaf)]);
    let settings =
        AuthoritySettings { folder: folder.to_owned(), domain, lives, leaves, clock: clock.clone() };
    let authority = Arc::new(Authority::create(settings).unwrap());
    let (cert, key) = authority.leaf_files(LeafRole::Agent);
    let identity = LocalIdentity::from_pem_files_or_wait(&cert, &key, id, clock);
    (AuthorityKeeper::new(authority, BTreeMap::from([(LeafRole::Agent, identity.clone())])), identity)
}

fn days() -> (tempfile::TempDir, Arc<ManualClock>, Arc<AuthorityKeeper>, Arc<LocalIdentity>) {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::at(SystemClock::new().wall()));
    let (keeper, identity) = keeper(dir.path(), clock.clone(), Lives::default());
    (dir, clock, keeper, identity)
}

#[test]
fn a_renewed_leaf_is_presented_at_once_and_a_failed_renewal_is_told_and_tried_again() {
    let (_dir, clock, keeper, identity) = days();
    let first = identity.chain();
    assert!(keeper.look().unwrap().is_empty());
    clock.advance(LEAF_LIFE * 2 / 3);
    let state = keeper.authority().state_file();
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, "{").unwrap();
    for failures in 1..=2 {
        assert!(keeper.look().is_err());
        assert_eq!(keeper.kept().failures, failures);
        assert!(identity.last_error().unwrap().contains("authority.json"));
        assert_eq!(identity.chain(), first, "what was good stays");
    }
    std::fs::write(&state, good).unwrap();
    assert_eq!(keeper.look().unwrap().len(), 1);
    assert_ne!(identity.chain(), first);
    assert_eq!((identity.last_error(), keeper.kept().error), (None, None));
    assert_eq!((keeper.kept().steps, keeper.kept().failures), (1, 2));
}

#[test]
fn a_clock_that_stepped_renews_nothing_until_it_keeps_still() {
    let (_dir, clock, keeper, identity) = days();
    let first = identity.chain();
    keeper.look().unwrap();
    clock.set_wall(clock.wall() + LEAF_LIFE);
    assert!(keeper.look().unwrap().is_empty());
    assert!(!keeper.kept().settled);
    clock.set_wall(clock.wall() - LEAF_LIFE);
    clock.advance(CLOCK_SETTLES / 2);
    assert!(keeper.look().unwrap().is_empty());
    clock.advance(CLOCK_SETTLES);
    assert!(keeper.look().unwrap().is_empty(), "it is the same day as before");
    assert!(keeper.kept().settled);
    assert_eq!(identity.chain(), first);
    // A clock that was put right is believed in the end.
    clock.set_wall(clock.wall() + LEAF_LIFE);
    keeper.look().unwrap();
    clock.advance(CLOCK_SETTLES);
    assert_eq!(keeper.look().unwrap().len(), 1);
    assert_ne!(identity.chain(), first);
}

#[tokio::test]
async fn leaves_of_seconds_are_renewed_by_the_task_and_there_is_never_none() {
    let (dir, s) = (tempfile::tempdir().unwrap(), Duration::from_secs);
    let clock = SystemClock::shared();
    let lives = Lives { leaf: s(3), issuing: s(9), root: s(60), overlap: s(2) };
    let (keeper, identity) = keeper(dir.path(), clock.clone(), lives);
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    spawner.spawn("authority", keeper.clone().run(spawner.clone(), spawner.shutdown()));
    let mut seen = vec![identity.fingerprint()];
    eventually("three renewals", GENEROUS, || {
        assert!(identity.not_after() > clock.wall(), "never a moment without a valid leaf");
        let now = identity.fingerprint();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        seen.len() > 3
    })
    .await;
    assert_eq!(keeper.kept().failures, 0);
    assert!(supervisor.stop(GENEROUS, Duration::ZERO).await.is_empty());
}
