//! Small implementations of both roles and both versions, right ones and wrong ones, for the kit to
//! judge. They keep no state between streams and promise nothing but what a case looks at.

pub(crate) mod consumer;
pub(crate) mod owner;
pub(crate) mod plumbing;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hamlet_conformance::{Options, Report, Role, Side, Template, TlsFiles, Version};
use hamlet_testkit::pki::{LeafSpec, TestCa};
use tempfile::TempDir;

/// What both sides are configured with.
pub(crate) const CONTEXT: &str = "a shared secret";

/// What is wrong with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    // Of an owner.
    EmptyNonce,
    DoesNotWait,
    NoResource,
    OtherAnyType,
    EndsOnOddAck,
    ServesAnyType,
    StopsAfterNack,
    EmptyDelete,
    LateHeaders,
    LosesUpdates,
    AnyContext,
    ForgetsContext,
    ExtendsToAnyone,
    TrustsAnyone,
    IgnoresNoMessage,
    OffersUnasked,
    CrashesOnNoStatus,
    // Of a consumer.
    NoStatus,
    TakesAnything,
    EndsOnBad,
    Backwards,
    Silent,
    AnswersTwice,
    WaitsForHeaders,
    NeverReturns,
    Hammers,
    AsksTwice,
    SilentNack,
    TwoIsDelete,
    NeedsResourceInDelete,
}

/// One model and its peer, the kit.
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) model: TestCa,
    pub(crate) kit: TestCa,
    pub(crate) version: Version,
    pub(crate) fault: Fault,
}

impl Stage {
    /// Fresh identities on both sides.
    pub(crate) fn new(version: Version, fault: Fault) -> Stage {
        let folder = tempfile::Builder::new().prefix("hamlet-model-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("services")).unwrap();
        Stage { folder, model: TestCa::new("model.example"), kit: TestCa::new("kit.example"), version, fault }
    }

    /// Where a model owner finds its services: a file each, with the revision as its content.
    pub(crate) fn services(&self) -> PathBuf {
        self.folder.path().join("services")
    }

    /// What the kit is told.
    pub(crate) fn options(&self, side: Side, role: Role, filter: &str) -> Options {
        let folder = self.folder.path();
        let mut spec = LeafSpec::of(self.kit.agent_id().as_str());
        spec.dns = vec!["kit.example".to_owned()];
        let (cert, key) = self.kit.leaf(spec).write(folder, "kit");
        let ca = folder.join("model-ca.pem");
        std::fs::write(&ca, self.model.pem()).unwrap();
        let services = self.services();
        let services = services.display();
        let publish = format!(
            "sh -c 'if [ $0 = delete ]; then rm -f \"{services}/$1\"; else echo $0 >\"{services}/.$1\" && mv \"{services}/.$1\" \"{services}/$1\"; fi'"
        );
        Options {
            context: if self.version == Version::V1alpha2 { CONTEXT.to_owned() } else { String::new() },
            publish: (role == Role::Owner).then_some(publish),
            filter: Some(filter.to_owned()),
            deadline: Duration::from_secs(2),
            quiet: Duration::from_millis(200),
            connect: Duration::from_secs(4),
            template: Template {
                domain: "kit.example".to_owned(),
                address: "192.0.2.10".to_owned(),
                port: 8443,
                san: "spiffe://kit.example/gateway".to_owned(),
            },
            ..Options::new(side, role, self.version, TlsFiles { cert, key, ca, server_name: None })
        }
    }

    /// Runs the kit against a model that accepts.
    pub(crate) async fn target(&self, role: Role, filter: &str) -> Report {
        let address = plumbing::serve(self, role).await;
        let side = Side::Target(address.to_string());
        hamlet_conformance::run(self.options(side, role, filter), |case| {
            eprintln!("{} {} {} {} ms: {}", case.id, case.outcome.name(), case.case, case.took_ms, case.seen)
        })
        .await
        .unwrap()
    }

    /// Runs the kit against a model that dials.
    pub(crate) async fn dialling(&self, role: Role, filter: &str) -> Report {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let model = plumbing::dial_for_ever(self, role, address);
        let side = Side::Listen(std::sync::Arc::new(listener));
        let report = hamlet_conformance::run(self.options(side, role, filter), |case| {
            eprintln!("{} {} {} {} ms: {}", case.id, case.outcome.name(), case.case, case.took_ms, case.seen)
        })
        .await
        .unwrap();
        model.abort();
        report
    }
}
