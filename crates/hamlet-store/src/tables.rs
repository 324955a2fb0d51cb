//! The tables of the file: their names, their keys, and reading all of them.
//!
//! Keys and values are plain bytes to redb, because its text types panic on damaged text; we check
//! them ourselves. Invariant: what is loaded passed its checksum and has canonical keys.

use std::collections::BTreeMap;

use hamlet_core::durable::LoadedPeer;
use hamlet_core::name::PeerName;
use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use crate::damage::DamageReport;
use crate::frame::{self, Flaw};

/// The schema version that this program writes.
pub const SCHEMA: u32 = 1;

/// How many damaged values are kept in the file for inspection. Beyond it they are removed.
pub const DAMAGED_VALUES_KEPT: u64 = 256;

const SCHEMA_KEY: &[u8] = b"schema";

/// Steps from each schema version to the next: step `n` leads from version `n + 1`.
const MIGRATIONS: [Step; SCHEMA as usize - 1] = [];

type Step = fn(&WriteTransaction) -> Result<(), redb::Error>;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// A table of the file. The names are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// `schema` to the schema version. Its frame and content never change, so that every version
    /// of the program can read it.
    Meta,
    /// Peer name, a zero byte, wire key; to `ImportRecord`.
    Imports,
    /// Peer name; to `PeerState`.
    Peers,
    /// Name; to bytes.
    Documents,
    /// Table name, a zero byte, key; to the damaged value as it was.
    Damaged,
}

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Imports => "imports",
            Table::Peers => "peers",
            Table::Documents => "documents",
            Table::Damaged => "damaged",
        }
    }

    pub(crate) fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

/// Key of an import record. A peer name is a DNS label, so it has no zero byte in it.
pub(crate) fn import_key(peer: &PeerName, key: &str) -> Vec<u8> {
    [peer.as_str().as_bytes(), b"\0", key.as_bytes()].concat()
}

/// First key of a peer's records and first key after them.
pub(crate) fn import_range(peer: &PeerName) -> (Vec<u8>, Vec<u8>) {
    let name = peer.as_str().as_bytes();
    ([name, b"\0"].concat(), [name, b"\x01"].concat())
}

/// Peer name and wire key of an import record's key.
pub(crate) fn split_import_key(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = key.iter().position(|b| *b == 0)?;
    Some((&key[..at], &key[at + 1..]))
}

fn parse_peer(bytes: &[u8]) -> Result<PeerName, Flaw> {
    let text = std::str::from_utf8(bytes).map_err(|_| Flaw::Key)?;
    PeerName::parse(text).ok().filter(|name| name.as_str() == text).ok_or(Flaw::Key)
}

/// The schema version a file says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundSchema {
    Version(u32),
    Missing,
    Damaged(Flaw),
}

/// Reads the schema version.
pub(crate) fn read_schema(txn: &ReadTransaction) -> Result<FoundSchema, redb::Error> {
    let table = match txn.open_table(Table::Meta.definition()) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(FoundSchema::Missing),
        Err(e) => return Err(e.into()),
    };
    let Some(value) = ReadableTable::get(&table, SCHEMA_KEY)? else { return Ok(FoundSchema::Missing) };
    let content = match frame::unseal(Table::Meta, SCHEMA_KEY, value.value()) {
        Ok(content) => content,
        Err(flaw) => return Ok(FoundSchema::Damaged(flaw)),
    };
    Ok(match content.try_into().map(u32::from_le_bytes) {
        Ok(0) | Err(_) => FoundSchema::Damaged(Flaw::Content),
        Ok(version) => FoundSchema::Version(version),
    })
}

/// Brings a file from schema version `from` (0: a new file) to [`SCHEMA`].
pub(crate) fn migrate(txn: &WriteTransaction, from: u32) -> Result<(), redb::Error> {
    for step in MIGRATIONS.iter().skip(from.saturating_sub(1) as usize) {
        step(txn)?;
    }
    let value = frame::seal(Table::Meta, SCHEMA_KEY, &SCHEMA.to_le_bytes());
    txn.open_table(Table::Meta.definition())?.insert(SCHEMA_KEY, &value[..])?;
    Ok(())
}

/// All that was in a file.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) peers: BTreeMap<PeerName, LoadedPeer>,
    /// Number of sound documents.
    pub(crate) documents: u64,
    /// Table and key of what is damaged.
    pub(crate) damaged: Vec<(Table, Vec<u8>, Flaw)>,
}

impl Loaded {
    pub(crate) fn report(&self) -> Option<DamageReport> {
        DamageReport::of_values(&self.damaged)
    }

    fn import(&mut self, key: &[u8], value: &[u8]) -> Result<(), Flaw> {
        let (peer, wire_key) = split_import_key(key).ok_or(Flaw::Key)?;
        let peer = parse_peer(peer)?;
        let wire_key = std::str::from_utf8(wire_key).map_err(|_| Flaw::Key)?.to_owned();
        let record = frame::decode(Table::Imports, key, value)?;
        self.peers.entry(peer).or_default().records.insert(wire_key, record);
        Ok(())
    }

    fn peer(&mut self, key: &[u8], value: &[u8]) -> Result<(), Flaw> {
        let state = frame::decode(Table::Peers, key, value)?;
        self.peers.entry(parse_peer(key)?).or_default().state = state;
        Ok(())
    }

    fn document(&mut self, key: &[u8], value: &[u8]) -> Result<(), Flaw> {
        std::str::from_utf8(key).map_err(|_| Flaw::Key)?;
        frame::unseal(Table::Documents, key, value)?;
        self.documents += 1;
        Ok(())
    }
}

/// Reads everything, leaving out what is damaged.
pub(crate) fn load(txn: &ReadTransaction) -> Result<Loaded, redb::Error> {
    let mut loaded = Loaded::default();
    for table in [Table::Imports, Table::Peers, Table::Documents] {
        let open = match txn.open_table(table.definition()) {
            Ok(open) => open,
            Err(TableError::TableDoesNotExist(_)) => continue,
            Err(e) => return Err(e.into()),
        };
        for entry in ReadableTable::iter(&open)? {
            let (key, value) = entry?;
            let (key, value) = (key.value(), value.value());
            let taken = match table {
                Table::Imports => loaded.import(key, value),
                Table::Peers => loaded.peer(key, value),
                _ => loaded.document(key, value),
            };
            if let Err(flaw) = taken {
                loaded.damaged.push((table, key.to_vec(), flaw));
            }
        }
    }
    Ok(loaded)
}

/// Moves damaged values out of the way, so that they are reported once and not for ever.
pub(crate) fn set_values_aside(
    txn: &WriteTransaction,
    damaged: &[(Table, Vec<u8>, Flaw)],
) -> Result<(), redb::Error> {
    let mut aside = txn.open_table(Table::Damaged.definition())?;
    let mut kept = redb::ReadableTableMetadata::len(&aside)?;
    for (table, key, _) in damaged {
        let mut source = txn.open_table(table.definition())?;
        let Some(value) = source.remove(&key[..])? else { continue };
        if kept < DAMAGED_VALUES_KEPT {
            let place = [table.name().as_bytes(), b"\0", key].concat();
            aside.insert(&place[..], value.value())?;
            kept += 1;
        }
    }
    Ok(())
}
