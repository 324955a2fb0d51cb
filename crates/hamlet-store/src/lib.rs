//! What must outlive the process: import records, peers' state and small named documents, kept in
//! the mesh's data folder: one embedded database, and a journal in front of it.
//!
//! This crate keeps bytes and decides nothing: what a record means, whether its leaf is right and
//! what is in force is the session's business. Its invariants: a finished commit survives the loss
//! of power; of an unfinished or failed one all or nothing is ever seen; what is read is exactly
//! what was written, or it is missing and reported; nothing in the file can make us panic.
//!
//! # How it works
//!
//! * [`Store`] takes requests, seals their values (`frame`) and queues them (`queue`).
//! * One thread (`writer`) makes all that is queued when the disk is free one record of the
//!   `journal`, with one write and one sync: a group commit without a timer. It merges the changes
//!   into a `layer` in memory (`pending`).
//! * When a segment of the journal is full, a second thread makes its layer one transaction of the
//!   redb database (`base`), while the writer goes on in the other segment. Closing does the same.
//! * `opening` judges a file behind a `gate` that lets nothing through to the disk until the
//!   file has been found sound, and adds what the journal holds; a damaged one is set aside and a
//!   fresh one made (`disk`).
//!
//! The formats are described in `docs/decisions/0003-embedded-store.md` and
//! `docs/decisions/0012-journal.md`.

mod base;
mod check;
mod damage;
mod disk;
mod error;
mod frame;
mod gate;
mod health;
mod journal;
mod layer;
mod opening;
mod pending;
mod queue;
mod store;
mod tables;
mod writer;

pub use check::{CheckReport, CheckState};
pub use damage::{DAMAGED_LISTED_MAX, DamageReport, DamagedValue, SetAside};
pub use disk::{DAMAGED_FILES_KEPT, Disk, FILE_NAME, FolderDisk, JOURNAL_NAME, LOCK_NAME};
pub use error::{OpenError, ReadError};
pub use frame::{KEY_MAX, VALUE_MAX};
pub use gate::FILE_MAX;
pub use health::StoreHealth;
pub use journal::{SEGMENT_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
pub use queue::{BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, QUEUE_REQUESTS_MAX};
pub use store::{CACHE_BYTES, Opened, Store, StoreOptions};
pub use tables::{DAMAGED_VALUES_KEPT, SCHEMA};
pub use writer::CHECKPOINT_CHANGES_MAX;
