//! Exit codes (decision 27), messages and hints.

use hamlet_admin::api::ReloadProblems;

use crate::fixture::{Agent, healthy, lost};
use crate::{arg, command, hamlet, outcome};

#[tokio::test]
async fn help_version_and_completion_are_good_and_a_wrong_flag_is_usage() {
    for (args, code, text) in [
        (&["--help"][..], 0, "Exit codes:"),
        (&["get", "--help"], 0, "Examples:"),
        (&["help", "reload"], 0, "last good"),
        (&["--version"], 0, "hamlet "),
        (&["version"], 0, "protocols:"),
        (&["version", "-o", "json"], 0, "\"version\""),
        (&["completion", "bash"], 0, "_hamlet"),
        (&["completion", "zsh"], 0, "#compdef hamlet"),
        (&["completion", "fish"], 0, "complete -c hamlet"),
        (&["schema"], 0, "\"$schema\""),
        (&["schema", "peer"], 0, "\"$schema\""),
        (&["schema", "Nonsense"], 2, "possible values"),
        (&["get", "peers", "--nonsense"], 2, "--nonsense"),
        (&["get", "wishes"], 2, "possible values"),
        (&["get", "peers", "--timeout", "0s"], 2, "more than zero"),
        (&["agent"], 2, "--config"),
        (&[], 2, "Usage:"),
    ] {
        let run = hamlet(args).await;
        assert_eq!(run.code, code, "{args:?}: {run:?}");
        let (said, silent) = if code == 0 { (&run.out, &run.err) } else { (&run.err, &run.out) };
        assert!(said.contains(text), "{args:?} says {said}");
        assert_eq!(silent, "", "{args:?}");
    }
}

