//! A conformance kit for the service discovery API between meshes: it plays the other side against
//! any implementation and says which requirements of the protocol it meets.
//!
//! It is a black box test and shares no code with Hamlet's own implementation: messages are written
//! by hand from the table of fields ([`wire`]), frames by the kit itself, TLS from files. It knows
//! only what travels on the wire, and commands that its user gives it.
//!
//! Every case has a fresh connection and a bounded time: whatever is tested can't hang the kit.
//!
//! ```no_run
//! use hamlet_conformance::{Options, Role, Side, TlsFiles, Version};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let tls = TlsFiles {
//!     cert: "kit.pem".into(),
//!     key: "kit.key".into(),
//!     ca: "roots.pem".into(),
//!     server_name: None,
//! };
//! let side = Side::Target("mesh.example:7443".to_owned());
//! let options = Options::new(side, Role::Owner, Version::V1alpha2, tls);
//! let report = hamlet_conformance::run(options, |case| println!("{} {}", case.id, case.seen)).await?;
//! println!("{}", report.summary());
//! # Ok(())
//! # }
//! ```

mod cases;
mod kit;
mod options;
mod process;
mod registry;
mod report;
mod speech;
mod stream;
mod tls;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::SystemClock;

pub use kit::{Kit, Stop, Verdict};
pub use options::{CONNECT, DEADLINE, Options, QUIET, Side, Template};
pub use registry::{Case, Kind, Level, Listed, Requirement, cases_of, requirements};
pub use report::{CaseResult, Counts, Outcome, Report};
pub use speech::{Ask, Offer, Operation, Role, Said, Service, Version};
pub use stream::{Answer, Heard, Stream, framed};
pub use tls::{Identity, TlsError, TlsFiles};

use registry::Needs;

/// Services that are published before the first case of an owner under test.
const PUBLISHED: [&str; 3] = ["kit-a", "kit-b", "kit-c"];
/// A case may take so many deadlines in all.
const DEADLINES: u32 = 8;
/// Time for the last case's commands.
const CLOSING: Duration = Duration::from_secs(40);

/// The run could not begin.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("a v1alpha1 consumer dials: use --listen; only an owner is dialled in that version")]
    ConsumerDials,
    #[error("a v1alpha1 owner is dialled: use --target; only a consumer dials in that version")]
    OwnerIsDialled,
    #[error("--publish-cmd makes changes in an owner; it has no use for a consumer under test")]
    PublishForConsumer,
    #[error("no case has an id that contains {0:?}; ids look like A2-OWN-012.1")]
    NothingMatches(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("publishing failed: {0}")]
    Publish(String),
}

impl RunError {
    /// Whether the options contradict each other, as opposed to something that went wrong.
    pub fn is_usage(&self) -> bool {
        !matches!(self, RunError::Tls(TlsError::File { .. } | TlsError::Config(_)) | RunError::Publish(_))
    }
}

/// Runs all cases that fit the options; `each` hears of every case as it ends.
pub async fn run(options: Options, mut each: impl FnMut(&CaseResult)) -> Result<Report, RunError> {
    check(&options)?;
    let filter = options.filter.clone().unwrap_or_default();
    let cases: Vec<Listed> =
        cases_of(options.role, options.version).into_iter().filter(|c| c.id.contains(&filter)).collect();
    if cases.is_empty() {
        return Err(RunError::NothingMatches(filter));
    }
    let identity = Arc::new(Identity::load(&options.tls)?);
    let options = Arc::new(options);
    publish(&options, "create").await?;
    let mut report = Report::new(options.role, options.version);
    for (at, case) in cases.iter().enumerate() {
        let result = one(&options, &identity, case, at + 1).await;
        each(&result);
        report.cases.push(result);
    }
    publish(&options, "delete").await?;
    Ok(report)
}

fn check(options: &Options) -> Result<(), RunError> {
    let dialled = matches!(options.side, Side::Target(_));
    match (options.version, options.role) {
        (Version::V1alpha1, Role::Consumer) if dialled => Err(RunError::ConsumerDials),
        (Version::V1alpha1, Role::Owner) if !dialled => Err(RunError::OwnerIsDialled),
        (_, Role::Consumer) if options.publish.is_some() => Err(RunError::PublishForConsumer),
        _ => Ok(()),
    }
}

async fn publish(options: &Options, verb: &str) -> Result<(), RunError> {
    let Some(command) = &options.publish else { return Ok(()) };
    for name in PUBLISHED {
        process::publish(command, verb, name).await.map_err(RunError::Publish)?;
    }
    Ok(())
}

async fn one(options: &Arc<Options>, identity: &Arc<Identity>, case: &Listed, number: usize) -> CaseResult {
    use hamlet_runtime::Clock as _;
    let clock = SystemClock::new();
    let verdict = match unmet(options, case.needs) {
        Some(why) => Err(Stop::NotApplicable(why.to_owned())),
        None => played(options, identity, case, number).await,
    };
    let level = case.requirement.level(options.version);
    let (outcome, seen) = match verdict {
        Ok(seen) => (Outcome::Passed, seen),
        Err(Stop::NotApplicable(why)) => (Outcome::NotApplicable, why),
        Err(Stop::Failed(seen)) if level == Level::Should => (Outcome::Differs, seen),
        Err(Stop::Failed(seen)) => (Outcome::Failed, seen),
    };
    CaseResult {
        id: case.id.clone(),
        section: case.requirement.section,
        requirement: case.requirement.text,
        level: report::level(level),
        kind: report::kind(case.kind),
        case: case.name,
        outcome,
        seen: seen.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        took_ms: u64::try_from(clock.now().as_millis()).unwrap_or(u64::MAX),
    }
}

fn unmet(options: &Options, needs: Needs) -> Option<&'static str> {
    let dialled = matches!(options.side, Side::Target(_));
    match needs {
        Needs::Target if !dialled => Some("only for an implementation that accepts (--target)"),
        Needs::Listen if dialled => Some("only for an implementation that dials (--listen)"),
        Needs::Context if options.context.is_empty() => Some("needs a context value (--context-file)"),
        _ => None,
    }
}

async fn played(options: &Arc<Options>, identity: &Arc<Identity>, case: &Listed, number: usize) -> Verdict {
    let mut kit = Kit::new(options.clone(), identity.clone(), number).map_err(Stop::NotApplicable)?;
    let dials = matches!(options.side, Side::Target(_));
    // An implementation that dials may have to be waited for twice.
    let patience = options.deadline * DEADLINES + if dials { Duration::ZERO } else { options.connect * 2 };
    let verdict = tokio::time::timeout(patience, (case.run)(&mut kit)).await;
    let closed = tokio::time::timeout(CLOSING, kit.close()).await;
    match (verdict, closed) {
        (Err(_), _) => Err(Stop::Failed(format!("no end within {} s", patience.as_secs()))),
        (Ok(_), Err(_)) => Err(Stop::Failed("what the case had begun could not be ended".to_owned())),
        (Ok(verdict), Ok(())) => verdict,
    }
}
