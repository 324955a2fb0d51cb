//! `hamlet get`: lists, once or whenever they change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use clap::{Args, ValueEnum};
use hamlet_admin::api::{
    Found, ImportStatus, Kind, List, Listed, PeerStatus, PublicationStatus, ServiceStatus, find,
};
use hamlet_admin::{Client, ClientError};
use hamlet_core::rejection::one_line;
use serde::Serialize;

use super::connect::ConnectArgs;
use super::exit::{Exit, Failure};
use super::output::{self, Out};
use super::table::{self, Style, Tabled};

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum KindArg {
    /// Other meshes, and how we stand with them
    #[value(alias = "peer")]
    Peers,
    /// Local and imported services
    #[value(aliases = ["service", "svc"])]
    Services,
    /// What we make visible, and to whom
    #[value(aliases = ["publication", "pub"])]
    Publications,
    /// What we accept, and from whom
    #[value(alias = "import")]
    Imports,
}

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// Columns for people; they may change
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// Stable, for programs
    Json,
    /// The same as JSON
    Yaml,
    /// KIND/NAME, one a line
    Name,
}

/// List peers, services, publications or imports
///
/// The states of a peer: Paused, Connecting, Syncing, InSync (both sides have proven that they hold
/// the same set), Quiet (this peer can't prove it), Stalled, Refused, Down. PUBLISHED is
/// acknowledged of offered, IMPORTED is in force of heard.
///
/// With a NAME only that one; exit code 5 when there is none. A service is found by its name, by
/// PEER/NAME when it is imported, or by its fqdn.
///
/// Examples:
///   hamlet get peers
///   hamlet get services -o wide --watch
///   hamlet get service globex/ledger -o yaml
///   hamlet get peers -o json | jq -r '.items[] | select(.state.kind != "in-sync") | .name'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct GetArgs {
    /// What to list
    #[arg(value_enum, value_name = "KIND")]
    kind: KindArg,
    /// Only this one
    name: Option<String>,
    /// How to write it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Stay, and write whatever changes; JSON and YAML give the whole list each time
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Does it.
pub(super) async fn run(args: GetArgs, out: &mut Out) -> anyhow::Result<Exit> {
    match args.kind {
        KindArg::Peers => get::<PeerStatus>(&args, out).await,
        KindArg::Services => get::<ServiceStatus>(&args, out).await,
        KindArg::Publications => get::<PublicationStatus>(&args, out).await,
        KindArg::Imports => get::<ImportStatus>(&args, out).await,
    }
}

async fn get<T: Tabled>(args: &GetArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let client = args.connect.client();
    if args.watch {
        return watch::<T>(args, &client, out).await;
    }
    match &args.name {
        Some(name) => {
            let item: T = client.one(name).await.map_err(Failure::from)?;
            match args.output {
                Format::Json | Format::Yaml => write_document(&item, args.output, out)?,
                _ => write_rows(std::slice::from_ref(&item), args.output, true, &mut vec![], out)?,
            }
        }
        None => {
            let list: List<T> = client.list().await.map_err(Failure::from)?;
            match args.output {
                Format::Json | Format::Yaml => write_document(&list, args.output, out)?,
                _ if list.items.is_empty() => output::say(&format!("no {}", T::KIND.plural())),
                _ => write_rows(&list.items, args.output, true, &mut vec![], out)?,
            }
        }
    }
    Ok(Exit::Good)
}

/// JSON or YAML of one value.
pub(super) fn write_document<T: Serialize>(value: &T, format: Format, out: &mut Out) -> anyhow::Result<()> {
    if format == Format::Yaml {
        out.write_all(serde_saphyr::to_string(value)?.as_bytes())?;
    } else {
        let text = serde_json::to_string_pretty(value)?;
        writeln!(out, "{text}")?;
    }
    Ok(())
}

/// Rows; without a header they stand below those that had `widths`.
fn write_rows<T: Tabled>(
    items: &[T],
    format: Format,
    header: bool,
    widths: &mut Vec<u16>,
    out: &mut Out,
) -> std::io::Result<()> {
    if format == Format::Name {
        for item in items {
            writeln!(out, "{}", kind_and_name(T::KIND, item.name()))?;
        }
        return Ok(());
    }
    let style = Style { wide: format == Format::Wide, header, colour: out.colour };
    let text = table::render::<T>(items.iter().map(Tabled::cells), style, widths);
    out.write_all(text.as_bytes())
}

fn kind_and_name(kind: Kind, name: &str) -> String {
    format!("{}/{}", kind.singular(), one_line(name, 512))
}

/// What a watch has shown.
#[derive(Default)]
struct Shown {
    /// By name, what a row says; `None` before the first list.
    rows: Option<BTreeMap<String, Vec<table::Cell>>>,
    /// Of the columns.
    widths: Vec<u16>,
}

/// The first list whole, then what changed in each further one, until the agent stops.
async fn watch<T: Tabled>(args: &GetArgs, client: &Client, out: &mut Out) -> anyhow::Result<Exit> {
    let mut lists = client.watch::<T>().await.map_err(Failure::from)?;
    let mut shown = Shown::default();
    loop {
        let list = lists.next().await.map_err(Failure::from)?;
        let list = match &args.name {
            None => list,
            Some(name) => only(list, name, shown.rows.is_none())?,
        };
        match args.output {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&list)?)?,
            Format::Yaml => write!(out, "---\n{}", serde_saphyr::to_string(&list)?)?,
            _ => write_changes(&list, &mut shown, args.output, out)?,
        }
        out.flush()?;
        let wide = args.output == Format::Wide;
        let now = list.items.iter().map(|i| (i.name().to_owned(), i.fingerprint(wide)));
        shown.rows = Some(now.collect());
    }
}

/// The list with only the one that is asked for. That it isn't there at first is an error; later
/// it has been removed.
fn only<T: Tabled>(list: List<T>, name: &str, first: bool) -> Result<List<T>, Failure> {
    let kind = list.kind;
    match find(list.items, name) {
        Found::One(item) => Ok(List { kind, items: vec![item] }),
        Found::Several(candidates) => {
            let message =
                format!("{} is ambiguous: choose one of {}", one_line(name, 256), candidates.join(", "));
            Err(ClientError::Ambiguous { message, candidates }.into())
        }
        Found::None if first => {
            let message = format!("there is no {} named {}", kind.singular(), one_line(name, 256));
            Err(ClientError::NotFound(message).into())
        }
        Found::None => Ok(List { kind, items: vec![] }),
    }
}

fn write_changes<T: Tabled>(
    list: &List<T>,
    shown: &mut Shown,
    format: Format,
    out: &mut Out,
) -> std::io::Result<()> {
    let (wide, widths) = (format == Format::Wide, &mut shown.widths);
    let Some(known) = &shown.rows else { return write_rows(&list.items, format, true, widths, out) };
    let changed: Vec<T> =
        list.items.iter().filter(|i| known.get(i.name()) != Some(&i.fingerprint(wide))).cloned().collect();
    write_rows(&changed, format, false, widths, out)?;
    let present: BTreeSet<&str> = list.items.iter().map(Listed::name).collect();
    for name in known.keys().filter(|name| !present.contains(name.as_str())) {
        if format == Format::Name {
            writeln!(out, "{} (removed)", kind_and_name(T::KIND, name))?;
        } else {
            let style = Style { wide, header: false, colour: out.colour };
            let text = table::render::<T>([table::removed::<T>(name)], style, widths);
            out.write_all(text.as_bytes())?;
        }
    }
    Ok(())
}
