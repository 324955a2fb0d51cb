//! Commands of the user: one that provokes changes, and one that starts what is tested. Both are
//! shell commands, as they were typed; nothing of a peer ever gets into them.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// A change may take so long to be accepted by whoever publishes.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(30);

/// Runs `command verb name` to its end.
pub(crate) async fn publish(command: &str, verb: &str, name: &str) -> Result<(), String> {
    let mut child = Command::new("sh");
    child.arg("-c").arg(format!("{command} \"$@\"")).arg("publish-cmd").args([verb, name]);
    let run = child.stdin(Stdio::null()).kill_on_drop(true).output();
    let what = format!("`{command} {verb} {name}`");
    match tokio::time::timeout(PUBLISH_DEADLINE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{what} failed ({}): {}", output.status, crate::stream::short(said.trim())))
        }
        Ok(Err(error)) => Err(format!("{what} can't be run: {error}")),
        Err(_) => Err(format!("{what} is still running after {} s", PUBLISH_DEADLINE.as_secs())),
    }
}

/// The implementation under test, started by us; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Started(Child);

impl Started {
    /// Starts it.
    pub(crate) fn start(command: &str, address: &str) -> Result<Started, String> {
        let mut child = Command::new("sh");
        child.arg("-c").arg(format!("exec {command}")).env("HAMLET_CONFORMANCE_ADDRESS", address);
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        child.spawn().map(Started).map_err(|e| format!("`{command}` can't be started: {e}"))
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.0.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// Kills it and waits for its end.
    pub(crate) async fn stop(mut self) {
        let _ = self.0.kill().await;
    }
}
