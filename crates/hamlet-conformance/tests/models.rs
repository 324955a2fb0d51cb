//! The kit judges models: right ones pass every case, and each wrong one fails where it is wrong.

mod model;

use hamlet_conformance::{Outcome, Report, Role, Version};
use model::{Fault, Stage};

const V1: Version = Version::V1alpha1;
const V2: Version = Version::V1alpha2;

/// What isn't as it should be, with what was seen.
fn wrong(report: &Report) -> Vec<String> {
    let wrong = report.cases.iter().filter(|c| matches!(c.outcome, Outcome::Failed | Outcome::Differs));
    wrong.map(|c| format!("{} {}: {}", c.id, c.case, c.seen)).collect()
}

fn all_good(report: &Report, least: usize) {
    let wrong = wrong(report);
    assert!(wrong.is_empty(), "{}\n{}", report.summary(), wrong.join("\n"));
    assert!(report.counts().passed >= least, "{}\n{}", report.summary(), report.to_markdown());
}

#[tokio::test]
async fn a_right_owner_of_v1alpha1_passes() {
    all_good(&Stage::new(V1, Fault::None).target(Role::Owner, "").await, 80);
}

#[tokio::test]
async fn a_right_owner_of_v1alpha2_passes() {
    all_good(&Stage::new(V2, Fault::None).target(Role::Owner, "").await, 100);
}

#[tokio::test]
async fn a_right_consumer_of_v1alpha1_passes() {
    all_good(&Stage::new(V1, Fault::None).dialling(Role::Consumer, "").await, 80);
}

#[tokio::test]
async fn a_right_consumer_of_v1alpha2_that_accepts_passes() {
    all_good(&Stage::new(V2, Fault::None).target(Role::Consumer, "").await, 95);
}

#[tokio::test]
async fn a_right_consumer_of_v1alpha2_that_dials_passes() {
    all_good(&Stage::new(V2, Fault::None).dialling(Role::Consumer, "CON-00").await, 35);
}

#[tokio::test]
async fn a_right_owner_of_v1alpha2_that_dials_passes() {
    all_good(&Stage::new(V2, Fault::None).dialling(Role::Owner, "OWN-01").await, 35);
}

/// Fault, version, and the requirement whose cases find it.
const OWNERS: [(Fault, Version, &str); 19] = [
    (Fault::EmptyNonce, V1, "OWN-011"),
    (Fault::DoesNotWait, V1, "OWN-012"),
    (Fault::DoesNotWait, V2, "OWN-012"),
    (Fault::NoResource, V1, "OWN-010"),
    (Fault::OtherAnyType, V2, "OWN-010"),
    (Fault::EndsOnOddAck, V1, "OWN-014"),
    (Fault::CrashesOnNoStatus, V2, "OWN-014"),
    (Fault::ServesAnyType, V1, "OWN-017"),
    (Fault::ServesAnyType, V1, "OWN-018"),
    (Fault::StopsAfterNack, V2, "OWN-015"),
    (Fault::EmptyDelete, V1, "OWN-021"),
    (Fault::LateHeaders, V1, "OWN-025"),
    (Fault::LosesUpdates, V2, "OWN-020"),
    (Fault::AnyContext, V2, "OWN-026"),
    (Fault::ForgetsContext, V2, "OWN-027"),
    (Fault::ExtendsToAnyone, V2, "OWN-028"),
    (Fault::TrustsAnyone, V1, "OWN-001"),
    (Fault::IgnoresNoMessage, V1, "OWN-005"),
    (Fault::OffersUnasked, V2, "OWN-008"),
];

/// The same for consumers.
const CONSUMERS: [(Fault, Version, &str); 18] = [
    (Fault::NoStatus, V1, "CON-005"),
    (Fault::NoStatus, V2, "CON-005"),
    (Fault::TakesAnything, V1, "CON-008"),
    (Fault::TakesAnything, V2, "CON-009"),
    (Fault::TakesAnything, V1, "CON-018"),
    (Fault::EndsOnBad, V2, "CON-012"),
    (Fault::Backwards, V2, "CON-006"),
    (Fault::Silent, V1, "CON-011"),
    (Fault::AnswersTwice, V2, "CON-006"),
    (Fault::WaitsForHeaders, V1, "CON-004"),
    (Fault::NeverReturns, V1, "CON-019"),
    (Fault::Hammers, V1, "CON-019"),
    (Fault::AsksTwice, V1, "CON-017"),
    (Fault::SilentNack, V2, "CON-007"),
    (Fault::TwoIsDelete, V1, "CON-026"),
    (Fault::NeedsResourceInDelete, V2, "CON-024"),
    (Fault::AnyContext, V2, "CON-021"),
    (Fault::ForgetsContext, V2, "CON-022"),
];

#[tokio::test]
async fn every_wrong_owner_is_found_where_it_is_wrong() {
    let mut missed = vec![];
    for (fault, version, requirement) in OWNERS {
        let report = Stage::new(version, fault).target(Role::Owner, requirement).await;
        if wrong(&report).is_empty() {
            missed.push(format!("{fault:?}:\n{}", report.to_markdown()));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[tokio::test]
async fn every_wrong_consumer_is_found_where_it_is_wrong() {
    let mut missed = vec![];
    for (fault, version, requirement) in CONSUMERS {
        let stage = Stage::new(version, fault);
        let report = match version {
            V1 => stage.dialling(Role::Consumer, requirement).await,
            V2 => stage.target(Role::Consumer, requirement).await,
        };
        if wrong(&report).is_empty() {
            missed.push(format!("{fault:?}:\n{}", report.to_markdown()));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
