//! The laws of one peer's imports, told with a toy dialect: the value of `ledger` is its fqdn,
//! and `bad` doesn't decode.

use std::num::NonZeroU16;

use super::*;
use crate::address::{EndpointAddress, PortRange};
use crate::name::{DnsLabel, Fqdn, NameSuffix};
use crate::service::FederatedService;
use crate::service::{Endpoint, Instance, Protocol, ServiceName};
use crate::spiffe::{SpiffeId, TrustDomain};

const T0: Duration = Duration::ZERO;

fn decode(key: &str, value: &[u8]) -> Result<FederatedService, Rejection> {
    let text = String::from_utf8_lossy(value);
    let fqdn = Fqdn::parse(&text)
        .map_err(|e| Rejection::new(RejectionCode::Malformed, "fqdn", "fqdn", e.to_string()))?;
    Ok(FederatedService {
        name: ServiceName::parse(key).unwrap(),
        fqdn,
        description: String::new(),
        tags: vec![],
        labels: BTreeMap::new(),
        endpoints: vec![Endpoint {
            address: EndpointAddress::parse("8.8.8.8").unwrap(),
            port: NonZeroU16::new(443).unwrap(),
            labels: vec![],
            description: String::new(),
        }],
        sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
        instances: vec![Instance {
            id: DnsLabel::parse("tcp").unwrap(),
            protocol: Protocol::Tcp,
            sni: None,
            hostname: None,
            port: None,
            metadata: BTreeMap::new(),
            endpoint_selector: vec![],
            description: String::new(),
        }],
    })
}

fn rules(suffix: &str) -> Option<Arc<ImportRules>> {
    Some(Arc::new(ImportRules {
        peer: PeerName::parse("acme").unwrap(),
        trust_domain: TrustDomain::parse("acme.example").unwrap(),
        suffixes: vec![NameSuffix::parse(suffix).unwrap()],
        sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
        ranges: vec![],
        endpoint_ports: vec![PortRange::parse("443").unwrap()],
        service_ports: BTreeMap::new(),
    }))
}

fn slice() -> ImportedSlice {
    let peer = PeerName::parse("acme").unwrap();
    let mut s = ImportedSlice::new(peer, "t", Arc::new(decode), NameLeases::new());
    s.set_rules(rules("acme.example"), ImportLimits::default(), GuardSettings::default());
    s
}

fn take(s: &mut ImportedSlice, key: &str, fqdn: &str) -> Result<(), String> {
    let staged = s.offer(key, Bytes::copy_from_slice(fqdn.as_bytes()), 0, T0);
    let answer = staged.answer.clone().map_err(|r| r.rule);
    s.apply(vec![staged], T0);
    answer
}

fn records(s: &ImportedSlice) -> BTreeMap<String, ImportRecord> {
    s.entries.iter().map(|(k, e)| (k.to_string(), record(e, T0))).collect()
}

#[test]
fn a_refusal_is_heard_and_leaves_the_older_version_in_force() {
    let mut s = slice();
    take(&mut s, "ledger", "ledger.acme.example").unwrap();
    let before = s.heard_root();
    assert_eq!(take(&mut s, "ledger", "ledger.evil.example").unwrap_err(), "name-outside-suffixes");
    assert_ne!(s.heard_root().0, before.0);
    let expected = ImportCounts { heard: 1, in_force: 1, refused: 1, older_in_force: 1, withheld: 0 };
    assert_eq!(s.counts(), expected);
    let due = s.due(Duration::from_secs(24 * 3600));
    let changes = s.apply(due, T0);
    assert!(matches!(&changes[..], [(_, None)]), "the older version goes after the refused hold");
}

#[test]
fn an_undecodable_offer_is_refused_and_others_are_not_touched() {
    let mut s = slice();
    take(&mut s, "ledger", "ledger.acme.example").unwrap();
    assert_eq!(take(&mut s, "other", "b a d").unwrap_err(), "fqdn");
    assert_eq!(s.counts().in_force, 1);
    assert_eq!(s.counts().heard, 2);
}

#[test]
fn the_same_bytes_again_need_no_commit_and_get_the_same_answer() {
    let mut s = slice();
    take(&mut s, "ledger", "ledger.acme.example").unwrap();
    take(&mut s, "evil", "x.evil.example").unwrap_err();
    let again = s.offer("ledger", Bytes::from_static(b"ledger.acme.example"), 0, T0);
    assert!(again.answer.is_ok() && s.change(&again, T0).is_none());
    let again = s.offer("evil", Bytes::from_static(b"x.evil.example"), 0, T0);
    assert!(again.answer.is_err() && s.change(&again, T0).is_none());
}

