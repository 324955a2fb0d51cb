//! Taking a new configuration: checked whole, then swapped in; the last good one stays otherwise.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use hamlet_adapters::file::{FolderError, FolderLimits, FolderSnapshot, FolderWatch};
use hamlet_admin::api::{ReloadProblems, ReloadReport};
use hamlet_identity::watch::IdentityWatch;
use hamlet_runtime::Shutdown;

use super::Agent;
use super::audit::Taken;
use super::bundles::own_file;
use crate::config::{self, Config, Loaded, Problems};

impl Agent {
    /// Watches the configuration folder and the certificate files from now on.
    pub(super) fn watch_files(self: &Arc<Agent>, seen: FolderSnapshot) {
        let (watch, trigger) = FolderWatch::new(
            self.path.clone(),
            FolderLimits::default(),
            Some(seen.fingerprint),
            self.clock.clone(),
        );
        *self.trigger.lock() = Some(trigger);
        let (agent, spawner, shutdown) = (self.clone(), self.spawner.clone(), self.spawner.shutdown());
        self.spawner.spawn("configuration", async move {
            let on_change = |reading| {
                let agent = agent.clone();
                async move { agent.take(reading).await }
            };
            watch.run(on_change, spawner, shutdown).await;
        });
        self.watch_certificates();
    }

    /// Reads the files again and takes them, or says what is wrong.
    pub(super) async fn reload(&self) -> Result<ReloadReport, ReloadProblems> {
        let trigger = self.trigger.lock().clone();
        let Some(trigger) = trigger else {
            let problem = "the agent is still starting; try again".to_owned();
            return Err(ReloadProblems { problems: vec![problem.clone()], rendered: problem });
        };
        // The callback has run when this returns, so the outcome is in the load state.
        let read = trigger.reread().await;
        let load = self.load.lock();
        if load.failed_at.is_some() {
            return Err(ReloadProblems { problems: load.errors.clone(), rendered: load.rendered.clone() });
        }
        if let Err(error) = read {
            let problem = error.to_string();
            return Err(ReloadProblems { problems: vec![problem.clone()], rendered: problem });
        }
        Ok(load.last_report.clone())
    }

    async fn take(self: Arc<Agent>, reading: Result<FolderSnapshot, FolderError>) {
        let files = reading.as_ref().ok().map(|snapshot| snapshot.fingerprint);
        let loaded = match reading {
            Ok(snapshot) if snapshot.files.is_empty() => Err(config::nothing_to_read(&self.path)),
            Ok(snapshot) => {
                let (data, ledger) = (self.config().mesh.data.clone(), self.peering.ledger());
                let parse = move || {
                    let mut sources = snapshot.files;
                    sources.extend(config::made::sources(&data, ledger.peers.values()));
                    config::load_sources(sources)
                };
                match self.spawner.spawn_blocking(parse).await {
                    Ok(loaded) => loaded,
                    Err(_) => return,
                }
            }
            Err(error) => Err(config::unreadable(&error)),
        };
        match loaded {
            Ok(loaded) => self.apply(loaded, files).await,
            Err(problems) => self.refuse(&problems, files),
        }
        self.bump();
    }

    fn refuse(&self, problems: &Problems, files: Option<[u8; 32]>) {
        let errors: Vec<String> = problems.errors().map(ToString::to_string).collect();
        let mut load = self.load.lock();
        // The same problems read again (a reload beside the watch) are no news.
        if load.errors != errors {
            for problem in &errors {
                tracing::error!(%problem, "configuration refused; the last good one stays in force");
            }
            self.audit.not_configured(files, errors.len());
        }
        load.errors = errors;
        load.rendered = problems.render(false);
        load.failed_at = Some(self.clock.now());
    }

    async fn apply(self: &Arc<Agent>, loaded: Loaded, files: Option<[u8; 32]>) {
        let old = self.config();
        let changes = differences(&old, &loaded.config);
        let needs_restart = needs_restart(&old, &loaded.config);
        let new = Arc::new(loaded.config);
        self.config.store(new.clone());
        let made = self.peering.ledger().peers.keys().cloned().collect();
        self.audit.configured(&old, &new, Taken { files, changes: &changes, made });
        // Trust first when it shrinks or grows: a removed peer is out before anything else.
        self.believe();
        self.connection_limits.store(Arc::new((&new.mesh.limits).into()));
        self.refresh_local();
        let withheld = self.file_source().problem();
        self.reconcile_links(&new).await;
        self.sinks_due.send_modify(|v| *v += 1);
        self.refresh_own_bundle().await;
        self.follow_bundles(&new).await;
        self.watch_certificates();
        let mut load = self.load.lock();
        let changed = !changes.is_empty() || !needs_restart.is_empty();
        load.generation += u64::from(changed);
        load.files = loaded.files;
        load.loaded_at = self.clock.now();
        load.warnings = loaded.warnings.iter().map(ToString::to_string).collect();
        load.errors.clear();
        load.rendered.clear();
        load.failed_at = None;
        load.last_report = ReloadReport {
            generation: load.generation,
            changed,
            changes: changes.clone(),
            needs_restart: needs_restart.clone(),
            warnings: load.warnings.iter().cloned().chain(withheld).collect(),
        };
        drop(load);
        tracing::info!(changes = changes.len(), "configuration taken");
        for line in needs_restart {
            tracing::warn!(%line, "this change needs a restart");
        }
    }

