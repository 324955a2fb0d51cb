//! What a run is told: whom to test, over which transport, and how long to wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::speech::{Role, Version};
use crate::tls::TlsFiles;

/// How long something that must come may take, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long is waited for what must not come, unless told otherwise.
pub const QUIET: Duration = Duration::from_millis(500);
/// How long an implementation that dials may take to come, unless told otherwise: longer than most
/// wait before they try again.
pub const CONNECT: Duration = Duration::from_secs(90);

/// Who dials.
#[derive(Debug, Clone)]
pub enum Side {
    /// We dial the implementation under test: HOST:PORT.
    Target(String),
    /// It dials us.
    Listen(Arc<TcpListener>),
}

/// What the services are like that a consumer under test is offered. It must be configured to
/// accept them.
#[derive(Debug, Clone)]
pub struct Template {
    /// Names end in it.
    pub domain: String,
    /// Address of every endpoint.
    pub address: String,
    /// Port of every endpoint.
    pub port: u16,
    /// Identity of every service.
    pub san: String,
}

impl Default for Template {
    fn default() -> Template {
        Template {
            domain: "conformance.example".to_owned(),
            address: "192.0.2.10".to_owned(),
            port: 8443,
            san: "spiffe://conformance.example/gateway".to_owned(),
        }
    }
}

/// One run of the kit.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who dials.
    pub side: Side,
    /// The role of the implementation under test.
    pub role: Role,
    /// The version it is tested in.
    pub version: Version,
    /// Certificates.
    pub tls: TlsFiles,
    /// The value of `context` that both sides are configured with; empty for none. v1alpha2 only.
    pub context: String,
    /// Run as `CMD create|update|delete NAME` to provoke changes in an owner under test.
    pub publish: Option<String>,
    /// Run at the start of each case, and killed at its end: starts the implementation under test,
    /// for one that dials and doesn't come back soon.
    pub start: Option<String>,
    /// Only cases whose id contains this.
    pub filter: Option<String>,
    /// How long something that must come may take.
    pub deadline: Duration,
    /// How long is waited for what must not come.
    pub quiet: Duration,
    /// How long an implementation that dials may take to come.
    pub connect: Duration,
    /// The services that a consumer under test is offered.
    pub template: Template,
}

impl Options {
    /// Options with the usual times and no commands.
    pub fn new(side: Side, role: Role, version: Version, tls: TlsFiles) -> Options {
        Options {
            side,
            role,
            version,
            tls,
            context: String::new(),
            publish: None,
            start: None,
            filter: None,
            deadline: DEADLINE,
            quiet: QUIET,
            connect: CONNECT,
            template: Template::default(),
        }
    }
}
