//! What an agent said in its log about certificates and streams, counted.

use std::path::Path;

/// Most lines of trouble that are shown.
const TROUBLE_SHOWN: usize = 5;

/// Warnings that are meant here: lives of seconds always end soon, and roots are changed.
const EXPECTED: [&str; 2] = ["expires soon", "the peer's CAs changed"];

/// The counts of one agent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// New leaves that the agent began to present to agents.
    pub(super) agent_leaves: u64,
    /// And to gateways.
    pub(super) gateway_leaves: u64,
    /// Roots that began to issue before the overlap's end, because the peer had them in force.
    pub(super) released: u64,
    /// Streams that went on on a new connection.
    pub(super) renewed: u64,
    /// Attempts to have a stream that ended without one.
    pub(super) reconnects: u64,
    /// Calls that its egress could not pass on.
    pub(super) egress_failed: u64,
    /// Warnings and errors that nobody expects.
    pub(super) troubles: u64,
    /// The first of them.
    pub(super) trouble: Vec<String>,
}

impl Said {
    /// Counts the lines of the log at `path`.
    pub(super) fn read(path: &Path) -> std::io::Result<Said> {
        Ok(Said::of(&String::from_utf8_lossy(&std::fs::read(path)?)))
    }

    fn of(log: &str) -> Said {
        let mut said = Said::default();
        for line in log.lines() {
            // Whoever was first: the authority that made it, or the watch over the files.
            let is = |text: &str, of: &str| line.contains(text) && line.trim_end().contains(of);
            let presented = |role: &str| {
                is("a new leaf is presented", &format!("role={role}"))
                    || is("certificate reloaded", &format!("/hamlet/{role}"))
            };
            said.agent_leaves += u64::from(presented("agent"));
            said.gateway_leaves += u64::from(presented("gateway"));
            said.released += u64::from(line.contains("all peers have the new root"));
            said.renewed += u64::from(line.contains("stream renewed on a new connection"));
            said.reconnects += u64::from(line.contains("not connected"));
            let failed = ["egress connection failed", "egress request failed"];
            said.egress_failed += u64::from(failed.iter().any(|text| line.contains(text)));
            let expected = EXPECTED.iter().any(|text| line.contains(text));
            if !expected && (line.contains(" WARN ") || line.contains(" ERROR ")) {
                said.troubles += 1;
                if said.trouble.len() < TROUBLE_SHOWN {
                    said.trouble.push(line.to_owned());
                }
            }
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn each_line_is_counted_for_what_it_says() {
        let log = "\
2026-01-01T00:00:00Z  INFO hamlet_identity::authority::keeper: a new leaf is presented role=agent until=x
2026-01-01T00:00:00Z  INFO hamlet_identity::authority::keeper: a new leaf is presented role=gateway until=x
2026-01-01T00:00:00Z  INFO hamlet_identity::watch: certificate reloaded id=spiffe://east.example/hamlet/gateway
2026-01-01T00:00:01Z  INFO hamlet_protocol::dial::renewal: stream renewed on a new connection peer=west
2026-01-01T00:00:02Z  INFO hamlet::agent::bundles: all peers have the new root; it issues from now on root=3
2026-01-01T00:00:02Z  INFO hamlet_protocol::dial: not connected peer=west reason=x
2026-01-01T00:00:02Z  WARN hamlet_protocol::dial: something role=agent
2026-01-01T00:00:02Z  WARN hamlet::agent::expiry: expires soon; renew it in time about=identity/agent
";
        let trouble = log.lines().skip(6).take(1).map(str::to_owned).collect();
        let wanted = Said {
            agent_leaves: 1,
            gateway_leaves: 2,
            released: 1,
            renewed: 1,
            reconnects: 1,
            egress_failed: 0,
            troubles: 1,
            trouble,
        };
        assert_eq!(Said::of(log), wanted);
    }
}