#[test]
fn what_could_not_be_committed_leaves_no_trace() {
    let mut s = slice();
    let staged = s.offer("ledger", Bytes::from_static(b"ledger.acme.example"), 0, T0);
    s.abandon(vec![staged], T0);
    assert_eq!(s.counts(), ImportCounts::default());
    take(&mut s, "ledger2", "ledger.acme.example").unwrap();
}

#[test]
fn a_sweep_over_the_guards_share_is_withheld_and_goes_after_its_wait_or_comes_back() {
    let mut s = slice();
    for i in 0..20 {
        take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example")).unwrap();
    }
    let marked: BTreeSet<Arc<str>> = [Arc::from("s0")].into();
    let staged = s.sweep(&marked, None, T0);
    assert!(s.apply(staged, T0).is_empty(), "nothing is withdrawn");
    assert_eq!(
        s.counts(),
        ImportCounts { heard: 1, in_force: 20, refused: 0, older_in_force: 0, withheld: 19 }
    );
    take(&mut s, "s1", "s1.acme.example").unwrap();
    assert_eq!(s.counts().withheld, 18);
    let due = s.due(Duration::from_secs(600));
    assert_eq!(s.apply(due, Duration::from_secs(600)).len(), 18);
    assert_eq!(s.counts().in_force, 2);
}

#[test]
fn a_small_sweep_withdraws_exactly_what_was_not_repeated() {
    let mut s = slice();
    for i in 0..20 {
        take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example")).unwrap();
    }
    let marked: BTreeSet<Arc<str>> = (3..20).map(|i| Arc::from(format!("s{i}"))).collect();
    let staged = s.sweep(&marked, None, T0);
    let mut gone: Vec<String> = s.apply(staged, T0).into_iter().map(|(k, _)| k.to_string()).collect();
    gone.sort();
    assert_eq!(gone, ["s0", "s1", "s2"]);
}

#[test]
fn a_tightened_policy_withdraws_at_once_and_a_widened_one_needs_no_new_offer() {
    let mut s = slice();
    take(&mut s, "ledger", "ledger.acme.example").unwrap();
    take(&mut s, "cart", "cart.globex.example").unwrap_err();
    s.set_rules(rules("globex.example"), ImportLimits::default(), GuardSettings::default());
    let staged = s.reevaluate(T0);
    let changes: BTreeMap<String, bool> =
        s.apply(staged, T0).into_iter().map(|(k, v)| (k.to_string(), v.is_some())).collect();
    assert_eq!(changes, [("cart".to_owned(), true), ("ledger".to_owned(), false)].into());
    assert_eq!(
        s.counts(),
        ImportCounts { heard: 2, in_force: 1, refused: 1, older_in_force: 0, withheld: 0 }
    );
}

#[test]
fn over_quota_is_refused_and_never_evicts_what_is_there() {
    let mut s = slice();
    let limits = ImportLimits { services: 2, ..ImportLimits::default() };
    s.set_rules(rules("acme.example"), limits, GuardSettings::default());
    for i in 0..10 {
        let answer = take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example"));
        assert_eq!(answer.is_ok(), i < 2, "{i}");
    }
    assert_eq!(s.counts().in_force, 2);
    assert_eq!(s.counts().heard, 4, "recorded up to twice the quota");
}

#[test]
fn what_the_store_kept_is_in_force_again_and_a_wrong_leaf_is_asked_for_again() {
    let mut s = slice();
    take(&mut s, "a", "a.acme.example").unwrap();
    take(&mut s, "b", "b.acme.example").unwrap();
    take(&mut s, "b", "b.evil.example").unwrap_err();
    let root = s.heard_root();
    let mut kept = records(&s);
    let mut restarted = slice();
    let (changes, distrusted) = restarted.load(kept.clone(), T0);
    assert_eq!((changes.iter().filter(|(_, v)| v.is_some()).count(), distrusted), (2, 0));
    assert_eq!(restarted.heard_root(), root);
    assert_eq!(restarted.counts(), s.counts());
    kept.get_mut("a").unwrap().heard.as_mut().unwrap().leaf[0] ^= 1;
    let mut doubtful = slice();
    let (changes, distrusted) = doubtful.load(kept, T0);
    assert_eq!((changes.iter().filter(|(_, v)| v.is_some()).count(), distrusted), (2, 1));
    assert_eq!(doubtful.counts().heard, 1);
}

