//! `hamlet describe`: one thing in full, as a page for people.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use hamlet_admin::api::{
    BeatStatus, BundleStatus, HelloStatus, ImportProgress, ImportStatus, InstanceStatus, PeerStatus,
    Programming, PublicationStatus, PublishProgress, RefusedService, RootsChange, ServiceStatus,
    UnsaidService, human_age,
};
use hamlet_core::rejection::one_line;

use super::bundle::{day, ours_there};
use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::get::KindArg;
use super::output::Out;
use crate::audit::time_text;

/// Show one thing in full, with what was refused and why
///
/// Examples:
///   hamlet describe peer globex
///   hamlet describe service globex/ledger
///   hamlet describe publication shared
///   hamlet describe import globex
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct DescribeArgs {
    /// What it is
    #[arg(value_enum, value_name = "KIND")]
    kind: KindArg,
    /// Its name
    name: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: DescribeArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    let name = args.name.as_str();
    let page = match args.kind {
        KindArg::Peers => peer(&client.one(name).await.map_err(Failure::from)?),
        KindArg::Services => service(&client.one(name).await.map_err(Failure::from)?),
        KindArg::Publications => publication(&client.one(name).await.map_err(Failure::from)?),
        KindArg::Imports => import(&client.one(name).await.map_err(Failure::from)?),
    };
    out.write_all(page.text.as_bytes())?;
    Ok(Exit::Good)
}

/// A page of `Key:   value` lines, values aligned, every value one safe line.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) text: String,
    indent: usize,
}

/// Where values start.
const VALUE_COLUMN: usize = 20;
/// Longest value, in bytes.
const VALUE_BYTES: usize = 2048;

impl Page {
    /// A field; one without a value is shown as `-`.
    pub(super) fn field(&mut self, key: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        let value = if value.is_empty() { "-".to_owned() } else { one_line(value, VALUE_BYTES) };
        let key = format!("{}{key}:", " ".repeat(self.indent));
        self.text += &format!("{key:VALUE_COLUMN$}{value}\n");
    }

    fn option(&mut self, key: &str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.field(key, value);
        }
    }

    /// A field with one value a line; nothing when there is none.
    pub(super) fn list(&mut self, key: &str, values: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut first = true;
        for value in values {
            if first {
                self.field(key, value);
                first = false;
            } else {
                let value = one_line(value.as_ref(), VALUE_BYTES);
                self.text += &format!("{:VALUE_COLUMN$}{value}\n", "");
            }
        }
    }

    /// A heading with indented fields below it.
    fn section(&mut self, title: &str, fill: impl FnOnce(&mut Page)) {
        self.text += &format!("{}{title}:\n", " ".repeat(self.indent));
        self.indent += 2;
        fill(self);
        self.indent -= 2;
    }
}

fn ago(ms: Option<u64>) -> Option<String> {
    ms.map(|ms| format!("{} ago", human_age(ms)))
}

