//! Which agent a command talks to: the flags, and the way from a configuration to its socket.
//!
//! The socket is found without checking the configuration: `hamlet reload` has to reach the agent
//! just when its files are broken.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hamlet_admin::Client;
use saphyr_parser::{Event, Parser};

use super::duration;

/// The variable behind `--socket`.
const SOCKET_VARIABLE: &str = "HAMLET_SOCKET";
/// The variable behind `-f`.
const CONFIG_VARIABLE: &str = "HAMLET_CONFIG";
/// The socket's name within the data folder when the configuration names none.
const SOCKET_NAME: &str = "admin.sock";
/// The data folder when the configuration names none.
const DATA_FOLDER: &str = "data";
/// Deepest nesting that is followed in search of a path.
const DEPTH_MAX: usize = 32;
/// Largest file that is searched for the Mesh document, in bytes.
const FILE_BYTES: u64 = 16 * 1024 * 1024;

/// How to reach the agent.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which agent")]
pub(super) struct ConnectArgs {
    /// The agent's admin socket
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE)]
    socket: Option<PathBuf>,
    /// The agent's configuration (file or folder), to find its socket [default: this folder]
    #[arg(short = 'f', long = "config", value_name = "PATH", env = CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub(super) timeout: Duration,
}

impl ConnectArgs {
    /// The configuration that was named, if any.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// A client for that agent. A flag wins over the environment, then the socket over the
    /// configuration.
    pub(super) fn client(&self) -> Client {
        let socket = match self.named() {
            Named::Socket(socket) => socket.to_owned(),
            Named::Config(config) => socket_of(config),
        };
        Client::new(socket, self.timeout)
    }

    /// The data folder of that agent, if its configuration was named, or is here.
    pub(super) fn data(&self) -> Option<PathBuf> {
        match self.named() {
            Named::Socket(_) => None,
            Named::Config(config) => Some(data_of(config)),
        }
    }

    fn named(&self) -> Named<'_> {
        let socket = self.socket.as_deref().map(|p| (p, in_environment(SOCKET_VARIABLE, p)));
        let config = self.config.as_deref().map(|p| (p, in_environment(CONFIG_VARIABLE, p)));
        match (socket, config) {
            (Some((_, true)), Some((config, false))) => Named::Config(config),
            (Some((socket, _)), _) => Named::Socket(socket),
            (None, Some((config, _))) => Named::Config(config),
            (None, None) => Named::Config(Path::new(".")),
        }
    }
}

impl ConnectArgs {
    /// The flags that reach the same agent, for a command that is shown to be typed next.
    pub(super) fn flags(&self) -> String {
        match (&self.config, &self.socket) {
            (Some(config), _) => format!(" -f {}", config.display()),
            (None, Some(socket)) => format!(" --socket {}", socket.display()),
            (None, None) => String::new(),
        }
    }
}

