//! Four idle minutes: streams on which nothing is said stay alive, whoever dialled. The original Go
//! client pings every 20 s, its server tolerates pings only every 40 s, so that two of them lose
//! each other; we ping no more often than every 45 s as a client, and tolerate theirs as a server.

use std::time::Duration;

use crate::foreign::{Foreign, go_peer, python_peer};
use crate::meeting::{Meeting, Terms, names};

/// Longer than three times what the Go server needs to lose patience.
const IDLE: Duration = Duration::from_secs(245);

/// A peer on which nothing happens, with what it prints when its stream begins and ends.
struct Idle {
    what: &'static str,
    meeting: Meeting,
    peer: Foreign,
    begins: &'static str,
    ends: &'static str,
}

impl Idle {
    /// Nothing has ended or begun anew.
    fn assert_alive(&self) {
        assert_eq!(self.peer.events(self.begins).len(), 1, "{}: it began anew", self.what);
        assert!(self.peer.events(self.ends).is_empty(), "{}: {:?}", self.what, self.peer.events(self.ends));
    }
}

fn they_dial(what: &'static str, program: &crate::foreign::Program, role: &str, ends: &'static str) -> Idle {
    let mut meeting = Meeting::new();
    meeting.offer(&names(1));
    meeting.know(&Terms::default());
    meeting.acme.start();
    let peer = meeting.dialler(program, role, &[]);
    meeting.until_acknowledged(1);
    Idle { what, meeting, peer, begins: "dialling", ends }
}

fn we_dial(what: &'static str, program: &crate::foreign::Program, role: &str, ends: &'static str) -> Idle {
    let mut meeting = Meeting::new();
    let (peer, address) = meeting.listener(program, role, &["--services", "1"]);
    meeting.know(&Terms { address: Some(address), ..Terms::default() });
    meeting.acme.start();
    meeting.until_imported(1);
    Idle { what, meeting, peer, begins: "subscribed", ends }
}

#[test]
#[ignore = "needs Go and Python, and four minutes: interop/build"]
fn streams_stay_alive_through_four_idle_minutes_whoever_dialled() {
    let (Some(go), Some(python)) = (go_peer(), python_peer()) else { return };
    let reference = Meeting::new();
    let (_their_owner, their_consumer) = reference.foreign_pair(&go, ["owner", "consumer"], &[]);
    let idle = [
        they_dial("Go consumer, our owner", &go, "consumer", "ended"),
        we_dial("Go owner, our consumer", &go, "owner", "unsubscribed"),
        they_dial("Python peer that dialled us", &python, "both", "ended"),
        we_dial("Python peer that we dialled", &python, "both", "ended"),
    ];
    // The subject of this test is time in which nothing happens.
    std::thread::sleep(IDLE);
    for one in &idle {
        one.assert_alive();
        let log = one.meeting.acme.log();
        assert!(!log.contains("ENHANCE_YOUR_CALM") && !log.contains("too_many_pings"), "{}: {log}", one.what);
    }
    // A change still passes, on the same stream.
    for one in &idle {
        if one.begins == "dialling" {
            one.meeting.offer(&names(2));
            one.meeting.until_acknowledged(2);
        } else {
            one.peer.say("create late");
            one.meeting.until_imported(2);
        }
        one.assert_alive();
    }
    // What shows that this test can fail.
    let ended = their_consumer.until("ended");
    assert_eq!(ended["asked"], false, "two Go peers lose each other: {ended}");
}
