//! The secrets of a mesh as canaries: each in the forms in which it could slip out, and a search for
//! them in whatever the mesh showed. Every mesh of every test here is searched ([`crate::mesh`]): its
//! log at debug level, its metrics, its audit, the output of each command. Only `hamlet peer invite` shows a
//! token, and only on its standard output.

use std::fs;
use std::path::Path;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use hamlet_peering::{Secret, TOKEN_PREFIX, Token};

/// A line of PEM shorter than this could be anything.
const LINE_BYTES: usize = 24;
/// Base64 of a P-256 key in PKCS#8 that holds its public half; the last of three lines is of that half.
const P256_CHARS: usize = 184;
/// A shared secret shorter than this could be anything.
const SECRET_BYTES: usize = 8;
/// Bytes of an invitation's id, which stand before the secret in a token and are no secret.
const TOKEN_ID_BYTES: usize = 16;
/// Bytes of an invitation's secret.
const TOKEN_SECRET_BYTES: usize = 32;
/// What stands before the private number in the DER of an EC key (RFC 5915): version 1 and 32 bytes.
const EC_PRIVATE: [u8; 5] = [2, 1, 1, 4, 32];
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
        let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = BASE64.decode(der.as_bytes()).unwrap_or_default();
        if let Some(at) = der.windows(EC_PRIVATE.len()).position(|w| w == EC_PRIVATE) {
            let number = &der[at + EC_PRIVATE.len()..];
            // In base64url it is `d` of a JWK.
            self.add_bytes(what, &number[..number.len().min(TOKEN_SECRET_BYTES)]);
        }
    }

    /// A token, in any part of its text that gives something of the secret away; the secret by itself;
    /// and the key that both sides keep of it.
    pub(crate) fn add_token(&mut self, text: &str) {
        let Ok(token) = Token::parse(text) else { return };
        let body = &text.trim()[TOKEN_PREFIX.len()..];
        // The first characters that say nothing but the secret.
        let begin = TOKEN_ID_BYTES.div_ceil(3) * 4;
        self.add("an invitation", "token", body[begin..begin + PART_BYTES].to_owned());
        let end = (TOKEN_ID_BYTES + TOKEN_SECRET_BYTES) / 3 * 4;
        self.add("an invitation", "end of the token", body[end - PART_BYTES..end].to_owned());
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).unwrap();
        let secret = &bytes[TOKEN_ID_BYTES..TOKEN_ID_BYTES + TOKEN_SECRET_BYTES];
        self.add_bytes("an invitation's secret", secret);
        let key = Secret::new(secret.try_into().unwrap()).key(&token.id);
        self.add_bytes("an invitation's key", key.expose());
    }

    fn add_bytes(&mut self, what: &str, secret: &[u8]) {
        if secret.len() < PART_BYTES {
            return;
        }
        self.add_part(what, &secret[..PART_BYTES]);
        self.add(what, "base64", BASE64.encode(&secret[..PART_BYTES]));
        self.add(what, "base64url", BASE64URL_NOPAD.encode(&secret[..PART_BYTES]));
    }

    fn add_part(&mut self, what: &str, part: &[u8]) {
        let hex: String = part.iter().map(|b| format!("{b:02x}")).collect();
        let list: Vec<String> = part.iter().map(ToString::to_string).collect();
        self.add(what, "hexadecimal", hex);
        self.add(what, "numbers", list.join(", "));
    }

    fn add_secret(&mut self, what: &str, secret: &str) {
        if secret.len() < SECRET_BYTES {
            return;
        }
        let part = &secret.as_bytes()[..secret.len().min(PART_BYTES)];
        self.add(what, "as it is", secret.to_owned());
        self.add_part(what, part);
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
    let number: Vec<u8> = (1..33).map(|i: u8| i.wrapping_mul(37)).collect();
    let der = [&[0x5a; 30][..], &EC_PRIVATE, &number, &[0xa1; 30]].concat();
    let (key, secret) = (BASE64.encode(&der), "correct horse");
    let lines: Vec<&str> = [&key[..64], &key[64..]].into();
    fs::create_dir(folder.path().join("identity")).unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    fs::write(folder.path().join("identity/agent.key"), &pem).unwrap();
    fs::write(folder.path().join("token"), format!("{secret}\n")).unwrap();
    let mut canaries = Canaries::of(folder.path());
    assert_eq!(canaries.len(), 2 + 4 + 3);
    let token = Token {
        id: [3; 16],
        secret: Secret::new(std::array::from_fn(|i| (i as u8).wrapping_mul(53).wrapping_add(7))),
        addresses: vec![hamlet_peering::AgentAddress::parse("agent.acme.example:7443").unwrap()],
        trust_domain: hamlet_core::TrustDomain::parse("acme.example").unwrap(),
        agent_id: hamlet_core::SpiffeId::parse("spiffe://acme.example/hamlet/agent").unwrap(),
        roots: vec![[9; 32]],
        expires: std::time::Duration::from_secs(2_000_000_000),
        expected_domain: None,
    };
    let text = token.encode().unwrap();
    canaries.add_token(&text);
    assert_eq!(canaries.len(), 2 + 4 + 3 + 2 + 4 + 4);
    let bytes = BASE64URL_NOPAD.decode(&text.as_bytes()[TOKEN_PREFIX.len()..]).unwrap();
    let kept = token.secret.key(&token.id);
    assert_eq!(canaries.found_in("peer=globex reason=the context differs invitation=03030303"), None);
    assert_eq!(canaries.found_in(&text[..TOKEN_PREFIX.len() + 20]), None, "an id alone gives nothing away");
    for (shown, what) in [
        (format!("loaded {pem:?}"), "agent.key (PEM)"),
        (format!("{{\"d\":\"{}\"}}", BASE64URL_NOPAD.encode(&number)), "agent.key (base64)"),
        (format!("key {number:?}"), "agent.key (numbers)"),
        (format!("context={secret}"), "token (as it is)"),
        ("636f727265637420686f7273 65".to_owned(), "token (hexadecimal)"),
        (format!("Secret({:?})", secret.as_bytes()), "token (numbers)"),
        (format!("TokenText({:?})", *text), "an invitation (token)"),
        (text[60..80].to_owned(), "an invitation (end of the token)"),
        (format!("{:?}", &bytes[16..48]), "an invitation's secret (numbers)"),
        (
            format!("{{\"key\":\"{}\"}}", data_encoding::HEXLOWER.encode(kept.expose())),
            "an invitation's key (hexadecimal)",
        ),
    ] {
        assert_eq!(canaries.found_in(&shown), Some(what), "{shown}");
    }
}
