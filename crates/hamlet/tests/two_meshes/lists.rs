//! Revocation lists that come over the Workload API: who stands on one is cut off, streams and calls
//! alike, and nobody else is.

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use hamlet_testkit::pki::{DAY, HOUR, TestLeaf};

use crate::api::{Server, Svid, SvidResponse};
use crate::mesh::Two;
use crate::probe::{connect, echo, read_to_end};
use crate::wait::{until, until_true};
use crate::workload::Workload;
use crate::workload_api::{Spire, federate, problems};

/// Both meshes live by a Workload API, and acme's gives lists.
struct Scene {
    two: Two,
    acme: Spire,
    globex: Spire,
    /// Acme's.
    server: Server,
    /// Globex's.
    its_server: Server,
}

impl Scene {
    fn start(raw: &Workload) -> (Scene, [TestLeaf; 2]) {
        let mut two = Two::new();
        let (acme, globex) = (Spire::beside(&two.acme), Spire::beside(&two.globex));
        acme.identify(&two.acme, "", "");
        globex.identify(&two.globex, "", "");
        federate(&two.acme, &two.globex);
        two.globex.write("peers/acme-ca.pem", acme.ca.pem());
        two.acme.declare("raw", "TCP", two.port, raw.at, "none");
        two.acme.publish("raw", &["raw"], &two.globex);
        let (leaves, message) = certificates(&two, &globex, 1);
        let server = acme.serve(Ok(given(&two, &acme, &globex, vec![])));
        let its_server = globex.serve(Ok(message));
        two.start();
        two.until_in_sync();
        two.globex.until_callable("acme/raw");
        (Scene { two, acme, globex, server, its_server }, leaves)
    }

    /// Acme's Workload API gives these lists.
    fn lists(&self, lists: Vec<Vec<u8>>) {
        self.server.say(Ok(given(&self.two, &self.acme, &self.globex, lists)));
    }

    /// A list of globex's CA.
    fn list(&self, revoked: &[&TestLeaf]) -> Vec<u8> {
        self.globex.ca.crl_der(revoked, -HOUR, DAY)
    }

    fn call(&self, text: &str) -> Result<(), String> {
        let mut stream = connect(self.two.egress("raw")?).map_err(|e| e.to_string())?;
        echo(&mut stream, text).map_err(|e| e.to_string())
    }

    fn until_refused(&self) {
        until("globex's agent is refused by the list", || {
            let peer = self.two.acme.peer(&self.two.globex);
            let why = peer["authFailures"].to_string();
            let refused =
                why.contains("hamlet/agent") && why.contains("revoked by the peer's revocation list");
            if refused && peer["state"]["kind"] != "in-sync" { Ok(()) } else { Err(peer.to_string()) }
        });
    }
}

/// What acme's Workload API says.
fn given(two: &Two, acme: &Spire, globex: &Spire, lists: Vec<Vec<u8>>) -> SvidResponse {
    let mut message = acme.both(&two.acme, 1, None);
    message.federated_bundles.insert("spiffe://globex.example".to_owned(), globex.ca.root().to_vec());
    message.crl = lists;
    message
}

/// The agent's and the gateway's certificate of globex, and the message that gives them.
fn certificates(two: &Two, globex: &Spire, days: i64) -> ([TestLeaf; 2], SvidResponse) {
    let made = [AGENT_ID_PATH, GATEWAY_ID_PATH].map(|path| globex.leaf(&two.globex, &globex.ca, path, days));
    let svids = made.iter().map(|(leaf, id)| Svid::of(id, leaf, &globex.ca)).collect();
    (made.map(|(leaf, _)| leaf), SvidResponse { svids, ..SvidResponse::default() })
}

#[test]
fn whom_a_list_of_the_workload_api_revokes_is_cut_off_and_its_neighbour_and_its_next_certificate_are_not() {
    let raw = Workload::echo();
    let (scene, [agent, gateway]) = Scene::start(&raw);
    let two = &scene.two;
    let mut live = connect(two.egress("raw").unwrap()).unwrap();
    echo(&mut live, "before").unwrap();
    let other = scene.globex.ca.agent();
    scene.lists(vec![scene.list(&[&other])]);
    until_true("the list is there", || two.acme.peer(&two.globex)["crl"]["lists"] == 1);
    echo(&mut live, "the list names somebody else").unwrap();

    scene.lists(vec![scene.list(&[&other, &gateway])]);
    read_to_end(&mut live).unwrap();
    assert!(scene.call("revoked").is_err());
    let peer = two.acme.peer(&two.globex);
    assert_eq!((&peer["crl"]["lists"], &peer["crl"]["revoked"]), (&1.into(), &2.into()), "{peer}");
    two.until_in_sync();
    let (leaves, message) = certificates(two, &scene.globex, 2);
    scene.its_server.say(Ok(message));
    until("a call with the next certificate", || scene.call("renewed"));
    two.until_in_sync();

    scene.lists(vec![scene.list(&[&agent, &leaves[0]])]);
    scene.until_refused();
    scene.call("the gateway is another certificate").unwrap();
    scene.lists(vec![]);
    two.until_in_sync();
    assert!(two.acme.peer(&two.globex)["crl"].is_null());
}

#[test]
fn a_list_that_cannot_be_used_is_shown_and_leaves_the_one_before_it_in_force() {
    let raw = Workload::echo();
    let (scene, [agent, _]) = Scene::start(&raw);
    let two = &scene.two;
    scene.lists(vec![scene.list(&[&agent])]);
    scene.until_refused();
    scene.lists(vec![b"no list".to_vec()]);
    let shown = until("acme says what is wrong", || {
        let problems = problems(&two.acme);
        if problems.contains("revocation lists that can't be used") { Ok(problems) } else { Err(problems) }
    });
    assert!(shown.contains("identity/workload-api") && shown.contains("list 1 is unusable"), "{shown}");
    assert_eq!(two.acme.cli(&["status"]).code, 3);
    scene.until_refused();
    scene.call("its gateway was never on it").unwrap();
    let check = two.acme.cli(&["check", "-f", two.acme.folder.to_str().unwrap()]);
    assert!(check.code == 1 && check.out.contains("list 1 is unusable"), "{check:?}");

    scene.lists(vec![]);
    two.until_in_sync();
    until_true("nothing is wrong", || !problems(&two.acme).contains("revocation"));
}