fn peer(peer: &PeerStatus) -> Page {
    let mut page = Page::default();
    page.field("Name", &peer.name);
    page.field("Trust domain", &peer.trust_domain);
    page.field("Address", peer.address.as_deref().unwrap_or("none: it dials us"));
    page.field("Connection", peer.direction.to_string());
    page.field("State", peer.state.to_string());
    page.field("Since", human_age(peer.state_age_ms));
    page.option("Proven by", peer.proven_by.as_ref());
    page.option("Revocation", peer.crl.map(|crl| crl.to_string()));
    page.option("Protocol", peer.version.as_ref());
    page.option("Note", peer.version_note.as_ref());
    if let Some(hello) = &peer.hello {
        let capabilities = hello.capabilities.join(", ");
        let colon = if capabilities.is_empty() { "" } else { ": " };
        page.field("Agent", format!("{}, extensions {}{colon}{capabilities}", hello.agent, hello.version));
        page.option("It takes", takes(hello));
    }
    page.list("Stalled", peer.stalls.iter().map(ToString::to_string));
    page.option("Last beat", peer.beat.map(beat));
    if peer.violations > 0 {
        page.field("Violations", format!("{} on this stream, passed over", peer.violations));
    }
    if peer.attempts > 0 {
        page.field("Failed attempts", peer.attempts.to_string());
    }
    if peer.floods > 0 {
        page.field("Closed for floods", format!("{} connections", peer.floods));
    }
    page.option("Next attempt", peer.next_attempt_ms.map(|ms| format!("in {}", human_age(ms))));
    page.option("Hold time left", peer.hold_left_ms.map(human_age));
    let error = peer.last_error.as_ref();
    page.option("Last error", error.map(|e| format!("{} ({} ago)", e.message, human_age(e.age_ms))));
    let failures = peer.auth_failures.iter();
    page.list("Refused logins", failures.map(|e| format!("{} ({} ago)", e.message, human_age(e.age_ms))));
    if let Some(bundle) = &peer.bundle {
        page.section("Bundle", |page| trust(page, bundle));
    }
    match &peer.publish {
        Some(progress) => page.section("Publish", |page| publish(page, progress)),
        None => page.field("Publish", "off"),
    }
    match &peer.import {
        Some(progress) => page.section("Import", |page| import_progress(page, progress)),
        None => page.field("Import", "off"),
    }
    page
}

/// What proves the peer, and how the endpoint does where one is followed.
fn trust(page: &mut Page, bundle: &BundleStatus) {
    let revoked = "none: the peer has revoked everything";
    page.field(
        "Source",
        if bundle.revoked { revoked } else { bundle.source.as_deref().unwrap_or("none yet") },
    );
    page.option("File", bundle.file.as_ref());
    let profile = bundle.profile.as_deref().unwrap_or_default();
    page.option("Endpoint", bundle.url.as_ref().map(|url| format!("{url} ({profile})")));
    page.option("Follows", bundle.follow.as_ref().map(|_| "what its agent says on the stream"));
    page.option("Sequence", bundle.sequence.map(|n| n.to_string()));
    page.option("Last good answer", ago(bundle.age_ms));
    page.option("Next look", bundle.next_refresh_ms.map(|ms| format!("in {}", human_age(ms))));
    if bundle.failures > 0 {
        page.field("Failures", bundle.failures.to_string());
    }
    let error = bundle.last_error.as_ref();
    page.option("Error", error.map(|e| format!("{} ({} ago)", e.message, human_age(e.age_ms))));
    page.list(
        "CAs",
        bundle
            .authorities
            .iter()
            .map(|a| format!("{} {} until {}", a.fingerprint, a.subject, day(a.not_after_s))),
    );
    let announced = bundle.announced.iter();
    page.list(
        "Announced",
        announced.map(|a| format!("{} used in {}", a.fingerprint, human_age(a.used_in_ms))),
    );
    page.option("Changed", bundle.changed.as_ref().map(changed));
    page.option("Ours there", bundle.ours.as_ref().map(ours_there));
}

/// The last change of the CAs, as the audit has it.
fn changed(change: &RootsChange) -> String {
    let signed = |sign: &'static str, list: &[String]| -> Vec<String> {
        list.iter().map(|print| format!("{sign}{}", one_line(print, 64))).collect()
    };
    let prints = [signed("+", &change.added), signed("-", &change.removed)].concat();
    let from = if change.source.is_empty() { String::new() } else { format!(", from {}", change.source) };
    format!("{}{from}: {}", time_text(Duration::from_secs(change.at_s)), prints.join(" "))
}

