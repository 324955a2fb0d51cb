//! Tells owners how far their services got here after the acknowledgement: usable by our workloads,
//! or admitted and yet not usable, and why (extensions text, `Applied`).
//!
//! What is told is what an owner can act upon: every service that can't be used, when it can be used
//! after all, and single services that became usable. Of many at once (a full sync) only those that
//! can't be used are told. Woken by any change, told of none, like the sinks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{ImportedService, NotProgrammed, PeerName, Rejection, RejectionCode, ServiceName};
use hamlet_gateway::{EgressState, EgressStatus};
use hamlet_protocol::link::AppliedReport;
use hamlet_runtime::Shutdown;

use super::Agent;

/// Least time between two looks at everything.
const PAUSE: Duration = Duration::from_millis(250);
/// A heavy catalogue is looked at less often: the pause is this many times the last look.
const PAUSE_FACTOR: u32 = 4;
/// How often new streams are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// When at most so many services became usable since the last look, each is told.
const USABLE_TOLD: usize = 64;
/// Most services of one owner that are told to be unusable; an owner remembers no more.
const PROBLEMS_TOLD: usize = hamlet_protocol::owner::UNUSABLE_MAX;

/// What one owner was told.
#[derive(Debug, Default)]
struct Ledger {
    /// The stream on which it was told: a new one knows nothing of unusable services.
    stream: u64,
    told: BTreeMap<ServiceName, (Arc<ImportedService>, Option<Rejection>)>,
    /// Something was due for which there was no room.
    unfinished: bool,
}

/// How far a service got here; `None` while its listeners are being set up.
type Fate = Option<Result<(), Rejection>>;

impl Agent {
    /// Keeps owners told.
    pub(super) fn start_reports(self: &Arc<Agent>) {
        let (agent, shutdown) = (self.clone(), self.spawner.shutdown());
        self.spawner.spawn("reports", async move { agent.keep_owners_told(shutdown).await });
    }

    async fn keep_owners_told(self: Arc<Agent>, shutdown: Shutdown) {
        let mut ledgers: BTreeMap<PeerName, Ledger> = BTreeMap::new();
        let mut imports = self.imported.changed();
        let mut egress = self.gateway.egress_changed();
        let mut changed = true;
        'telling: loop {
            let began = self.clock.now();
            if changed || self.is_report_due(&ledgers) {
                self.tell_owners(&mut ledgers);
            }
            let took = self.clock.now().saturating_sub(began);
            let pause = PAUSE.max(took * PAUSE_FACTOR);
            if shutdown.or_begun(tokio::time::sleep(pause)).await.is_none() {
                break 'telling;
            }
            changed = tokio::select! {
                Ok(()) = imports.changed() => true,
                Ok(()) = egress.changed() => true,
                () = tokio::time::sleep(LOOK) => false,
                () = shutdown.begun() => break 'telling,
            };
        }
    }

    fn is_report_due(&self, ledgers: &BTreeMap<PeerName, Ledger>) -> bool {
        self.links().iter().any(|link| {
            let ledger = ledgers.get(link.peer());
            link.told_on().is_some_and(|stream| ledger.is_none_or(|l| l.stream != stream || l.unfinished))
        })
    }

    fn tell_owners(&self, ledgers: &mut BTreeMap<PeerName, Ledger>) {
        let mut egress: BTreeMap<_, Vec<EgressStatus>> = BTreeMap::new();
        for status in self.gateway.egress_status() {
            egress.entry(status.id.clone()).or_default().push(status);
        }
        let mut by_owner: BTreeMap<PeerName, Vec<Arc<ImportedService>>> = BTreeMap::new();
        for service in self.imported.snapshot() {
            by_owner.entry(service.id.owner.clone()).or_default().push(service);
        }
        let links = self.links();
        ledgers.retain(|peer, _| links.iter().any(|l| l.peer() == peer));
        for link in links {
            let Some(stream) = link.told_on() else { continue };
            let ledger = ledgers.entry(link.peer().clone()).or_default();
            let services = by_owner.remove(link.peer()).unwrap_or_default();
            let own = |s: &ImportedService| egress.get(&s.id).map(Vec::as_slice).unwrap_or_default();
            let fates = services.into_iter().map(|s| (fate(&s, own(&s)), s)).map(|(f, s)| (s, f)).collect();
            let due = ledger.due(stream, fates);
            let reports: Vec<AppliedReport> = due.iter().map(|(_, report)| report.clone()).collect();
            let taken = if reports.is_empty() { 0 } else { link.report_applied(stream, &reports) };
            ledger.unfinished = taken < due.len();
            for (service, report) in due.into_iter().take(taken) {
                ledger.told.insert(service.id.name.clone(), (service, report.problem));
            }
        }
    }
}

