//! The configuration as a whole: broken ones with their problems, the generated pages, the examples,
//! and hostile input. `HAMLET_BLESS=1` rewrites what is generated; read the difference afterwards.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hamlet::config::{
    IdentityConfig, Loaded, Problems, Resync, Severity, SourceFile, load, load_sources, schema,
    validate_command,
};
use hamlet_core::settle::PASSES_APART;
use proptest::prelude::*;

/// The environment is read here only; a test may ask to be told the truth anew.
#[allow(clippy::disallowed_methods)]
fn bless() -> bool {
    std::env::var("HAMLET_BLESS").is_ok_and(|v| v == "1")
}

/// Compares with a committed file, or rewrites it.
fn committed(path: &Path, text: &str) {
    if bless() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    let hint = "HAMLET_BLESS=1 cargo test -p hamlet --test config";
    assert_eq!(found, text, "{} is not up to date: {hint}", path.display());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config")
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_into(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The base configuration with one side of a case over it.
fn laid_out(case: &Path, side: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_into(&golden().join("base"), folder.path());
    copy_into(&case.join(side), folder.path());
    folder
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(golden()).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|c| !c.ends_with("base"));
    cases.sort();
    cases
}

fn without_folder(text: &str, folder: &Path) -> String {
    text.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn the_base_configuration_loads_without_a_warning() {
    let loaded = load(&golden().join("base")).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.summary(), "ok: 1 mesh, 1 peer, 1 publication, 1 import, 1 service in 5 files");
}

#[test]
fn each_broken_configuration_names_every_place_and_its_neighbour_loads() {
    let cases = cases();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    for case in cases {
        let name = case.file_name().unwrap().to_str().unwrap().to_owned();
        let bad = laid_out(&case, "bad");
        let problems = load(bad.path()).expect_err(&name);
        for problem in &problems.list {
            assert!(problem.line > 0 && problem.column > 0, "{name}: {problem}");
            assert!(!problem.message.is_empty() && !problem.fix.is_empty(), "{name}: {problem}");
            assert!(problem.file.starts_with(bad.path()), "{name}: {problem}");
        }
        let text = without_folder(&problems.to_string(), bad.path());
        committed(&case.join("expected.txt"), &(text + "\n"));

        let good = laid_out(&case, "good");
        let loaded = load(good.path()).unwrap_or_else(|p| panic!("{name}: the neighbour is refused:\n{p}"));
        assert_eq!(loaded.warnings, [], "{name}");
    }
}

#[test]
fn a_person_sees_the_line_and_the_marked_place() {
    let case = cases().into_iter().find(|c| c.to_str().unwrap().contains("unknown-and-missing")).unwrap();
    let folder = laid_out(&case, "bad");
    let mut out = Vec::new();
    assert!(!validate_command(folder.path(), false, &mut out).unwrap());
    let text = without_folder(&String::from_utf8(out).unwrap(), folder.path());
    committed(&golden().join("../rendered.txt"), &text);
    assert!(!text.contains('\x1b'));

    let mut coloured = Vec::new();
    validate_command(folder.path(), true, &mut coloured).unwrap();
    assert!(String::from_utf8(coloured).unwrap().contains("\x1b["));

    let mut good = Vec::new();
    assert!(validate_command(&golden().join("base"), false, &mut good).unwrap());
    assert!(String::from_utf8(good).unwrap().starts_with("ok: 1 mesh"));
}

/// The one line of problems that a path leads to.
fn only_problem(path: &Path) -> String {
    let problems = load(path).unwrap_err();
    assert_eq!(problems.list.len(), 1, "{problems}");
    without_folder(&problems.to_string(), path.parent().unwrap())
}

#[test]
fn what_cannot_be_read_is_a_problem_and_never_an_empty_catalogue() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let absent = only_problem(&path("absent"));
    assert!(absent.starts_with("absent:1:1: there is no such file or folder; fix: "), "{absent}");
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("empty/readme.txt"), "not YAML").unwrap();
    let empty = only_problem(&path("empty"));
    assert!(empty.starts_with("empty:1:1: there is no *.yaml or *.yml file here; fix: "), "{empty}");
    // A link to itself can't be read by anybody, root included.
    copy_into(&golden().join("base"), &path("loop"));
    std::os::unix::fs::symlink("loop.yaml", path("loop/loop.yaml")).unwrap();
    let looped = only_problem(&path("loop"));
    assert!(
        looped.starts_with("loop/loop.yaml:1:1: can't be read") && looped.contains("; fix: "),
        "{looped}"
    );
    // The neighbour: a link to a file is followed.
    fs::remove_file(path("loop/loop.yaml")).unwrap();
    fs::rename(path("loop/service.yaml"), path("service.text")).unwrap();
    std::os::unix::fs::symlink("../service.text", path("loop/service.yaml")).unwrap();
    assert_eq!(load(&path("loop")).unwrap().config.services.len(), 1);
    assert!(load_sources(Vec::new()).is_err());
}

