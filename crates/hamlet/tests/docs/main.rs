//! The documentation, held against the program: names that exist, pages that are complete, links that
//! lead somewhere. `HAMLET_BLESS=1` rewrites the generated pages; read the difference afterwards.

mod byhand;
mod cli;
mod conformance;
mod limits;
mod metrics;
mod names;
mod operating;
mod refusals;
mod source;
