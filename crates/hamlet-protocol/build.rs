//! Compiles the repository's own `.proto` files in process: no protoc on the user's machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "federation/resourcediscovery/v1alpha1/discovery.proto",
        "federation/resourcediscovery/v1alpha2/discovery.proto",
        "federation/types/v1alpha1/federated_service.proto",
        "federation/types/v1alpha2/federated_service.proto",
    ];
    println!("cargo:rerun-if-changed=../../proto");
    let descriptors = protox::compile(files, ["../../proto"])?;
    prost_build::Config::new()
        // Maps in key order: encoding must be deterministic.
        .btree_map(["."])
        .bytes(["."])
        .compile_well_known_types()
        .include_file("wire.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