#[test]
fn what_is_probably_not_meant_is_a_warning_with_its_place() {
    let warned = |file: &str, from: &str, to: &str| -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        copy_into(&golden().join("base"), folder.path());
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replace(from, to)).unwrap();
        let warnings = load(folder.path()).unwrap().warnings;
        assert!(warnings.iter().all(|w| w.severity == Severity::Warning));
        warnings.iter().map(|w| without_folder(&w.to_string(), folder.path())).collect()
    };
    for (file, from, to, expected) in [
        (
            "publication.yaml",
            "[ledger]",
            "[legder]",
            "publication.yaml:7:13: warning: Publication/ledger-to-globex spec.services.names[0]: no Service is called \
             `legder`: nothing is published for it; fix: did you mean `ledger`?",
        ),
        ("publication.yaml", "names: [ledger]", "labels: {team: pay}", "publication.yaml:7:5: warning: "),
        ("peer.yaml", "  holdTime: 1h", "  publish: false", "publication.yaml:8:11: warning: "),
        ("peer.yaml", "  holdTime: 1h", "  import: false", "import.yaml:6:9: warning: "),
        ("peer.yaml", "/hamlet/gateway", "/hamlet/agent", "peer.yaml:11:16: warning: "),
        (
            "peer.yaml",
            "globex-ca.pem",
            "umbrella-ca.pem",
            "peer.yaml:9:13: warning: Peer/globex spec.trust.bundle: ",
        ),
        ("import.yaml", "203.0.113.0/24", "0.0.0.0/0", "import.yaml:10:14: warning: "),
        (
            "mesh.yaml",
            "agent: {cert: identity/agent.pem, key: identity/agent.key}\n    gateway: {cert: identity/gateway.pem, key: identity/gateway.key}",
            "workloadApi: {socket: \"unix:///nowhere/agent.sock\"}",
            "mesh.yaml:8:27: warning: Mesh/acme spec.identity.workloadApi.socket: there is no file /nowhere/agent.sock; fix: \
             start the SPIRE agent",
        ),
        ("import.yaml", "[globex.example]", "[acme.example]", "import.yaml:8:16: warning: "),
    ] {
        let warnings = warned(file, from, to);
        assert_eq!(warnings.len(), 1, "{to}: {warnings:?}");
        assert!(warnings[0].starts_with(expected), "{to}: {}", warnings[0]);
    }
}

