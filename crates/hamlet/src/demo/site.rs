//! One mesh of the demo: its folder, its addresses, its processes. It doesn't know the story.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::block::Block;
use super::family::{Child, Family};

/// Where a mesh listens: the documented default ports, unless another program has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) agent: SocketAddr,
    pub(super) ingress: SocketAddr,
    pub(super) egress_http: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// A mesh.
pub(super) struct Site {
    /// Its name: `acme`.
    pub(super) name: &'static str,
    /// Its trust domain, under which its services have their names.
    pub(super) domain: &'static str,
    /// Its configuration folder.
    pub(super) folder: PathBuf,
    /// Its addresses.
    pub(super) block: Block,
    /// Its listeners.
    pub(super) ports: Ports,
    /// Its agent, while it runs.
    pub(super) agent: Option<Child>,
    /// Its workloads.
    pub(super) workloads: Vec<Child>,
}

impl Site {
    /// A mesh that has addresses and nothing else yet.
    pub(super) fn new(name: &'static str, domain: &'static str, folder: PathBuf) -> io::Result<Site> {
        let block = Block::claim()?;
        let ports = Ports {
            agent: block.listener(7443)?,
            ingress: block.listener(7444)?,
            egress_http: block.listener(7480)?,
            dns: block.listener(7453)?,
            admin: block.listener(7490)?,
        };
        Ok(Site { name, domain, folder, block, ports, agent: None, workloads: Vec::new() })
    }

    /// The fqdn of one of its services.
    pub(super) fn fqdn(&self, service: &str) -> String {
        format!("{service}.{}", self.domain)
    }

    /// The name of its agent's log.
    pub(super) fn log_name(&self) -> String {
        format!("{}-agent", self.name)
    }

    /// Its agent's process id, for people.
    pub(super) fn pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Child::pid)
    }

    /// Writes a file of the folder whole: the agent watches, and must not see half of it.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder.join(name);
        let beside = self.folder.join(format!(".{}.new", name.replace('/', "-")));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&beside, text)?;
        fs::rename(beside, path)
    }

    /// Removes a file of the folder.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))
    }

    /// The file that the agent writes once it is ready.
    pub(super) fn ready_file(&self, family: &Family) -> PathBuf {
        family.log(&self.log_name()).with_extension("ready")
    }

    /// Starts the agent, which is ready later ([`Site::ready_file`]).
    pub(super) fn start_agent(&mut self, family: &Family) -> io::Result<()> {
        let ready = self.ready_file(family);
        if let Err(error) = fs::remove_file(&ready)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let arguments = [
            "agent".as_ref(),
            "-f".as_ref(),
            self.folder.as_os_str(),
            "--ready-file".as_ref(),
            ready.as_os_str(),
        ];
        self.agent = Some(family.spawn(&self.log_name(), &arguments)?);
        Ok(())
    }

    /// Starts a workload at home and returns its address.
    pub(super) fn start_workload(&mut self, family: &Family, service: &str) -> io::Result<SocketAddr> {
        let listen = self.block.listener(0)?;
        let name = workload_name(service, self.domain);
        let arguments = ["demo-workload", "--listen", &listen.to_string(), "--name", &name];
        let child = family.spawn(&format!("{}-{service}", self.name), &arguments)?;
        self.workloads.push(child);
        Ok(listen)
    }
}

/// The name that a workload answers with.
pub(super) fn workload_name(service: &str, domain: &str) -> String {
    format!("{service}, running at {domain}")
}
