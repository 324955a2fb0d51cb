//! Two agents as processes of the real program, and workloads that call each other through them.
//!
//! Nothing here looks inside: state is read through the command line as scripts read it, names
//! through DNS, services through the gateways. Waiting is polling with a deadline that only a
//! broken program misses.

mod addresses;
#[path = "../../../hamlet-identity/tests/workload/api.rs"]
#[allow(dead_code, reason = "shared with the tests of the client, which use all of it")]
mod api;
mod audit;
mod bundles;
mod callers;
mod canaries;
mod checkup;
mod closed;
mod crashes;
mod damage;
mod edits;
mod life;
mod lists;
mod liveness;
mod mesh;
mod names;
mod ordinary_user;
mod peering;
mod probe;
mod refusals;
mod streams;
mod texts;
mod tokens;
mod versions;
mod wait;
mod withdrawal;
mod workload;
mod workload_api;