#[test]
fn a_loaded_configuration_has_what_was_written_and_the_defaults() {
    let loaded = load(&golden().join("base")).unwrap();
    let config = loaded.config;
    let mesh = &config.mesh;
    let IdentityConfig::Files(identity) = &mesh.identity else { panic!("{:?}", mesh.identity) };
    assert_eq!(identity.agent.cert, golden().join("base/identity/agent.pem"));
    assert_eq!(mesh.socket, golden().join("base/data/admin.sock"));
    assert_eq!(mesh.listen.dns, None);
    assert_eq!(mesh.listen.ingress.unwrap().to_string(), "0.0.0.0:7444");
    assert_eq!(mesh.advertise[0].socket_addr().to_string(), "203.0.113.10:7444");
    assert_eq!((mesh.limits.services_per_peer, mesh.limits.bytes_per_peer), (20_000, 64 << 20));
    let peer = config.peers.values().next().unwrap();
    assert_eq!(peer.address.as_ref().unwrap().to_string(), "agent.globex.example:7443");
    assert_eq!((peer.guard.percent, peer.guard.floor, peer.guard.wait.as_secs()), (30, 10, 600));
    assert_eq!((peer.limits.services, peer.limits.refused_hold.as_secs()), (20_000, 24 * 3600));
    assert!(peer.publish && peer.import && !peer.paused);
    assert_eq!((mesh.brake.percent, mesh.brake.floor), (30, 10));
    assert_eq!((mesh.brake.wait, peer.window), (hamlet_core::brake::BRAKE_WAIT, 1));
    assert_eq!(peer.resync, Resync::Every(hamlet_protocol::importer::RESYNC_EVERY));
    let import = config.imports.values().next().unwrap();
    assert_eq!(import.rules.sans, peer.gateway_ids);
    let service = &config.services[0];
    let policy = config.publication_policy();
    assert!(policy.publishes(service, &peer.name));
    assert_eq!(service.instances[0].sni.as_str(), "http.ledger.acme.example");
    assert_eq!(service.labels["team"], "payments");
}

#[test]
fn a_peer_without_spiffe_ids_and_its_revocation_lists_are_read_as_written() {
    use hamlet_identity::{ForeignIdentity, Lenience, RevocationPolicy};
    let with = |spec: &str| {
        let folder = tempfile::tempdir().unwrap();
        copy_into(&golden().join("base"), folder.path());
        let head = "apiVersion: hamlet.dev/v1\nkind: Peer\nmetadata: {name: globex}\nspec:\n  trustDomain: globex.example\n  \
                    trust: {bundle: peers/globex-ca.pem}\n";
        fs::write(folder.path().join("peer.yaml"), format!("{head}{spec}")).unwrap();
        let peer = load(folder.path()).unwrap().config.peers.into_values().next().unwrap();
        (peer.identity, peer.crl.map(|crl| crl.policy), peer.agent_ids.len() + peer.gateway_ids.len())
    };
    let ids = "  agentIds: [\"spiffe://globex.example/a\"]\n  gatewayIds: [\"spiffe://globex.example/g\"]\n";
    let names = vec![hamlet_core::Fqdn::parse("agent.globex.example").unwrap()];
    let digits = "0Aff".repeat(16);
    let pairs: Vec<&str> = (0..32).map(|i| &digits[2 * i..2 * i + 2]).collect();
    let print = [[0x0a, 0xff]; 16].concat().try_into().unwrap();
    let strict = RevocationPolicy::default();
    let open = RevocationPolicy { stale: Lenience::Accept, unlisted: Lenience::Accept };
    for (spec, identity, policy, count) in [
        (ids.to_owned(), None, None, 2),
        ("  identity: {dns: [AGENT.globex.example]}\n".into(), Some(ForeignIdentity::Dns(names)), None, 0),
        (
            format!("  identity: {{fingerprint: [\"sha256:{digits}\"]}}\n"),
            Some(ForeignIdentity::Fingerprints(vec![print])),
            None,
            0,
        ),
        (
            format!("  identity: {{fingerprint: [\"sha256:{}\"]}}\n", pairs.join(":")),
            Some(ForeignIdentity::Fingerprints(vec![print])),
            None,
            0,
        ),
        (format!("{ids}  crl: {{file: peers/globex-ca.pem}}\n"), None, Some(strict), 2),
        (
            format!("{ids}  crl: {{file: peers/globex-ca.pem, stale: accept, unlisted: accept}}\n"),
            None,
            Some(open),
            2,
        ),
    ] {
        assert_eq!(with(&spec), (identity, policy, count), "{spec}");
    }
}

#[test]
fn the_reference_page_and_the_schemas_are_up_to_date() {
    let reference = root().join("docs/reference");
    committed(&reference.join("configuration.md"), &schema::reference_markdown());
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap() + "\n";
    for kind in schema::KINDS {
        let path = reference.join(format!("schema/{}.json", kind.name.to_lowercase()));
        committed(&path, &pretty(&schema::json_schema(kind.name).unwrap()));
    }
    committed(&reference.join("schema/hamlet.json"), &pretty(&schema::json_schema_all()));
    assert!(schema::json_schema("Nothing").is_none());
}