#[tokio::test]
async fn without_an_agent_a_command_fails_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    for args in
        [&["get", "peers"][..], &["describe", "peer", "x"], &["status"], &["reload"], &["get", "peers", "-w"]]
    {
        let run = hamlet(&[args, &["--socket", arg(&socket)]].concat()).await;
        assert_eq!(run.code, 1, "{args:?}: {run:?}");
        assert!(run.err.contains("error: no agent answers at") && run.err.contains(arg(&socket)), "{run:?}");
        assert!(run.err.contains("hint: is `hamlet agent` running?"), "{run:?}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_not_found_and_its_neighbour_is_good() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    for (name, code) in [("nobody", 5), ("globex", 0)] {
        for args in [&["get", "peer"][..], &["describe", "peer"]] {
            let run = hamlet(&[args, &[name, "--socket", arg(&socket)]].concat()).await;
            assert_eq!(run.code, code, "{run:?}");
        }
    }
    let watch = hamlet(&["get", "peer", "nobody", "-w", "--socket", arg(&socket)]).await;
    assert_eq!(watch.code, 5, "{watch:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_peer_makes_the_status_degraded_and_waiting_for_it_times_out() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    let good = hamlet(&["status", "--socket", arg(&socket)]).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert!(good.out.contains("Health: good"));
    agent.fake.change_peers(|peers| peers.push(lost()));
    let bad = hamlet(&["status", "--socket", arg(&socket)]).await;
    assert_eq!(bad.code, 3, "{bad:?}");
    assert!(bad.out.contains("peer/initech: down for 60s"), "{bad:?}");
    let late = hamlet(&["status", "--wait", "--timeout", "300ms", "--socket", arg(&socket)]).await;
    assert_eq!(late.code, 4, "{late:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_silent_agent_is_timed_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let run = hamlet(&["get", "peers", "--timeout", "100ms", "--socket", arg(&socket)]).await;
    assert_eq!(run.code, 4, "{run:?}");
    assert!(run.err.contains("--timeout"), "{run:?}");
}

#[tokio::test]
async fn a_reload_says_what_changed_or_shows_every_problem() {
    let agent = Agent::start(vec![]).await;
    let socket = agent.socket();
    let good = hamlet(&["reload", "--socket", arg(&socket)]).await;
    assert_eq!((good.code, good.out.as_str()), (0, "reloaded (load 2)\n  peer globex: changed\n"));
    let problems = vec!["mesh.yaml:3:1: bad; fix: x".into(), "peers.yaml:1:1: worse; fix: y\x1b".into()];
    *agent.fake.broken.lock() = Some(ReloadProblems { problems, rendered: String::new() });
    let bad = hamlet(&["reload", "--socket", arg(&socket)]).await;
    assert_eq!(bad.code, 1);
    assert!(bad.err.contains("mesh.yaml:3:1: bad") && bad.err.contains("peers.yaml:1:1: worse"), "{bad:?}");
    assert!(bad.err.contains("keeps its last good configuration") && !bad.err.contains('\x1b'), "{bad:?}");
    agent.stop().await;
}

#[tokio::test]
async fn the_socket_is_found_by_flag_environment_or_configuration_and_the_flag_wins() {
    let agent = Agent::start(vec![healthy()]).await;
    let (folder, socket) = (agent.folder(), agent.socket());
    std::fs::write(folder.join("mesh.yaml"), "kind: Mesh\nspec: {data: data}\nbroken: [\n").unwrap();
    let by_config = hamlet(&["get", "peers", "-o", "name", "-f", arg(&folder)]).await;
    assert_eq!(by_config.out, "peer/globex\n", "{by_config:?}");
    let by_folder = outcome(command(&["get", "peers", "-o", "name"]).current_dir(&folder)).await;
    assert_eq!(by_folder.out, "peer/globex\n", "{by_folder:?}");
    let by_variable = outcome(command(&["get", "peers", "-o", "name"]).env("HAMLET_SOCKET", &socket)).await;
    assert_eq!(by_variable.out, "peer/globex\n", "{by_variable:?}");
    let mut flag_wins = command(&["get", "peers", "-o", "name", "-f", arg(&folder)]);
    let flag_wins = outcome(flag_wins.env("HAMLET_SOCKET", "/nonexistent/admin.sock")).await;
    assert_eq!(flag_wins.out, "peer/globex\n", "{flag_wins:?}");
    agent.stop().await;
}

#[tokio::test]
async fn an_empty_list_is_good_and_its_message_is_no_data() {
    let agent = Agent::start(vec![]).await;
    let run = hamlet(&["get", "peers", "--socket", arg(&agent.socket())]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "", "no peers\n"));
    agent.stop().await;
}

#[tokio::test]
async fn a_closed_pipe_is_success() {
    let agent = Agent::start(vec![healthy()]).await;
    let socket = agent.socket();
    for args in [
        &["schema"][..],
        &["completion", "bash"],
        &["version"],
        &["--help"],
        &["get", "peers", "--socket", arg(&socket)],
        &["get", "peers", "-o", "json", "-w", "--socket", arg(&socket)],
    ] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let run = command(args).stdout(write).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let run = run.wait_with_output().await.unwrap();
        assert_eq!(run.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&run.stderr), "", "{args:?}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_new_folder_validates_is_never_overwritten_and_a_broken_file_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("acme");
    let init = &["init", arg(&dir), "--mesh", "acme", "--trust-domain", "acme.example"];
    let made = hamlet(init).await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.out.contains("hamlet agent -f"), "{made:?}");
    let good = hamlet(&["validate", "-f", arg(&dir)]).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert!(good.out.contains("ok: 1 mesh"), "{good:?}");
    let again = hamlet(init).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.err.contains("never overwritten"), "{again:?}");
    std::fs::write(dir.join("broken.yaml"), "kind: Nonsense\n").unwrap();
    let bad = hamlet(&["validate", "-f", arg(&dir)]).await;
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.out.contains("broken.yaml"), "{bad:?}");
}

#[tokio::test]
async fn a_name_that_is_none_is_usage_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("acme");
    for flags in [
        &["--mesh", "not a label", "--trust-domain", "acme.example"],
        &["--mesh", "acme", "--trust-domain", "*.example"],
    ] {
        let run = hamlet(&[&["init", arg(&dir)], &flags[..]].concat()).await;
        assert_eq!(run.code, 2, "{run:?}");
    }
    assert!(!dir.exists());
}