impl Ledger {
    /// What to tell, the most important first. Single services count as told when they are taken;
    /// those of a crowd that are only usable count at once.
    fn due(
        &mut self,
        stream: u64,
        fates: Vec<(Arc<ImportedService>, Fate)>,
    ) -> Vec<(Arc<ImportedService>, AppliedReport)> {
        if self.stream != stream {
            self.stream = stream;
            self.told.retain(|_, (_, problem)| problem.is_none());
        }
        let (mut recovered, mut problems, mut usable) = (vec![], vec![], vec![]);
        let mut known = BTreeMap::new();
        let mut unusable = 0;
        for (service, fate) in fates {
            let told = self.told.remove_entry(&service.id.name);
            if let Some((name, told)) = &told {
                known.insert(name.clone(), told.clone());
            }
            let told = told.map(|(_, told)| told);
            let same = told.as_ref().is_some_and(|(before, _)| Arc::ptr_eq(before, &service));
            let before = told.and_then(|(_, problem)| problem);
            match fate {
                None => {}
                Some(Err(problem)) => {
                    unusable += 1;
                    let news = !same || before.as_ref() != Some(&problem);
                    if news && unusable <= PROBLEMS_TOLD {
                        problems.push((service, Some(problem)));
                    }
                }
                Some(Ok(())) if before.is_some() => recovered.push((service, None)),
                Some(Ok(())) if !same => usable.push(service),
                Some(Ok(())) => {}
            }
        }
        // What isn't imported any more is forgotten.
        self.told = known;
        if usable.len() > USABLE_TOLD {
            for service in usable.drain(..) {
                self.told.insert(service.id.name.clone(), (service, None));
            }
        }
        let usable = usable.into_iter().map(|s| (s, None));
        let report = |(service, problem): (Arc<ImportedService>, Option<Rejection>)| {
            let key = Arc::from(service.id.name.as_str());
            (service, AppliedReport { key, problem })
        };
        recovered.into_iter().chain(problems).chain(usable).map(report).collect()
    }
}

/// How far a service got: every instance counts.
fn fate(service: &ImportedService, egress: &[EgressStatus]) -> Fate {
    let mut settled = true;
    for instance in &service.instances {
        let own = egress.iter().find(|e| e.name == instance.fqdn);
        let problem = match (&instance.not_programmed, own.map(|e| &e.state)) {
            (Some(why), _) => {
                let rule = match why {
                    NotProgrammed::PortUnknown => "port-unknown",
                    NotProgrammed::ClearTextRefused => "clear-text-refused",
                };
                let text = why.to_string();
                Some((rule, text.split_once(": ").map_or(text.clone(), |(_, text)| text.to_owned())))
            }
            (None, Some(EgressState::NotListening { reason, remedy })) => {
                Some(("not-listening", format!("{reason}; {remedy}")))
            }
            (None, Some(EgressState::Listening | EgressState::SharedOnly { .. })) => None,
            (None, Some(EgressState::Pending) | None) => {
                settled = false;
                None
            }
        };
        if let Some((rule, message)) = problem {
            let field = format!("instances.{}", instance.id);
            return Some(Err(Rejection::new(RejectionCode::Policy, rule, field, message)));
        }
    }
    settled.then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_core::{Fqdn, ServiceId};

    fn service(name: &str) -> Arc<ImportedService> {
        Arc::new(ImportedService {
            id: ServiceId {
                owner: PeerName::parse("globex").unwrap(),
                name: ServiceName::parse(name).unwrap(),
            },
            fqdn: Fqdn::parse(&format!("{name}.globex.example")).unwrap(),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            instances: vec![],
            sans: vec![],
        })
    }

    fn problem(text: &str) -> Fate {
        Some(Err(Rejection::new(RejectionCode::Policy, "port-unknown", "instances.a", text)))
    }

    /// What is told, all of it taken: the name with what is wrong.
    fn tell(ledger: &mut Ledger, stream: u64, fates: &[(Arc<ImportedService>, Fate)]) -> Vec<String> {
        let due = ledger.due(stream, fates.to_vec());
        for (service, report) in &due {
            ledger.told.insert(service.id.name.clone(), (service.clone(), report.problem.clone()));
        }
        let text = |p: &Option<Rejection>| p.as_ref().map_or("usable".to_owned(), |p| p.message.clone());
        due.iter().map(|(_, r)| format!("{} {}", r.key, text(&r.problem))).collect()
    }

    #[test]
    fn each_step_is_told_once_and_a_problem_again_on_every_stream() {
        let (a, b) = (service("a"), service("b"));
        let mut ledger = Ledger::default();
        let first = [(a.clone(), Some(Ok(()))), (b.clone(), problem("no port"))];
        assert_eq!(tell(&mut ledger, 1, &first), ["b no port", "a usable"]);
        assert!(tell(&mut ledger, 1, &first).is_empty());
        assert_eq!(tell(&mut ledger, 2, &first), ["b no port"], "the owner's table began anew");
        let other = [(a.clone(), None), (b.clone(), problem("clear text"))];
        assert_eq!(tell(&mut ledger, 2, &other), ["b clear text"]);
        let good = [(a.clone(), Some(Ok(()))), (b.clone(), Some(Ok(())))];
        assert_eq!(tell(&mut ledger, 2, &good), ["b usable"]);
        let newer = [(service("a"), Some(Ok(()))), (b, Some(Ok(())))];
        assert_eq!(tell(&mut ledger, 2, &newer), ["a usable"], "another version of it");
        assert!(tell(&mut ledger, 2, &[]).is_empty());
        assert!(ledger.told.is_empty());
    }

    #[test]
    fn of_a_crowd_only_what_cannot_be_used_is_told_and_bounded() {
        let mut ledger = Ledger::default();
        let usable = (0..10_000).map(|i| (service(&format!("s{i}")), Some(Ok(()))));
        let unusable = (0..2_000).map(|i| (service(&format!("u{i}")), problem("no port")));
        let fates: Vec<_> = usable.chain(unusable).collect();
        let told = tell(&mut ledger, 1, &fates);
        assert_eq!(told.len(), PROBLEMS_TOLD);
        assert!(told.iter().all(|line| line.ends_with("no port")));
        assert!(tell(&mut ledger, 1, &fates).is_empty());
    }
}
