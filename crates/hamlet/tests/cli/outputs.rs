//! Every list in every format, compared with the files in `golden/`. `HAMLET_BLESS=1` rewrites
//! them; read the difference before you commit it.

use std::path::PathBuf;

use crate::fixture::{Agent, healthy, lost};
use crate::{arg, command, hamlet, outcome};

fn compare(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden").join(name);
    if std::env::var_os("HAMLET_BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; HAMLET_BLESS=1 rewrites it");
}

#[tokio::test]
async fn every_list_in_every_format_is_as_it_was() {
    let agent = Agent::start(vec![lost(), healthy()]).await;
    let socket = agent.socket();
    for kind in ["peers", "services", "publications", "imports"] {
        for format in ["table", "wide", "json", "yaml", "name"] {
            let run = hamlet(&["get", kind, "-o", format, "--socket", arg(&socket)]).await;
            assert_eq!((run.code, run.err.as_str()), (0, ""));
            assert!(!run.out.contains('\x1b') || format == "json", "an escape got through");
            compare(&format!("get-{kind}.{format}"), &run.out);
        }
    }
    agent.stop().await;
}

#[tokio::test]
async fn pages_are_as_they_were() {
    let agent = Agent::start(vec![lost(), healthy()]).await;
    let socket = agent.socket();
    for (kind, name) in [
        ("peer", "globex"),
        ("peer", "initech"),
        ("service", "web"),
        ("service", "ledger.globex.example"),
        ("service", "globex/raw"),
        ("publication", "shared"),
        ("import", "globex"),
    ] {
        let run = hamlet(&["describe", kind, name, "--socket", arg(&socket)]).await;
        assert_eq!((run.code, run.err.as_str()), (0, ""));
        compare(&format!("describe-{kind}-{}.txt", name.replace('/', "-")), &run.out);
    }
    let status = hamlet(&["status", "--socket", arg(&socket)]).await;
    compare("status.txt", &status.out.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
    agent.stop().await;
}

#[tokio::test]
async fn a_transcript_is_as_it_was_and_hostile_text_stays_in_its_line() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let run = hamlet(&["transcript", "globex", "--socket", arg(&socket)]).await;
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(!run.out.contains('\x1b'), "{}", run.out);
    compare("transcript.txt", &run.out);
    let last = hamlet(&["transcript", "globex", "-n", "2", "-o", "json", "--socket", arg(&socket)]).await;
    let kinds: Vec<String> = last
        .out
        .lines()
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            entry["kind"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(kinds, ["delete", "ended"]);
    let nobody = hamlet(&["transcript", "nobody", "--socket", arg(&socket)]).await;
    assert_eq!(nobody.code, 5, "{nobody:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_confirmed_reload_says_how_many_services_went() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let run = hamlet(&["reload", "--confirm-withdrawals", "--socket", arg(&socket)]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.ends_with("\n3 withheld services withdrawn\n"), "{}", run.out);
    let plain = hamlet(&["reload", "--socket", arg(&socket)]).await;
    assert!(!plain.out.contains("withdrawn"), "{}", plain.out);
    agent.stop().await;
}

#[tokio::test]
async fn json_and_yaml_say_the_same() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let json = hamlet(&["get", "peer", "globex", "-o", "json", "--socket", arg(&socket)]).await;
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["state"]["kind"], "in-sync");
    assert_eq!(value["import"]["refused"][0]["service"], "evil\u{1b}[2J");
    let yaml = hamlet(&["get", "peer", "globex", "-o", "yaml", "--socket", arg(&socket)]).await;
    assert!(yaml.out.contains("kind: in-sync") && !yaml.out.contains('\x1b'), "{}", yaml.out);
    agent.stop().await;
}

#[tokio::test]
async fn a_watch_writes_what_changed_and_ends_with_the_agent() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let mut watch = command(&["get", "peers", "-w", "--socket", arg(&socket)])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("NAME "));
    assert!(lines.next_line().await.unwrap().unwrap().starts_with("globex "));
    agent.fake.change_peers(|peers| peers.push(lost()));
    let added = lines.next_line().await.unwrap().unwrap();
    assert!(added.starts_with("initech ") && added.contains("Down"), "{added}");
    agent.fake.change_peers(|peers| peers.retain(|p| p.name == "initech"));
    let gone = lines.next_line().await.unwrap().unwrap();
    assert!(gone.starts_with("globex ") && gone.contains("(removed)"), "{gone}");
    agent.stop().await;
    assert_eq!(watch.wait().await.unwrap().code(), Some(1));
}

#[tokio::test]
async fn colour_needs_a_terminal_and_nobody_who_forbids_it() {
    // Not a terminal here: no colour, whatever the environment says.
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let run = outcome(command(&["get", "peers", "--socket", arg(&socket)]).env("CLICOLOR_FORCE", "1")).await;
    assert!(!run.out.contains('\x1b'));
    agent.stop().await;
}
