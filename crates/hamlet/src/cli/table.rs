//! Lists as tables, and what each kind shows in them. For people: scripts use `-o json`.
//!
//! All text is escaped to one line before it is shown: much of it was written by a peer.

use comfy_table::{Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use hamlet_admin::api::{
    BundleStatus, ImportStatus, Listed, PeerState, PeerStatus, Programming, Proof, PublicationStatus,
    ServiceStatus, Standing, human_age,
};
use hamlet_core::rejection::one_line;

/// Longest cell, in bytes.
const CELL_BYTES: usize = 160;
/// Blanks between columns.
const GAP: u16 = 3;

/// How a cell is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Waiting,
    Bad,
}

/// A cell: safe text and how it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// A cell of any text; an empty one becomes `-`.
fn cell(text: impl AsRef<str>) -> Cell {
    toned(text, Tone::Plain)
}

fn toned(text: impl AsRef<str>, tone: Tone) -> Cell {
    let text = text.as_ref();
    Cell { text: if text.is_empty() { "-".into() } else { one_line(text, CELL_BYTES) }, tone }
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    title: &'static str,
    /// Shown with `-o wide` only.
    wide: bool,
    /// Moves by itself, as ages do: no change for a watch.
    moving: bool,
}

const fn column(title: &'static str) -> Column {
    Column { title, wide: false, moving: false }
}
const fn wide(title: &'static str) -> Column {
    Column { title, wide: true, moving: false }
}
const fn moving(column: Column) -> Column {
    Column { moving: true, ..column }
}

/// A kind that can be shown as a table.
pub(super) trait Tabled: Listed {
    /// The columns; the first is the name.
    const COLUMNS: &'static [Column];
    /// One cell a column.
    fn cells(&self) -> Vec<Cell>;

    /// What a watch compares: all that it shows and that doesn't move by itself.
    fn fingerprint(&self, wide: bool) -> Vec<Cell> {
        let pairs = self.cells().into_iter().zip(Self::COLUMNS);
        pairs.filter(|(_, column)| !column.moving && (wide || !column.wide)).map(|(cell, _)| cell).collect()
    }
}

/// How a table is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) wide: bool,
    pub(super) header: bool,
    pub(super) colour: bool,
}

/// The rows as text, each ending in a line end. Columns are at least as wide as `widths`, which
/// grow with them, so that later rows stand below earlier ones.
pub(super) fn render<T: Tabled>(
    rows: impl IntoIterator<Item = Vec<Cell>>,
    style: Style,
    widths: &mut Vec<u16>,
) -> String {
    let shown = |column: &Column| style.wide || !column.wide;
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    if style.header {
        let titles: Vec<_> = T::COLUMNS.iter().filter(|c| shown(c)).map(|c| c.title).collect();
        table.set_header(titles);
    }
    for row in rows {
        let cells = row.into_iter().zip(T::COLUMNS).filter(|(_, column)| shown(column));
        table.add_row(cells.map(|(cell, _)| drawn(cell)).collect::<Vec<_>>());
    }
    let needed = table.column_max_content_widths();
    widths.resize(needed.len().max(widths.len()), 0);
    for ((column, needed), width) in table.column_iter_mut().zip(needed).zip(widths) {
        *width = needed.max(*width);
        column.set_padding((0, GAP));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(*width + GAP)));
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if table.is_empty() && !style.header {
        text.clear();
    }
    text
}

fn drawn(cell: Cell) -> comfy_table::Cell {
    let colour = match cell.tone {
        Tone::Plain => return comfy_table::Cell::new(cell.text),
        Tone::Good => Color::Green,
        Tone::Waiting => Color::Yellow,
        Tone::Bad => Color::Red,
    };
    comfy_table::Cell::new(cell.text).fg(colour)
}

/// The row of something that is gone.
pub(super) fn removed<T: Tabled>(name: &str) -> Vec<Cell> {
    let rest = T::COLUMNS.iter().skip(2).map(|_| cell(""));
    [cell(name), toned("(removed)", Tone::Waiting)].into_iter().chain(rest).collect()
}

/// How a peer's state is meant.
pub(super) fn tone(state: &PeerState) -> Tone {
    match state {
        PeerState::InSync { refused: 0, withheld: 0, .. } => Tone::Good,
        PeerState::Paused => Tone::Plain,
        PeerState::InSync { .. }
        | PeerState::Connecting
        | PeerState::Syncing { .. }
        | PeerState::Quiet { .. } => Tone::Waiting,
        PeerState::Stalled { .. } | PeerState::Refused { .. } | PeerState::Down { .. } => Tone::Bad,
    }
}