/// By what the agent was named.
enum Named<'n> {
    Socket(&'n Path),
    Config(&'n Path),
}

/// Whether the variable has that value: clap has merged flag and environment already.
fn in_environment(variable: &str, value: &Path) -> bool {
    std::env::var_os(variable).is_some_and(|v| v == value.as_os_str())
}

/// The socket of the agent with that configuration: `spec.socket` of its Mesh document, else
/// `admin.sock` in `spec.data`; relative paths start at the document's file. What can't be read is
/// passed over: at worst the answer is the default place.
pub(super) fn socket_of(config: &Path) -> PathBuf {
    let found = files(config).iter().find_map(|file| in_file(file));
    let default = || base_of(config).join(DATA_FOLDER).join(SOCKET_NAME);
    found.map_or_else(default, |places| places.socket)
}

/// The data folder of the agent with that configuration, found in the same way.
fn data_of(config: &Path) -> PathBuf {
    let found = files(config).iter().find_map(|file| in_file(file));
    found.map_or_else(|| base_of(config).join(DATA_FOLDER), |places| places.data)
}

/// What a Mesh document says of the agent's places.
struct Places {
    data: PathBuf,
    socket: PathBuf,
}

fn base_of(config: &Path) -> &Path {
    if config.is_dir() { config } else { config.parent().unwrap_or(Path::new("")) }
}

/// The YAML files of a file or folder and its folders, those named after the mesh first.
fn files(config: &Path) -> Vec<PathBuf> {
    if !config.is_dir() {
        return vec![config.to_owned()];
    }
    let mut out = Vec::new();
    for entry in entries(config) {
        if entry.is_dir() {
            out.extend(entries(&entry).into_iter().filter(|f| is_yaml(f)));
        } else if is_yaml(&entry) {
            out.push(entry);
        }
    }
    out.sort_by_key(|f| (f.file_stem() != Some(OsStr::new("mesh")), f.clone()));
    out
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder).into_iter().flatten().flatten();
    read.filter(|e| !e.file_name().as_encoded_bytes().starts_with(b".")).map(|e| e.path()).collect()
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

fn in_file(file: &Path) -> Option<Places> {
    let small = std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.len() <= FILE_BYTES);
    let text = small.then(|| std::fs::read_to_string(file).ok())??;
    if !text.contains("Mesh") {
        return None;
    }
    // Documents one by one: a broken one elsewhere in the file must not hide the Mesh.
    let documents = text.split("\n---").filter(|d| d.contains("Mesh"));
    let places = |document: &str| {
        let scalars = scalars(document);
        let at = |path: &str| scalars.get(path).map(PathBuf::from);
        if scalars.get("kind").is_none_or(|k| k != "Mesh") {
            return None;
        }
        let data = at("spec.data").unwrap_or_else(|| DATA_FOLDER.into());
        let socket = at("spec.socket").unwrap_or_else(|| data.join(SOCKET_NAME));
        Some(Places { data: base_of(file).join(data), socket: base_of(file).join(socket) })
    };
    documents.into_iter().find_map(places)
}

/// The texts of the first document by path (`spec.data`), as far as it can be read. Only mappings
/// within mappings have paths; lists are passed over.
fn scalars(document: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut parser = Parser::new_from_str(document);
    // One entry for each open mapping: the key that waits for its value.
    let mut keys: Vec<Option<String>> = Vec::new();
    let mut lists = 0_usize;
    while let Some(Ok((event, _))) = parser.next_event() {
        match event {
            Event::DocumentEnd => break,
            Event::SequenceStart(..) => lists += 1,
            Event::SequenceEnd => {
                lists = lists.saturating_sub(1);
                if lists == 0 {
                    keys.last_mut().map(Option::take);
                }
            }
            _ if lists > 0 => {}
            Event::MappingStart(..) if keys.len() < DEPTH_MAX => keys.push(None),
            Event::MappingStart(..) => break,
            Event::MappingEnd => {
                keys.pop();
                keys.last_mut().map(Option::take);
            }
            Event::Scalar(text, ..) => match keys.last_mut() {
                Some(key @ None) => *key = Some(text.into_owned()),
                Some(Some(_)) => {
                    let path: Vec<&str> = keys.iter().flatten().map(String::as_str).collect();
                    found.insert(path.join("."), text.into_owned());
                    keys.last_mut().map(Option::take);
                }
                None => {}
            },
            Event::Alias(_) => {
                keys.last_mut().map(Option::take);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_found_from_a_folder_a_file_and_beside_broken_documents() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(socket_of(folder.path()), at("data/admin.sock"));
        std::fs::write(at("a.yaml"), "kind: [broken\n---\nkind: Mesh\nspec:\n  data: state\n").unwrap();
        assert_eq!(socket_of(folder.path()), at("state/admin.sock"));
        assert_eq!((data_of(folder.path()), data_of(&at("none"))), (at("state"), at("data")));
        std::fs::write(at("mesh.yaml"), "a: [{x: [y]}, {z: 1}]\nkind: Mesh\nspec:\n  listen: {dns: off}\n  socket: run/x.sock\n  nonsense: 1\n").unwrap();
        assert_eq!(socket_of(folder.path()), at("run/x.sock"));
        assert_eq!(socket_of(&at("a.yaml")), at("state/admin.sock"));
        std::fs::write(at("mesh.yaml"), "kind: Mesh\nspec:\n  socket: /run/hamlet.sock\n").unwrap();
        assert_eq!(socket_of(folder.path()), Path::new("/run/hamlet.sock"));
        assert_eq!(socket_of(&at("none")), at("data/admin.sock"));
    }
}