/// What the peer said of its limits, as far as it said something.
fn takes(hello: &HelloStatus) -> Option<String> {
    let window = match (hello.window_messages, hello.window_bytes) {
        (Some(messages), Some(bytes)) => Some(format!("{messages} changes or {bytes} bytes unanswered")),
        (messages, _) => messages.map(|n| format!("{n} changes unanswered")),
    };
    let message = hello.max_message_bytes.map(|n| format!("messages of at most {n} bytes"));
    let beats = hello.beat_every_ms.map(|ms| match ms {
        0 => "never beats".to_owned(),
        ms => format!("beats every {}", human_age(ms)),
    });
    let parts: Vec<_> = [window, message, beats].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn beat(beat: BeatStatus) -> String {
    let mut text = format!("{} ago", human_age(beat.age_ms));
    if beat.unsent > 0 {
        let oldest = human_age(beat.oldest_unsent_ms);
        text += &format!("; {} changes to send us, the oldest {oldest} old", beat.unsent);
    }
    if beat.oldest_uncommitted_ms > 0 {
        text += &format!(
            "; our oldest change there is uncommitted for {}",
            human_age(beat.oldest_uncommitted_ms)
        );
    }
    text
}

fn publish(page: &mut Page, p: &PublishProgress) {
    page.field("Offered", p.offered.to_string());
    page.field("Acknowledged", p.acknowledged.to_string());
    if p.unsent > 0 {
        page.field("Unsent", p.unsent.to_string());
    }
    page.field("In flight", p.in_flight.to_string());
    page.option("Window", p.window.map(|w| w.to_string()));
    page.option("Rounds", p.rounds.map(|r| r.to_string()));
    page.option("Oldest waits", p.oldest_unanswered_ms.map(human_age));
    page.field("Proof", p.proof.to_string());
    page.option("Last change", ago(p.last_change_ms));
    refused(page, p.refused_total, &p.refused);
    if p.unusable_total > 0 {
        page.field("Not usable there", p.unusable_total.to_string());
        reasons(page, p.unusable_total, &p.unusable);
    }
    if p.usable_reports > 0 {
        page.field("Usable reports", p.usable_reports.to_string());
    }
    unsaid(page, p.unsaid_total, &p.unsaid);
}

fn import_progress(page: &mut Page, i: &ImportProgress) {
    page.field("Heard", i.heard.to_string());
    page.field("In force", i.in_force.to_string());
    if i.rounds > 0 {
        page.field("Rounds", i.rounds.to_string());
    }
    page.field("Proof", i.proof.to_string());
    page.option("Last change", ago(i.last_change_ms));
    page.option("Unconfirmed for", i.unconfirmed_ms.map(human_age));
    if i.left_out > 0 {
        page.field("Left out", format!("{} services, until its next whole state confirms it", i.left_out));
    }
    if i.withheld_total > 0 {
        let left = i.guard_left_ms.map_or_else(String::new, |ms| format!(", for {} more", human_age(ms)));
        page.field("Withheld", format!("{} withdrawals{left}", i.withheld_total));
        page.list("  services", &i.withheld);
    }
    if i.older_in_force > 0 {
        page.field("Older in force", i.older_in_force.to_string());
    }
    refused(page, i.refused_total, &i.refused);
}

fn refused(page: &mut Page, total: u64, list: &[RefusedService]) {
    page.field("Refused", total.to_string());
    reasons(page, total, list);
}

/// A line for each service: its name, the rule, the field, what is wrong, and what is known beside.
fn reasons(page: &mut Page, total: u64, list: &[RefusedService]) {
    for r in list {
        let part = |text: &str| if text.is_empty() { String::new() } else { format!("{text}: ") };
        let older = if r.older_in_force { "; an older version is in force" } else { "" };
        let version = r.version.map(|v| format!("version {v}"));
        let beside: Vec<_> = r.code.clone().into_iter().chain(version).collect();
        let beside = if beside.is_empty() { String::new() } else { format!(" ({})", beside.join(", ")) };
        let line = format!("{}: {}{}{}{older}{beside}", r.service, part(&r.rule), part(&r.field), r.message);
        page.text += &format!("{}- {}\n", " ".repeat(page.indent + 2), one_line(&line, VALUE_BYTES));
    }
    let more = total.saturating_sub(list.len() as u64);
    if more > 0 && !list.is_empty() {
        page.text += &format!("{}- and {more} more\n", " ".repeat(page.indent + 2));
    }
}

/// What the peer's version of the protocol can't say; nothing if there is none.
fn unsaid(page: &mut Page, total: u64, list: &[UnsaidService]) {
    if total == 0 {
        return;
    }
    page.field("Can't be said", format!("{total}, so not offered in the peer's version of the protocol"));
    for u in list {
        let line = format!("{}: {}", u.service, u.reason);
        page.text += &format!("{}- {}\n", " ".repeat(page.indent + 2), one_line(&line, VALUE_BYTES));
    }
    let more = total.saturating_sub(list.len() as u64);
    if more > 0 {
        page.text += &format!("{}- and {more} more\n", " ".repeat(page.indent + 2));
    }
}

fn service(service: &ServiceStatus) -> Page {
    let mut page = Page::default();
    page.field("Name", &service.name);
    page.field("Name in DNS", &service.fqdn);
    page.field("Origin", service.origin.to_string());
    page.field("Standing", service.standing.to_string());
    page.list("Egress", &service.egress);
    page.option("Description", Some(&service.description).filter(|d| !d.is_empty()));
    page.list("Tags", &service.tags);
    page.list("Labels", service.labels.iter().map(|(k, v)| format!("{k}={v}")));
    page.list("Published to", &service.published_to);
    page.list("Identities", &service.sans);
    page.list("Conflicts", &service.conflicts);
    for i in &service.instances {
        page.section(&format!("Instance {}", one_line(&i.id, 64)), |page| instance(page, i));
    }
    page
}

fn instance(page: &mut Page, i: &InstanceStatus) {
    page.field("Name in DNS", &i.fqdn);
    page.field("Protocol", &i.protocol);
    page.field("Port", i.port.map(|p| p.to_string()).unwrap_or_default());
    page.option("Egress", i.egress.as_deref());
    page.list("Backends", &i.backends);
    page.list("Endpoints", &i.endpoints);
    match &i.programming {
        Programming::Programmed => page.field("Callable", "yes"),
        Programming::Shared { reason, remedy } => {
            page.field("Callable", format!("through the shared listener only: {reason}"));
            page.field("Remedy", remedy);
        }
        Programming::NotProgrammed { reason, remedy } => {
            page.field("Callable", format!("no: {reason}"));
            page.field("Remedy", remedy);
        }
    }
}

fn publication(p: &PublicationStatus) -> Page {
    let mut page = Page::default();
    page.field("Name", &p.name);
    page.list("Peers", &p.peers);
    page.list("Names", &p.names);
    page.list("Labels", p.labels.iter().map(|(k, v)| format!("{k}={v}")));
    page.list("Missing", &p.missing);
    page.field("Selected", p.services.len().to_string());
    page.list("Services", &p.services);
    page
}

fn import(i: &ImportStatus) -> Page {
    let mut page = Page::default();
    page.field("Name", &i.name);
    page.field("Peer", &i.peer);
    page.list("Suffixes", &i.suffixes);
    page.list("Identities", &i.sans);
    page.list("Ranges", &i.ranges);
    page.list("Endpoint ports", &i.endpoint_ports);
    page.field("Admitted", i.admitted.to_string());
    refused(&mut page, i.refused_total, &i.refused);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_was_refused_and_why_and_escapes_it() {
        let refused = RefusedService {
            service: "evil\x1b[2J".into(),
            rule: "name-outside-suffixes".into(),
            message: "not below globex.example".into(),
            ..Default::default()
        };
        let progress =
            ImportProgress { heard: 3, refused_total: 2, refused: vec![refused], ..Default::default() };
        let progress = ImportProgress { unconfirmed_ms: Some(240_000), left_out: 2, ..progress };
        let status = PeerStatus { name: "globex".into(), import: Some(progress), ..Default::default() };
        let text = peer(&status).text;
        assert!(
            text.contains("    - evil\\u{1b}[2J: name-outside-suffixes: not below globex.example\n"),
            "{text}"
        );
        assert!(text.contains("  Unconfirmed for:  4m\n  Left out:         2 services"), "{text}");
        assert!(text.contains("    - and 1 more\n") && text.contains("Publish:            off\n"), "{text}");
    }
}
