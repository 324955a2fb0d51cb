//! A bad edit changes nothing but the state, which says where to look.

use crate::mesh::Two;
use crate::wait::{until, until_true};
use crate::workload::Workload;

fn two_with_ledger(ledger: &Workload) -> Two {
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    two.until_answers("ledger");
    two
}

#[test]
fn a_bad_edit_keeps_the_last_good_configuration_and_every_command_names_the_place() {
    let ledger = Workload::http("ledger");
    let two = two_with_ledger(&ledger);
    let good = std::fs::read_to_string(two.acme.folder.join("service-ledger.yaml")).unwrap();
    let published = "publication-ledger.yaml";
    let publication = std::fs::read_to_string(two.acme.folder.join(published)).unwrap();
    let edits = [
        ("service-ledger.yaml", good.replace("port: ", "port: ["), "service-ledger.yaml:"),
        ("service-ledger.yaml", good.replace("protocol:", "protocl:"), "service-ledger.yaml:6:3"),
        (published, publication.replace("globex", "globx"), "publication-ledger.yaml:6:11"),
    ];
    until_true("nothing is wrong at first", || two.acme.cli(&["status"]).code == 0);
    for (file, text, place) in edits {
        two.acme.write(file, &text);
        // Without being asked: the folder is watched.
        let status = until(&format!("the state shows {place}"), || {
            let status = two.acme.cli(&["status"]);
            if status.code == 3 && status.out.contains(place) {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        });
        assert!(status.out.contains("Health: degraded"), "{}", status.out);
        let reload = two.acme.cli(&["reload"]);
        assert_eq!(reload.code, 1, "{reload:?}");
        assert!(reload.err.contains(place), "{reload:?}");
        assert!(two.acme.service("ledger").is_some());
        two.until_answers("ledger");
        two.acme.write(file, if file == published { &publication } else { &good });
        until("it is mended", || {
            let status = two.acme.cli(&["status"]);
            if status.code == 0 { Ok(()) } else { Err(format!("{status:?}")) }
        });
        assert_eq!(two.acme.cli(&["reload"]).code, 0);
    }
    two.until_in_sync();
}

#[test]
fn a_folder_that_is_emptied_or_moved_away_is_an_error_and_withdraws_nothing() {
    let ledger = Workload::http("ledger");
    let two = two_with_ledger(&ledger);
    let away = two.root().join("away");
    std::fs::rename(&two.acme.folder, &away).unwrap();
    let degraded = || {
        let reload = two.acme.cli(&["reload"]);
        assert_eq!(reload.code, 1, "{reload:?}");
        assert!(reload.err.contains(two.acme.folder.to_str().unwrap()), "{reload:?}");
        let status = two.acme.cli(&["status"]);
        assert_eq!(status.code, 3, "{status:?}");
        assert!(two.acme.service("ledger").is_some());
        assert!(two.globex.service("acme/ledger").is_some());
        two.until_answers("ledger");
    };
    degraded();
    std::fs::create_dir(&two.acme.folder).unwrap();
    degraded();
    std::fs::remove_dir(&two.acme.folder).unwrap();
    std::fs::rename(&away, &two.acme.folder).unwrap();
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    until_true("nothing is wrong any more", || two.acme.cli(&["status"]).code == 0);
    // And it is watched again: nobody asks for this one.
    two.acme.remove("publication-ledger.yaml");
    until_true("a withdrawal arrives", || two.globex.service("acme/ledger").is_none());
}
