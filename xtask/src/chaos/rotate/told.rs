//! The tables at the end: what was rotated, what changed, what was called, and how long it took.

use std::time::Duration;

use hamlet_identity::authority::state::LeafRole;

use super::Run;
use super::book::{Kind, quantile};
use super::log::Said;
use crate::report::{Table, say};

/// Prints all of it.
pub(super) fn print(run: &Run) {
    rotations(run);
    updates(run);
    calls(run);
    say(&format!("{:.0} s of load", run.took.as_secs_f64()));
}

fn rotations(run: &Run) {
    let headings = [
        "rotations",
        "leaves: agent",
        "gateway",
        "presented",
        "issuing CAs",
        "roots",
        "by command",
        "sooner than the overlap",
        "streams renewed",
        "reconnects",
        "warnings",
    ];
    let mut table = Table::new(&headings);
    let mut trouble = Vec::new();
    for (rotations, mesh) in run.rotations.iter().zip(&run.meshes) {
        let said = Said::read(&mesh.agent.log()).unwrap_or_default();
        table.row(vec![
            mesh.name.to_owned(),
            rotations.leaves(LeafRole::Agent).to_string(),
            rotations.leaves(LeafRole::Gateway).to_string(),
            format!("{}/{}", said.agent_leaves, said.gateway_leaves),
            rotations.issuing().to_string(),
            rotations.roots().to_string(),
            rotations.asked().to_string(),
            said.released.to_string(),
            said.renewed.to_string(),
            said.reconnects.to_string(),
            said.troubles.to_string(),
        ]);
        trouble.extend(said.trouble.into_iter().map(|line| format!("{}: {line}", mesh.name)));
    }
    table.print();
    trouble.iter().for_each(|line| say(line));
}

fn updates(run: &Run) {
    let headings =
        ["updates", "written", "seen", "lost", "wrong", "held up", "to seen: median", "p99", "longest"];
    let mut table = Table::new(&headings);
    for (updates, mesh) in run.updates.iter().zip(&run.meshes) {
        let mut fate = updates.fate();
        fate.took.sort();
        let mut row =
            vec![format!("of {}", mesh.name), fate.written.to_string(), fate.took.len().to_string()];
        row.extend([fate.lost(), fate.wrong, fate.held_up].map(|count| count.to_string()));
        row.extend(times(&fate.took));
        table.row(row);
    }
    table.print();
}

fn calls(run: &Run) {
    let headings = ["calls", "made", "failed", "connections", "outlived a leaf", "median", "p99", "longest"];
    let mut table = Table::new(&headings);
    for kind in Kind::ALL {
        let mut calls = run.book.calls(kind);
        calls.took.sort();
        let outlived = if kind.is_new() { "-".to_owned() } else { calls.outlived.to_string() };
        let mut row = vec![
            kind.to_string(),
            calls.count().to_string(),
            calls.failed.to_string(),
            calls.connections.to_string(),
            outlived,
        ];
        row.extend(times(&calls.took));
        table.row(row);
    }
    table.print();
}

fn times(sorted: &[Duration]) -> [String; 3] {
    let ms = |share| format!("{:.0} ms", quantile(sorted, share).as_secs_f64() * 1000.0);
    [ms(0.5), ms(0.99), ms(1.0)]
}