    /// Watches certificates, bundles, revocation lists and secrets; anew when the set of files changes.
    fn watch_certificates(self: &Arc<Agent>) {
        let config = self.config();
        let secrets = config.peers.values().filter_map(|p| p.context.as_ref()).map(|c| c.path.clone());
        let lists = config.peers.values().filter_map(|p| p.crl.as_ref()).map(|c| c.path.clone());
        let bundles = config.peers.values().filter_map(|p| p.bundle.clone());
        let web = config.mesh.bundle_endpoint.as_ref().and_then(|e| e.web.as_ref());
        let web = web.into_iter().flat_map(|pair| [pair.cert.clone(), pair.key.clone()]);
        let ours = own_file(&config.mesh).into_iter().chain(web);
        let files: BTreeSet<PathBuf> = bundles.chain(lists).chain(secrets).chain(ours).collect();
        let identities = vec![self.agent_identity.clone(), self.gateway_identity.clone()];
        let watch = IdentityWatch::new(identities).with_files(files);
        let mut changed = watch.files_changed();
        let shutdown: Shutdown = self.spawner.shutdown().child();
        if let Some(old) = self.watching.lock().replace(shutdown.clone()) {
            old.begin();
        }
        self.spawner.spawn("certificates", watch.run(shutdown.clone()));
        let agent = self.clone();
        self.spawner.spawn("bundles", async move {
            while let Some(Ok(())) = shutdown.or_begun(changed.changed()).await {
                tracing::info!("a bundle, a revocation list or a secret changed");
                let config = agent.config();
                agent.believe();
                agent.refresh_own_bundle().await;
                agent.reconcile_links(&config).await;
            }
        });
    }
}

/// What differs, one line each.
fn differences(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = vec![];
    if old.mesh != new.mesh {
        lines.push("mesh: changed".to_owned());
    }
    compare("peer", &mut lines, old.peers.iter(), new.peers.iter());
    compare("import", &mut lines, old.imports.iter(), new.imports.iter());
    let named = |rules: &[hamlet_core::publication::PublicationRule]| -> Vec<_> {
        rules.iter().map(|r| (r.name.clone(), r.clone())).collect()
    };
    let (a, b) = (named(&old.publications), named(&new.publications));
    compare("publication", &mut lines, a.iter().map(|(k, v)| (k, v)), b.iter().map(|(k, v)| (k, v)));
    let old_services = old.services.iter().map(|s| (&s.name, s));
    compare("service", &mut lines, old_services, new.services.iter().map(|s| (&s.name, s)));
    lines
}

fn compare<'a, K: Ord + std::fmt::Display + 'a, V: PartialEq + 'a>(
    kind: &str,
    lines: &mut Vec<String>,
    old: impl Iterator<Item = (&'a K, &'a V)>,
    new: impl Iterator<Item = (&'a K, &'a V)>,
) {
    let old: std::collections::BTreeMap<&K, &V> = old.collect();
    let new: std::collections::BTreeMap<&K, &V> = new.collect();
    for (name, value) in &new {
        match old.get(name) {
            None => lines.push(format!("{kind} {name}: added")),
            Some(before) if before != value => lines.push(format!("{kind} {name}: changed")),
            Some(_) => {}
        }
    }
    lines.extend(old.keys().filter(|k| !new.contains_key(*k)).map(|k| format!("{kind} {k}: removed")));
}

/// Changes that only a restart puts in effect, one line each.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let (a, b) = (&old.mesh, &new.mesh);
    let fixed = [
        ("metadata.name", a.name != b.name),
        ("spec.trustDomain", a.trust_domain != b.trust_domain),
        ("spec.identity", a.identity != b.identity),
        ("spec.listen", a.listen != b.listen),
        ("spec.bundleEndpoint", a.bundle_endpoint != b.bundle_endpoint),
        ("spec.data", a.data != b.data),
        ("spec.socket", a.socket != b.socket),
        ("spec.egress", a.egress != b.egress),
        ("spec.log", a.log != b.log),
        (
            "spec.limits.silentPerPrefix (for the ingress)",
            a.limits.silent_per_prefix != b.limits.silent_per_prefix,
        ),
    ];
    let changed = fixed.into_iter().filter(|(_, changed)| *changed);
    changed.map(|(path, _)| format!("mesh {path}: takes effect after a restart")).collect()
}
