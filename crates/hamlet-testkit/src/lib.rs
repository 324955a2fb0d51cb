//! Things that tests need: a CA that can do every wrong thing, TLS peers that believe anybody, a
//! line that behaves badly, a session that is fed with anything, and waiting without sleeping. For
//! tests and benches only; no production crate depends on it.

pub mod chaos;
mod eventually;
pub mod law;
pub mod matrix;
pub mod pki;
#[cfg(feature = "session")]
pub mod session;
pub mod store;
pub mod tls;

pub use eventually::{GENEROUS, eventually, eventually_ok};
