//! The folder source: the texts of one file or one folder of YAML, again whenever they change.
//!
//! - **Watches:** the file or folder, its subfolders, the folder above it, and the folders that
//!   symlinked files lie in.
//! - **Writes:** nothing.
//! - **Needs:** the right to read them.
//!
//! It delivers texts; what they mean is the configuration's business, not ours (there is therefore
//! no `translate.rs`). Invariant: a folder that can't be read whole is an error, never a smaller or
//! empty folder: what is missing here would be withdrawn from peers.

pub mod config;
mod source;
mod watch;

pub use config::FolderLimits;
pub use source::{FolderError, FolderSnapshot, SourceFile, read_folder};
pub use watch::{FolderWatch, RereadError, Trigger};
