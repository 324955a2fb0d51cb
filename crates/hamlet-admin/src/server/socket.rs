//! The socket's file: made private before anybody can reach it, and removed only by its maker.

use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::ServeError;
use crate::limits;

/// Removes the socket's file when dropped, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Binds the socket at `path`, mode 0600. It is bound under a neighbouring name, made private and
/// then moved over `path`, so that there is no moment at which others could connect.
pub(super) async fn bind(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    if path.as_os_str().len() > limits::SOCKET_PATH_BYTES {
        return Err(ServeError::PathTooLong { path: path.to_owned() });
    }
    make_folder(path)?;
    refuse_if_taken(path).await?;
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::Socket { action, path, source }
    };
    let mut draft = path.as_os_str().to_owned();
    draft.push("~");
    let draft = PathBuf::from(draft);
    match std::fs::symlink_metadata(&draft) {
        Ok(meta) if meta.file_type().is_socket() => {
            std::fs::remove_file(&draft).map_err(failed("remove", &draft))?;
        }
        Ok(_) => return Err(ServeError::NotASocket { path: draft }),
        Err(_) => {}
    }
    let listener = UnixListener::bind(&draft).map_err(failed("create", &draft))?;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&draft, private).map_err(failed("set the mode of", &draft))?;
    std::fs::rename(&draft, path).map_err(failed("move the socket to", path))?;
    let inode = inode(path).map_err(failed("look at", path))?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

fn make_folder(path: &Path) -> Result<(), ServeError> {
    let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| ServeError::Socket { action: "create the folder", path: folder.to_owned(), source })
}

/// Nobody there, or a socket that nobody answers on: fine. Anything else is an error.
async fn refuse_if_taken(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Socket { action: "look at", path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ServeError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