/// The word for a proof without its age.
fn proof(proof: &Proof) -> &'static str {
    match proof {
        Proof::None => "none",
        Proof::Pending => "pending",
        Proof::Equal { .. } => "equal",
        Proof::Different { .. } => "different",
    }
}

/// `12/12`, and how many were refused.
fn of(part: u64, whole: u64, refused: u64) -> String {
    let refused = if refused > 0 { format!(" ({refused} refused)") } else { String::new() };
    format!("{part}/{whole}{refused}")
}

/// Where a peer's bundle is from, with its sequence and the age of the endpoint's last good answer.
fn bundle(bundle: &BundleStatus) -> String {
    let parts = [
        bundle.source.clone(),
        bundle.revoked.then(|| "revoked".to_owned()),
        bundle.sequence.map(|n| format!("#{n}")),
        bundle.age_ms.map(human_age),
        bundle.refused.clone().map(|rule| format!("{rule}!")),
        (bundle.failures > 0).then(|| format!("{} failed", bundle.failures)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

impl Tabled for PeerStatus {
    const COLUMNS: &'static [Column] = &[
        column("NAME"),
        column("STATE"),
        column("PUBLISHED"),
        column("IMPORTED"),
        moving(column("AGE")),
        wide("TRUST-DOMAIN"),
        wide("ADDRESS"),
        wide("OPENED"),
        wide("VERSION"),
        wide("PROOF"),
        wide("AGENT"),
        wide("WINDOW"),
        moving(wide("BEAT")),
        moving(wide("BUNDLE")),
        moving(wide("DETAIL")),
        wide("LAST-ERROR"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let publish = self.publish.as_ref().map(|p| of(p.acknowledged, p.offered, p.refused_total));
        let import = self.import.as_ref().map(|i| of(i.in_force, i.heard, i.refused_total));
        let window = self.publish.as_ref().and_then(|p| p.window);
        let proofs: Vec<_> =
            [self.publish.as_ref().map(|p| &p.proof), self.import.as_ref().map(|i| &i.proof)]
                .map(|p| p.map_or("-", proof))
                .to_vec();
        vec![
            cell(&self.name),
            toned(self.state.cell(), tone(&self.state)),
            cell(publish.unwrap_or_default()),
            cell(import.unwrap_or_default()),
            cell(human_age(self.state_age_ms)),
            cell(&self.trust_domain),
            cell(self.address.as_deref().unwrap_or_default()),
            cell(self.direction.to_string()),
            cell(self.version.as_deref().unwrap_or_default()),
            cell(proofs.join("/")),
            cell(self.hello.as_ref().map(|h| h.agent.as_str()).unwrap_or_default()),
            cell(window.map(|w| w.to_string()).unwrap_or_default()),
            cell(self.beat.map(|b| human_age(b.age_ms)).unwrap_or_default()),
            cell(self.bundle.as_ref().map(bundle).unwrap_or_default()),
            cell(self.state.to_string()),
            cell(self.last_error.as_ref().map(|e| e.message.as_str()).unwrap_or_default()),
        ]
    }
}

impl Tabled for ServiceStatus {
    const COLUMNS: &'static [Column] = &[
        column("NAME"),
        column("ORIGIN"),
        column("FQDN"),
        column("INSTANCES"),
        column("CALLABLE"),
        column("PUBLISHED-TO"),
        wide("STANDING"),
        wide("EGRESS"),
        wide("WHY-NOT"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let port = |port: Option<u16>| port.map_or_else(|| "?".into(), |p| p.to_string());
        let instances: Vec<_> = self
            .instances
            .iter()
            .map(|i| format!("{}:{}", i.protocol.to_lowercase(), port(i.port)))
            .collect();
        let reasons = self.instances.iter().filter_map(|i| match &i.programming {
            Programming::Programmed => None,
            Programming::Shared { reason, .. } | Programming::NotProgrammed { reason, .. } => {
                Some(reason.as_str())
            }
        });
        let why: Vec<_> = self.conflicts.iter().map(String::as_str).chain(reasons).collect();
        let (callable, all) = (self.callable(), self.instances.len());
        let shade = match (callable, callable == all && self.conflicts.is_empty()) {
            (_, true) => Tone::Good,
            (0, _) => Tone::Bad,
            _ => Tone::Waiting,
        };
        let standing = if self.standing == Standing::Current { Tone::Plain } else { Tone::Waiting };
        vec![
            cell(&self.name),
            cell(self.origin.to_string()),
            cell(&self.fqdn),
            cell(instances.join(",")),
            toned(format!("{callable}/{all}"), shade),
            cell(self.published_to.join(",")),
            toned(self.standing.to_string(), standing),
            cell(self.egress.join(",")),
            cell(why.join("; ")),
        ]
    }
}

impl Tabled for PublicationStatus {
    const COLUMNS: &'static [Column] = &[
        column("NAME"),
        column("PEERS"),
        column("SERVICES"),
        wide("NAMES"),
        wide("LABELS"),
        wide("MISSING"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let labels: Vec<_> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            cell(&self.name),
            cell(self.peers.join(",")),
            cell(self.services.len().to_string()),
            cell(self.names.join(",")),
            cell(labels.join(",")),
            toned(self.missing.join(","), if self.missing.is_empty() { Tone::Plain } else { Tone::Waiting }),
        ]
    }
}

impl Tabled for ImportStatus {
    const COLUMNS: &'static [Column] = &[
        column("NAME"),
        column("PEER"),
        column("ADMITTED"),
        column("REFUSED"),
        column("SUFFIXES"),
        wide("RANGES"),
        wide("PORTS"),
        wide("SANS"),
    ];

    fn cells(&self) -> Vec<Cell> {
        let refused = if self.refused_total == 0 { Tone::Plain } else { Tone::Bad };
        vec![
            cell(&self.name),
            cell(&self.peer),
            cell(self.admitted.to_string()),
            toned(self.refused_total.to_string(), refused),
            cell(self.suffixes.join(",")),
            cell(self.ranges.join(",")),
            cell(self.endpoint_ports.join(",")),
            cell(self.sans.join(",")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_in_its_cell_and_colour_is_only_used_when_asked_for() {
        let bad = PeerStatus { name: "a\n\x1b[31mb\u{202e}".into(), ..Default::default() };
        let good = PeerStatus { name: "acme".into(), ..Default::default() };
        let style = Style { wide: true, header: true, colour: false };
        let text = render::<PeerStatus>([bad.cells(), good.cells()], style, &mut vec![]);
        assert_eq!(text.lines().count(), 3);
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'));
        let painted = render::<PeerStatus>([good.cells()], Style { colour: true, ..style }, &mut vec![]);
        assert!(painted.contains('\x1b'));
    }

    #[test]
    fn an_age_that_moves_is_no_change() {
        let a = PeerStatus { state_age_ms: 1000, ..Default::default() };
        let b = PeerStatus { state_age_ms: 9000, ..Default::default() };
        let c = PeerStatus { attempts: 1, state: PeerState::Paused, ..Default::default() };
        assert_eq!(a.fingerprint(false), b.fingerprint(false));
        assert_ne!(a.fingerprint(false), c.fingerprint(false));
        let moved = PeerStatus { address: Some("agent.globex.example:7443".into()), ..a.clone() };
        assert_eq!(a.fingerprint(false), moved.fingerprint(false), "a column that isn't shown");
        assert_ne!(a.fingerprint(true), moved.fingerprint(true));
    }

    #[test]
    fn later_rows_stand_below_the_first_ones() {
        let long = PeerStatus { name: "a-rather-long-name".into(), ..Default::default() };
        let short = PeerStatus { name: "b".into(), ..Default::default() };
        let style = Style { wide: false, header: true, colour: false };
        let mut widths = vec![];
        let first = render::<PeerStatus>([long.cells()], style, &mut widths);
        render::<PeerStatus>([], Style { header: false, ..style }, &mut widths);
        let later = render::<PeerStatus>([short.cells()], Style { header: false, ..style }, &mut widths);
        let column = |text: &str| text.lines().last().and_then(|l| l.find("Connecting"));
        assert_eq!(column(&later), column(&first));
    }

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        assert_eq!(PeerStatus::default().cells().len(), PeerStatus::COLUMNS.len());
        assert_eq!(PublicationStatus::default().cells().len(), PublicationStatus::COLUMNS.len());
        assert_eq!(ImportStatus::default().cells().len(), ImportStatus::COLUMNS.len());
        assert_eq!(removed::<ServiceStatus>("x").len(), ServiceStatus::COLUMNS.len());
    }
}
