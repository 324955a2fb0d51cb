//! The tables of the file: their names, their keys, and reading all of them, with what the journal
//! holds on top.
//!
//! Keys and values are plain bytes to redb, because its text types panic on damaged text; we check
//! them ourselves. Invariant: what is loaded passed its checksum and has canonical keys.

use std::collections::BTreeMap;

use hamlet_core::durable::LoadedPeer;
use hamlet_core::name::PeerName;
use redb::{ReadTransaction, ReadableTable, TableDefinition, TableError, WriteTransaction};

use crate::damage::DamageReport;
use crate::frame::{self, Flaw};
use crate::journal::Mark;
use crate::layer::Layer;

/// The schema version that this program writes.
pub const SCHEMA: u32 = 2;

/// How many damaged values are kept in the file for inspection. Beyond it they are removed.
pub const DAMAGED_VALUES_KEPT: u64 = 256;

const SCHEMA_KEY: &[u8] = b"schema";
const MARK_KEY: &[u8] = b"journal";

/// Steps from each schema version to the next: step `n` leads from version `n + 1`.
const MIGRATIONS: [Step; SCHEMA as usize - 1] = [
    // 2: the row `journal` and the journal itself. An older program would not read them.
    |_| Ok(()),
];

type Step = fn(&WriteTransaction) -> Result<(), redb::Error>;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// A table of the file. The names are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// `schema` to the schema version. Its frame and content never change, so that every version
    /// of the program can read it. `journal` to [`Mark`], if there is a journal to be read.
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

    /// The number of a table that can be in the journal. Part of its format.
    pub(crate) fn number(self) -> u8 {
        match self {
            Table::Meta | Table::Damaged => 0,
            Table::Imports => 1,
            Table::Peers => 2,
            Table::Documents => 3,
        }
    }

    /// The table with a number.
    pub(crate) fn of_number(number: u8) -> Option<Table> {
        [Table::Imports, Table::Peers, Table::Documents].into_iter().find(|table| table.number() == number)
    }

    pub(crate) fn definition(self) -> Definition {
        TableDefinition::new(self.name())
    }
}

type OpenTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// The tables a transaction has touched so far.
pub(crate) struct Tables<'t> {
    txn: &'t WriteTransaction,
    open: BTreeMap<Table, OpenTable<'t>>,
}

impl<'t> Tables<'t> {
    pub(crate) fn of(txn: &'t WriteTransaction) -> Tables<'t> {
        Tables { txn, open: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, table: Table) -> Result<&mut OpenTable<'t>, redb::Error> {
        use std::collections::btree_map::Entry;
        match self.open.entry(table) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(self.txn.open_table(table.definition())?)),
        }
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
    let Some(value) = get(txn, Table::Meta, SCHEMA_KEY)? else { return Ok(FoundSchema::Missing) };
    let content = match frame::unseal(Table::Meta, SCHEMA_KEY, &value) {
        Ok(content) => content,
        Err(flaw) => return Ok(FoundSchema::Damaged(flaw)),
    };
    Ok(match content.try_into().map(u32::from_le_bytes) {
        Ok(0) | Err(_) => FoundSchema::Damaged(Flaw::Content),
        Ok(version) => FoundSchema::Version(version),
    })
}

/// Reads one value.
pub(crate) fn get(txn: &ReadTransaction, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
    let open = match txn.open_table(table.definition()) {
        Ok(open) => open,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    Ok(ReadableTable::get(&open, key)?.map(|value| value.value().to_vec()))
}

/// Reads what the database says of its journal: `None` if there is nothing in it.
pub(crate) fn read_mark(txn: &ReadTransaction) -> Result<Result<Option<Mark>, Flaw>, redb::Error> {
    let Some(value) = get(txn, Table::Meta, MARK_KEY)? else { return Ok(Ok(None)) };
    let content = frame::unseal(Table::Meta, MARK_KEY, &value);
    Ok(content.and_then(|content| Mark::from_bytes(content).ok_or(Flaw::Content)).map(Some))
}

/// Writes what the journal holds from now on: records after the mark, or nothing.
pub(crate) fn write_mark(txn: &WriteTransaction, mark: Option<Mark>) -> Result<(), redb::Error> {
    let mut table = txn.open_table(Table::Meta.definition())?;
    match mark {
        Some(mark) => {
            let value = frame::seal(Table::Meta, MARK_KEY, &mark.to_bytes());
            drop(table.insert(MARK_KEY, &value[..])?);
        }
        None => drop(table.remove(MARK_KEY)?),
    }
    Ok(())
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

    fn take(&mut self, table: Table, key: &[u8], value: &[u8]) {
        let taken = match table {
            Table::Imports => self.import(key, value),
            Table::Peers => self.peer(key, value),
            _ => self.document(key, value),
        };
        if let Err(flaw) = taken {
            self.damaged.push((table, key.to_vec(), flaw));
        }
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

/// Reads everything, with a layer on top, leaving out what is damaged.
pub(crate) fn load(txn: &ReadTransaction, layer: &Layer) -> Result<Loaded, redb::Error> {
    let mut loaded = Loaded::default();
    for table in [Table::Imports, Table::Peers, Table::Documents] {
        for (key, value) in layer.values(table) {
            loaded.take(table, key, value);
        }
        let open = match txn.open_table(table.definition()) {
            Ok(open) => open,
            Err(TableError::TableDoesNotExist(_)) => continue,
            Err(e) => return Err(e.into()),
        };
        for entry in ReadableTable::iter(&open)? {
            let (key, value) = entry?;
            if layer.get(table, key.value()).is_none() {
                loaded.take(table, key.value(), value.value());
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