#[test]
fn hold_expiry_empties_in_force_and_keeps_heard() {
    let mut s = slice();
    take(&mut s, "a", "a.acme.example").unwrap();
    let root = s.heard_root();
    assert!(matches!(&s.set_expired(true)[..], [(_, None)]));
    assert_eq!(s.heard_root(), root);
    assert!(matches!(&s.set_expired(false)[..], [(_, Some(_))]));
}

#[test]
fn after_the_hold_time_what_the_owner_says_again_is_shown_at_once_and_nothing_else() {
    let mut s = slice();
    for key in ["a", "b", "c"] {
        take(&mut s, key, &format!("{key}.acme.example")).unwrap();
    }
    assert_eq!((s.set_expired(true).len(), s.shown(), s.counts().in_force), (3, 0, 3));
    let mut said = |key: &str, name: &str| {
        let staged = s.offer(key, Bytes::copy_from_slice(name.as_bytes()), 0, T0);
        let answer = staged.answer.clone();
        let changes = s.apply(vec![staged], T0);
        let changes: Vec<_> = changes.into_iter().map(|(k, v)| (k.to_string(), v.is_some())).collect();
        (answer.is_ok(), changes, s.shown())
    };
    let shown = |key: &str| vec![(key.to_owned(), true)];
    // As it was, another version, and a new one.
    assert_eq!(said("a", "a.acme.example"), (true, shown("a"), 1));
    assert_eq!(said("a", "a.acme.example"), (true, vec![], 1));
    assert_eq!(said("b", "b2.acme.example"), (true, shown("b"), 2));
    assert_eq!(said("d", "d.acme.example"), (true, shown("d"), 3));
    // A refusal shows nothing of an older version, and is no acknowledgement.
    assert_eq!(said("c", "c.other.example"), (false, vec![], 3));
    // A decision of ours shows nothing: the owner has not said it again.
    let staged = s.reevaluate(T0);
    assert!(s.apply(staged, T0).is_empty());
    // What is deleted is gone, and when the owner is away for the hold time again, the rest is too.
    let staged = s.delete("d", T0);
    assert!(matches!(&s.apply(vec![staged], T0)[..], [(_, None)]));
    let hidden: Vec<String> = s.set_expired(true).into_iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!((hidden, s.shown()), (vec!["a".to_owned(), "b".to_owned()], 0));
    assert!(s.set_expired(true).is_empty());
    // A proof shows all that is in force, each once.
    let staged = s.offer("a", Bytes::from_static(b"a.acme.example"), 0, T0);
    assert_eq!(s.apply(vec![staged], T0).len(), 1);
    let restored: Vec<String> = s.set_expired(false).into_iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!((restored, s.shown()), (vec!["b".to_owned(), "c".to_owned()], 3));
}

fn limited(services: usize) -> ImportedSlice {
    let mut s = slice();
    let limits = ImportLimits { services, ..ImportLimits::default() };
    s.set_rules(rules("acme.example"), limits, GuardSettings::default());
    s
}

#[test]
fn one_batch_admits_no_more_than_the_quota_leaves_and_an_abandoned_one_gives_its_room_back() {
    for committed in [true, false] {
        let mut s = limited(5);
        let fqdn = |i: usize| Bytes::from(format!("s{i}.acme.example"));
        let staged: Vec<Staged> = (0..30).map(|i| s.offer(&format!("s{i:02}"), fqdn(i), 0, T0)).collect();
        assert_eq!(staged.iter().filter(|s| s.answer.is_ok()).count(), 5);
        if committed {
            s.apply(staged, T0);
            assert_eq!((s.counts().in_force, s.counts().heard), (5, 10));
        } else {
            s.abandon(staged, T0);
            assert_eq!(s.counts(), ImportCounts::default());
            take(&mut s, "late", "late.acme.example").unwrap();
        }
    }
}

#[test]
fn refused_keys_are_recorded_up_to_twice_the_quota_whatever_the_rule() {
    let mut s = limited(5);
    for i in 0..1000 {
        take(&mut s, &format!("k{i}"), &format!("k{i}.evil.example")).unwrap_err();
        take(&mut s, &format!("e{i}"), "").unwrap_err();
    }
    assert_eq!(s.counts().heard, 10);
    assert_eq!(take(&mut s, "late", "late.acme.example").unwrap_err(), "quota-services");
    // A key that is known may change: it takes no more room.
    take(&mut s, "k0", "k0.acme.example").unwrap();
}

