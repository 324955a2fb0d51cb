//! Things that tests need: a CA that can do every wrong thing, TLS peers that believe anybody, and
//! waiting without sleeping. For tests and benches only; no production crate depends on it.

mod eventually;
pub mod pki;
pub mod store;
pub mod tls;

pub use eventually::{GENEROUS, eventually, eventually_ok};