#[test]
fn the_schema_page_examples_are_one_configuration_that_loads() {
    let mut text = String::new();
    for kind in schema::KINDS {
        write!(text, "---\n{}", kind.example).unwrap();
    }
    let sources = vec![SourceFile { path: "all.yaml".into(), text: text.into() }];
    let loaded = load_sources(sources).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(loaded.warnings, []);
}

/// Every YAML block of the documentation that holds one of our documents.
fn documented() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    let mut pages = vec![root().join("README.md")];
    walk(&root().join("docs"), &mut pages);
    pages.retain(|p| p.exists());
    let mut blocks = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            if block.contains("apiVersion: hamlet.dev/") {
                blocks.push((page.clone(), block.to_owned()));
            }
        }
    }
    blocks
}

#[test]
fn every_document_in_the_documentation_is_right_in_itself() {
    let blocks = documented();
    assert!(blocks.len() >= schema::KINDS.len(), "{} blocks", blocks.len());
    for (page, block) in blocks {
        let sources = vec![SourceFile { path: page.clone(), text: block.clone().into() }];
        let Err(problems) = load_sources(sources) else { continue };
        // A page shows one document at a time: what it refers to stands elsewhere.
        let alone = ["there is no Mesh document", "no Peer is called", "peers aren't told"];
        let wrong: Vec<_> =
            problems.errors().filter(|p| !alone.iter().any(|a| p.message.contains(a))).collect();
        assert!(wrong.is_empty(), "{}:\n{problems}\n{block}", page.display());
    }
}

#[test]
fn every_example_folder_loads() {
    let mut folders = 0;
    for entry in fs::read_dir(root().join("examples")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        for mesh in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
            folders += 1;
            let loaded = load(&mesh).unwrap_or_else(|p| panic!("{}:\n{p}", mesh.display()));
            // Keys and certificates aren't committed; nothing else may be odd.
            let odd: Vec<_> =
                loaded.warnings.iter().filter(|w| !w.message.starts_with("there is no file")).collect();
            assert!(odd.is_empty(), "{odd:?}");
        }
    }
    assert!(folders >= 2);
}

fn service_text(i: usize) -> String {
    format!(
        "apiVersion: hamlet.dev/v1\nkind: Service\nmetadata:\n  name: service-{i}\n  labels: {{team: t{}}}\nspec:\n  \
         fqdn: service-{i}.acme.example\n  description: Service number {i}\n  protocol: HTTP\n  port: 8080\n  \
         backends: [\"127.0.0.1:{}\"]\n",
        i % 10,
        1024 + i % 60_000
    )
}

#[test]
fn ten_thousand_services_load_from_one_file_each_and_from_one_file() {
    let mesh = fs::read_to_string(golden().join("base/mesh.yaml")).unwrap();
    let mut sources = vec![SourceFile { path: "mesh.yaml".into(), text: mesh.into() }];
    let mut all = String::new();
    for i in 0..10_000 {
        let text = service_text(i);
        all.push_str("---\n");
        all.push_str(&text);
        sources.push(SourceFile { path: format!("service-{i}.yaml").into(), text: text.into() });
    }
    let one_each = load_sources(sources.clone()).unwrap();
    sources.truncate(1);
    sources.push(SourceFile { path: "services.yaml".into(), text: all.into() });
    let one_file = load_sources(sources).unwrap();
    assert_eq!(one_each.config.services.len(), 10_000);
    assert_eq!(one_each.config, one_file.config);
}

#[test]
fn problems_beyond_the_limit_are_counted() {
    let text: String = (0..3000).map(|i| service_text(i).replace("port:", "prot:") + "---\n").collect();
    let problems = load_sources(vec![SourceFile { path: "x.yaml".into(), text: text.into() }]).unwrap_err();
    assert_eq!(problems.list.len(), 1000);
    assert!(problems.more >= 2000);
    assert!(problems.to_string().ends_with(&format!("and {} more", problems.more)));
}

