//! The table: every kind, every key. To add a key, add it here, then to `raw.rs` and `check/`.
//!
//! Not here: what needs more than one value. Invariant: a key is declared once, in the table of its
//! kind.

mod exchange;
mod mesh;
mod peer;
mod service;

pub use exchange::{IMPORT, PUBLICATION};
pub use mesh::MESH;
pub use peer::PEER;
pub use service::SERVICE;

use super::{Field, Kind, Need, Shape};

/// All kinds, in the order of the reference.
pub static KINDS: &[&Kind] = &[&MESH, &PEER, &PUBLICATION, &IMPORT, &SERVICE];

const fn field(
    key: &'static str,
    shape: Shape,
    need: Need,
    doc: &'static str,
    example: &'static str,
) -> Field {
    Field { key, shape, need, doc, example }
}
