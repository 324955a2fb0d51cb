//! `hamlet init`: a folder to start from.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use hamlet_core::{Fqdn, MeshName, TrustDomain};
use hamlet_runtime::SystemClock;

use super::exit::{Exit, Failure};
use super::output::Out;
use crate::config::init::{InitError, InitOptions, init};

/// Make a working folder: mesh.yaml, an authority, certificates, an example
///
/// Writes a commented mesh.yaml, a certificate authority that renews and rotates by itself, the
/// agent's and the gateway's certificates (keys readable by you only) and an example publication. It overwrites nothing. In
/// the end it says what to give to a partner and what to ask for.
///
/// Examples:
///   hamlet init acme --mesh acme --trust-domain acme.example
///   hamlet init acme --mesh acme --trust-domain acme.example \
///     --host gw.acme.example --advertise 203.0.113.10:7444
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct InitArgs {
    /// The folder; made if it doesn't exist
    dir: PathBuf,
    /// The mesh's name: a DNS label
    #[arg(long, value_name = "NAME", value_parser = MeshName::parse)]
    mesh: MeshName,
    /// The mesh's SPIFFE trust domain
    #[arg(long, value_name = "DOMAIN", value_parser = TrustDomain::parse)]
    trust_domain: TrustDomain,
    /// A host name of this machine, for the certificates; may be given several times
    #[arg(long = "host", value_name = "NAME", value_parser = Fqdn::parse)]
    hosts: Vec<Fqdn>,
    /// Where peers reach our ingress, if that is known already; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT")]
    advertise: Vec<SocketAddr>,
}

/// Does it.
pub(super) fn run(args: InitArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let InitArgs { dir, mesh, trust_domain, hosts, advertise } = args;
    let options = InitOptions { mesh, trust_domain, hosts, advertise, clock: SystemClock::shared() };
    let report = init(&dir, &options).map_err(failure)?;
    write!(out, "{report}")?;
    Ok(Exit::Good)
}

/// The words after `;` are the hint already, except for files that are in the way.
fn failure(error: InitError) -> anyhow::Error {
    match error {
        InitError::Exists(_) => {
            let hint = "nothing was written; to check what is there: hamlet validate -f DIR";
            Failure::new(Exit::Failed, error.to_string(), hint).into()
        }
        other => other.into(),
    }
}