#[test]
fn a_service_that_is_renamed_comes_in_force_whichever_change_arrives_first() {
    let mut s = slice();
    take(&mut s, "old", "pay.acme.example").unwrap();
    assert_eq!(take(&mut s, "new", "pay.acme.example").unwrap_err(), "name-taken");
    assert!(s.due(T0).is_empty(), "the name is still in use");
    let gone = s.delete("old", T0);
    s.apply(vec![gone], T0);
    let due = s.due(Duration::from_secs(10));
    let changes = s.apply(due, Duration::from_secs(10));
    assert!(matches!(&changes[..], [(key, Some(_))] if &**key == "new"));
    assert_eq!(s.counts(), ImportCounts { heard: 1, in_force: 1, ..ImportCounts::default() });
}

#[test]
fn what_was_over_quota_comes_in_force_when_there_is_room_and_no_more_than_fits() {
    let mut s = limited(2);
    for i in 0..4 {
        let _ = take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example"));
    }
    let gone = s.delete("s0", T0);
    s.apply(vec![gone], T0);
    let due = s.due(Duration::from_secs(10));
    s.apply(due, T0);
    assert_eq!(s.counts(), ImportCounts { heard: 3, in_force: 2, refused: 1, ..ImportCounts::default() });
    let limits = ImportLimits { services: 3, ..ImportLimits::default() };
    s.set_rules(rules("acme.example"), limits, GuardSettings::default());
    let staged = s.reevaluate(T0);
    s.apply(staged, T0);
    assert_eq!(s.counts(), ImportCounts { heard: 3, in_force: 3, ..ImportCounts::default() });
}

#[test]
fn a_withheld_entry_that_breaks_a_tightened_policy_goes_at_once() {
    let mut s = slice();
    for i in 0..20 {
        take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example")).unwrap();
    }
    let staged = s.sweep(&BTreeSet::new(), None, T0);
    s.apply(staged, T0);
    assert_eq!(s.counts().withheld, 20);
    s.set_rules(rules("s1.acme.example"), ImportLimits::default(), GuardSettings::default());
    let staged = s.reevaluate(T0);
    assert_eq!(s.apply(staged, T0).len(), 19);
    assert_eq!((s.counts().in_force, s.counts().withheld), (1, 1), "and one that passes stays withheld");
}

#[test]
fn a_withheld_entry_that_is_offered_again_and_refused_is_heard_until_it_changes() {
    let mut s = slice();
    for i in 0..20 {
        take(&mut s, &format!("s{i}"), &format!("s{i}.acme.example")).unwrap();
    }
    let staged = s.sweep(&BTreeSet::new(), None, T0);
    s.apply(staged, T0);
    let limits = ImportLimits { bytes: 10, ..ImportLimits::default() };
    s.set_rules(rules("acme.example"), limits, GuardSettings::default());
    assert_eq!(take(&mut s, "s1", "other.acme.example").unwrap_err(), "quota-bytes");
    assert_eq!((s.counts().heard, s.counts().older_in_force, s.counts().withheld), (1, 1, 19));
    let root = s.heard_root();
    let due = s.due(Duration::from_secs(600));
    s.apply(due, T0);
    assert_eq!((s.heard_root(), s.counts().in_force), (root, 1), "the wait is over for the others only");
}

#[test]
fn an_abandoned_batch_gives_every_name_back_although_one_change_took_anothers() {
    let leases = NameLeases::new();
    let peer = PeerName::parse("acme").unwrap();
    let mut s = ImportedSlice::new(peer, "t", Arc::new(decode), leases.clone());
    s.set_rules(rules("acme.example"), ImportLimits::default(), GuardSettings::default());
    take(&mut s, "a", "one.acme.example").unwrap();
    let offer = |s: &mut ImportedSlice, key: &str, fqdn: &'static str| {
        s.offer(key, Bytes::from_static(fqdn.as_bytes()), 0, T0)
    };
    let staged = vec![offer(&mut s, "a", "two.acme.example"), offer(&mut s, "b", "one.acme.example")];
    assert!(staged.iter().all(|s| s.answer.is_ok()));
    s.abandon(staged, T0);
    assert_eq!(take(&mut s, "c", "one.acme.example").unwrap_err(), "name-taken", "a still has it");
    take(&mut s, "d", "two.acme.example").unwrap();
}

#[test]
fn a_withdrawal_that_could_not_be_committed_does_not_count_for_the_guard() {
    let mut s = slice();
    for i in 0..11 {
        take(&mut s, &format!("s{i:02}"), &format!("s{i}.acme.example")).unwrap();
    }
    for i in 0..5 {
        let staged = s.delete(&format!("s{i:02}"), T0);
        s.abandon(vec![staged], T0);
    }
    let marked: BTreeSet<Arc<str>> = [Arc::from("s00")].into();
    let staged = s.sweep(&marked, None, T0);
    assert_eq!(s.apply(staged, T0).len(), 10, "the floor of ten is all there for these");
}
