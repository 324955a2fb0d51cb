//! Our agent against other implementations, as real processes over mTLS: peers on Go's gRPC and
//! protobuf and on Python's, with the habits of the existing implementations (`interop/`); and with
//! real SPIRE beside it.
//!
//! All of it is ignored by default, since it needs Go and Python: `interop/build`,
//! `interop/build spire`, then `cargo test -p hamlet --test interop -- --ignored`. Without the peers a test says so and passes,
//! but fails where `CI` is set. Invariant: a peer ends with the test that started it.

#[path = "../two_meshes/addresses.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod addresses;
#[path = "../two_meshes/canaries.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod canaries;
mod foreign;
mod identities;
mod idle;
mod meeting;
#[path = "../two_meshes/mesh.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod mesh;
#[path = "../two_meshes/probe.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod probe;
mod spire;
#[path = "../two_meshes/texts.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod texts;
mod unknown_fields;
mod v1alpha1;
mod v1alpha2;
#[path = "../two_meshes/wait.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod wait;
#[path = "../two_meshes/workload.rs"]
#[allow(dead_code, reason = "shared with the tests of two meshes, which use all of it")]
mod workload;