#[test]
fn a_peer_is_asked_for_everything_as_often_as_written_or_never() {
    let with = |value: &str| load_text(base_text().replace("holdTime: 1h", &format!("resync: {value}")));
    for (text, expected) in [
        ("never", Resync::Never),
        ("6h", Resync::Every(Duration::from_secs(6 * 3600))),
        ("5m", Resync::Every(PASSES_APART)),
    ] {
        assert_eq!(with(text).unwrap().config.peers.values().next().unwrap().resync, expected);
    }
    for text in ["0s", "0", "4m", "1", "Never", "-1h"] {
        let problems = with(text).unwrap_err();
        let said = problems.to_string();
        assert!(problems.errors().count() == 1 && said.contains("resync"), "{text}: {said}");
        assert!(said.contains("write a time of 5m or more such as 1h, or never"), "{text}: {said}");
    }
}

#[test]
fn many_warnings_hide_no_error_and_do_not_take_long() {
    let names: Vec<String> = (0..5000).map(|i| format!("absent-{i}")).collect();
    let services: String = (0..5000).map(|i| service_text(i) + "---\n").collect();
    let listed = base_text().replace("[ledger]", &format!("[{}]", names.join(", ")));
    let loaded = load_text(listed.clone() + &services).unwrap();
    assert_eq!(loaded.warnings.len(), 1001);
    assert!(loaded.warnings[1000].message.starts_with("4000 more"));
    let problems = load_text(listed.replace("holdTime: 1h", "holdTime: 0") + &services).unwrap_err();
    assert_eq!(problems.errors().count(), 1);
}

fn load_text(text: String) -> Result<Loaded, Problems> {
    load_sources(vec![SourceFile { path: "x.yaml".into(), text: text.into() }])
}

/// The whole base as one text, for mutations.
fn base_text() -> String {
    let names = ["mesh", "peer", "publication", "import", "service"];
    let read = |n: &&str| fs::read_to_string(golden().join(format!("base/{n}.yaml"))).unwrap() + "---\n";
    names.iter().map(read).collect()
}

fn usable(result: Result<Loaded, Problems>, text: &str) {
    if let Err(problems) = result {
        let lines = text.split(['\n', '\r']).count() + 1;
        for p in &problems.list {
            assert!(p.line >= 1 && p.line <= lines && p.column >= 1 && !p.fix.is_empty(), "{p}");
        }
        assert!(problems.errors().count() > 0);
        problems.render(true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        usable(load_text(text.clone()), &text);
    }

    #[test]
    fn a_damaged_configuration_never_panics_and_its_problems_have_places(
        at in any::<prop::sample::Index>(),
        cut in 0usize..40,
        insert in "[\\PC\t\n]{0,8}",
    ) {
        let base = base_text();
        let chars: Vec<char> = base.chars().collect();
        let start = at.index(chars.len());
        let end = (start + cut).min(chars.len());
        let text: String = chars[..start].iter().copied().chain(insert.chars()).chain(chars[end..].iter().copied()).collect();
        usable(load_text(text.clone()), &text);
    }

    #[test]
    fn a_key_put_anywhere_is_refused(line in any::<prop::sample::Index>()) {
        let base = base_text();
        let lines: Vec<&str> = base.lines().collect();
        // Keys of a block mapping; free-form labels take any key.
        let keys: Vec<usize> = (0..lines.len())
            .filter(|i| lines[*i].contains(':') && !lines[*i].trim_start().starts_with("team"))
            .collect();
        let at = keys[line.index(keys.len())];
        let indent = lines[at].len() - lines[at].trim_start().len();
        let mut changed = lines.clone();
        let stray = format!("{}zzzz: 1", " ".repeat(indent));
        changed.insert(at, &stray);
        let problems = load_text(changed.join("\n")).unwrap_err();
        let found = problems.list.iter().find(|p| p.message == "unknown key `zzzz`");
        prop_assert_eq!(found.map(|p| (p.line, p.column)), Some((at + 1, indent + 1)), "{}", problems);
    }
}
