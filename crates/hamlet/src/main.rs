//! The `hamlet` program. Everything is in the library; this only chooses the cryptography and
//! hands the exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only when a provider is installed already, and then it is this one.
    let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
    hamlet::cli::main()
}
