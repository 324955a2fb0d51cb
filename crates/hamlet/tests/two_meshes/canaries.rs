//! The secrets of a mesh as canaries: each in the forms in which it could slip out, and a search for
//! them in whatever the mesh showed. Every mesh of every test here is searched ([`crate::mesh`]): its
//! log at debug level, its metrics, the output of each command.

use std::fs;
use std::path::Path;

/// A line of PEM shorter than this could be anything.
const LINE_BYTES: usize = 24;
/// Base64 of a P-256 key in PKCS#8 that holds its public half; the last of three lines is of that half.
const P256_CHARS: usize = 184;
/// A shared secret shorter than this could be anything.
const SECRET_BYTES: usize = 8;
/// How many bytes of a secret are looked for in hexadecimal or as a list of numbers.
const PART_BYTES: usize = 12;

/// One form of one secret.
#[derive(Debug)]
struct Canary {
    /// Whose, for the failure: the text itself isn't shown.
    what: String,
    text: String,
}

/// All forms of the secrets of one mesh.
#[derive(Debug, Default)]
pub(crate) struct Canaries(Vec<Canary>);

impl Canaries {
    /// Of all private keys (`*.key`) and shared secrets (`token`) in the folder.
    pub(crate) fn of(folder: &Path) -> Canaries {
        let mut canaries = Canaries::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let text = || fs::read_to_string(entry.path()).unwrap_or_default();
                match () {
                    () if path.is_dir() => folders.push(path),
                    () if name.ends_with(".key") => canaries.add_key(&name, &text()),
                    () if name == "token" => canaries.add_secret(&name, text().trim_end()),
                    () => {}
                }
            }
        }
        canaries
    }

    /// Adds what `other` has.
    pub(crate) fn extend(&mut self, other: Canaries) {
        self.0.extend(other.0);
    }

    fn add(&mut self, what: &str, form: &str, text: String) {
        self.0.push(Canary { what: format!("{what} ({form})"), text });
    }

    fn add_key(&mut self, what: &str, pem: &str) {
        let body: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        // What follows in a P-256 key is the public half, which a bundle shows.
        let p256 = body.iter().map(|line| line.len()).sum::<usize>() == P256_CHARS;
        let secret = if p256 { &body[..body.len() - 1] } else { &body[..] };
        for line in secret.iter().filter(|line| line.len() >= LINE_BYTES) {
            // Only the middle: another line width must not hide it.
            self.add(what, "PEM", line[4..LINE_BYTES].to_owned());
        }
    }

    fn add_secret(&mut self, what: &str, secret: &str) {
        if secret.len() < SECRET_BYTES {
            return;
        }
        let part = &secret.as_bytes()[..secret.len().min(PART_BYTES)];
        let hex: String = part.iter().map(|b| format!("{b:02x}")).collect();
        let list: Vec<String> = part.iter().map(ToString::to_string).collect();
        self.add(what, "as it is", secret.to_owned());
        self.add(what, "hexadecimal", hex);
        self.add(what, "numbers", list.join(", "));
    }

    /// The secret that `shown` gives away, if any.
    pub(crate) fn found_in(&self, shown: &str) -> Option<&str> {
        self.0.iter().find(|canary| shown.contains(&canary.text)).map(|canary| canary.what.as_str())
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

#[test]
fn a_planted_canary_is_found_in_each_form_and_a_clean_text_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let (key, secret) =
        (["MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgabcdefgh"; 2].join("\n"), "correct horse");
    fs::create_dir(folder.path().join("identity")).unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
    fs::write(folder.path().join("identity/agent.key"), &pem).unwrap();
    fs::write(folder.path().join("token"), format!("{secret}\n")).unwrap();
    let canaries = Canaries::of(folder.path());
    assert_eq!(canaries.len(), 2 + 3);
    assert_eq!(canaries.found_in("peer=globex reason=the context differs"), None);
    for (shown, what) in [
        (format!("loaded {pem:?}"), "agent.key (PEM)"),
        (format!("context={secret}"), "token (as it is)"),
        ("636f727265637420686f7273 65".to_owned(), "token (hexadecimal)"),
        (format!("Secret({:?})", secret.as_bytes()), "token (numbers)"),
    ] {
        assert_eq!(canaries.found_in(&shown), Some(what), "{shown}");
    }
}
