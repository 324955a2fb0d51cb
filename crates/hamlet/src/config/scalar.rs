//! What one written value can be: the meaning of each scalar, in one place for the schema's check,
//! the typed reading and the generated pages. Not a parser of YAML.
//!
//! Invariant: a [`Format`] accepts a text if and only if the type behind it reads that text.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use hamlet_core::service::limits;
use hamlet_core::settle::PASSES_APART;
use hamlet_core::{
    AddressRange, CallerForm, DnsLabel, EndpointAddress, Fqdn, NameSuffix, PortRange, Protocol, ServiceName,
    SpiffeId, TrustDomain,
};
use hamlet_identity::workload::{HINT_BYTES_MAX, check_endpoint};
use hamlet_identity::{Fingerprint, Lenience};

use super::endpoint::EndpointUrl;
use super::model::{
    Extensions, Follow, HoldTime, LogFormat, LogLevel, PeerAddress, Profile, Resync, Version,
};

/// A kind of text: what it is called, what is right, and how to put it right.
#[derive(Debug)]
pub struct Format {
    /// Its name in the reference, for example `duration`.
    pub name: &'static str,
    /// What it looks like, for people.
    pub doc: &'static str,
    /// An ECMA regular expression for the JSON Schema; looser than the check where it must be.
    pub pattern: Option<&'static str>,
    /// What to write instead of a wrong one.
    pub fix: &'static str,
    /// Whether a bare number is fine (a port in a list of port ranges).
    pub numbers: bool,
    /// The check: why the text isn't one.
    pub check: fn(&str) -> Result<(), String>,
}

/// A value read from one text.
pub(super) trait Scalar: Sized {
    /// Reads it, or says why it isn't one.
    fn read(text: &str) -> Result<Self, String>;
}

fn check<T: Scalar>(text: &str) -> Result<(), String> {
    T::read(text).map(drop)
}

macro_rules! scalar_from_parse {
    ($($type:ty),*) => {$(
        impl Scalar for $type {
            fn read(text: &str) -> Result<Self, String> {
                <$type>::parse(text).map_err(|e| e.to_string())
            }
        }
    )*};
}
scalar_from_parse!(Fqdn, DnsLabel, NameSuffix, ServiceName, TrustDomain, SpiffeId, AddressRange, PortRange);

/// Longest free text of a label, tag or name, in bytes.
pub(super) const TEXT_MAX: usize = limits::LABEL_VALUE_BYTES;
/// Longest duration that is accepted: 10 years. Longer ones are a slip of the unit.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn free_text(text: &str, max: usize) -> Result<(), String> {
    if text.len() > max {
        return Err(format!("the text has {} bytes; at most {max} are possible", text.len()));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err("the text has a control character".into());
    }
    Ok(())
}

/// A free text of one label value, tag or selector.
pub(super) fn check_text(text: &str) -> Result<(), String> {
    free_text(text, TEXT_MAX)
}

fn check_description(text: &str) -> Result<(), String> {
    free_text(text, limits::DESCRIPTION_BYTES)
}

fn check_label_key(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("the key is empty".into());
    }
    free_text(text, limits::LABEL_KEY_BYTES)
}

impl Scalar for String {
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Scalar for bool {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("neither true nor false".into()),
        }
    }
}

impl Scalar for u64 {
    fn read(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).ok_or_else(|| "not a whole number".into())
    }
}

impl Scalar for NonZeroU16 {
    fn read(text: &str) -> Result<Self, String> {
        let port = u64::read(text).ok().and_then(|p| u16::try_from(p).ok()).and_then(NonZeroU16::new);
        port.ok_or_else(|| "a port is a number from 1 to 65535".into())
    }
}

/// A listener's address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listen(pub Option<SocketAddr>);

impl Scalar for Listen {
    fn read(text: &str) -> Result<Self, String> {
        if text == "off" { Ok(Listen(None)) } else { Ok(Listen(Some(SocketAddr::read(text)?))) }
    }
}

impl Scalar for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "an address here is IP:PORT; names are not resolved".into())
    }
}

/// A backend of ours: an address that something can be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backend(pub SocketAddr);

impl Scalar for Backend {
    fn read(text: &str) -> Result<Self, String> {
        let address = SocketAddr::read(text)?;
        if address.port() == 0 {
            return Err("port 0 can't be connected to".into());
        }
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(format!("{} is not an address of one machine", address.ip()));
        }
        Ok(Backend(address))
    }
}

/// An ingress point as peers will see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advertised {
    /// The address.
    pub address: EndpointAddress,
    /// The port.
    pub port: NonZeroU16,
}

impl Scalar for Advertised {
    fn read(text: &str) -> Result<Self, String> {
        let socket = SocketAddr::read(text)?;
        let address = EndpointAddress::try_from(socket.ip()).map_err(|e| e.to_string())?;
        if address.never_an_endpoint() {
            return Err(format!("{address} can never be reached by a peer"));
        }
        let port = NonZeroU16::new(socket.port()).ok_or("port 0 can't be connected to")?;
        Ok(Advertised { address, port })
    }
}

/// The place of a Workload API, as the SPIFFE Workload Endpoint has it (section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkloadSocket(pub(super) String);

impl Scalar for WorkloadSocket {
    fn read(text: &str) -> Result<Self, String> {
        check_endpoint(text).map_err(|error| error.reason)?;
        Ok(WorkloadSocket(text.to_owned()))
    }
}

fn check_hint(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("the hint is empty".into());
    }
    free_text(text, HINT_BYTES_MAX)
}

impl Scalar for EndpointUrl {
    fn read(text: &str) -> Result<Self, String> {
        EndpointUrl::parse(text)
    }
}

impl Scalar for PeerAddress {
    fn read(text: &str) -> Result<Self, String> {
        PeerAddress::parse(text)
    }
}

impl Scalar for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("the path is empty".into());
        }
        if text.chars().any(char::is_control) {
            return Err("the path has a control character".into());
        }
        Ok(PathBuf::from(text))
    }
}

impl Scalar for Duration {
    fn read(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let number: u64 = u64::read(digits).map_err(|_| "a time is a whole number and a unit".to_string())?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err("the unit is missing".into()),
            other => return Err(format!("`{other}` is not a unit of time")),
        };
        let total = number.checked_mul(millis).map(Duration::from_millis);
        total.filter(|d| *d <= DURATION_MAX).ok_or_else(|| "more than 10 years".into())
    }
}

/// A time that isn't zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Positive(pub Duration);

impl Scalar for Positive {
    fn read(text: &str) -> Result<Self, String> {
        match Duration::read(text)? {
            Duration::ZERO => Err("the time is zero".into()),
            some => Ok(Positive(some)),
        }
    }
}

/// The time to live of DNS answers, in whole seconds from 1 to 300 (threat T23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ttl(pub Duration);

impl Scalar for Ttl {
    fn read(text: &str) -> Result<Self, String> {
        let ttl = Duration::read(text)?;
        if (1..=300).contains(&ttl.as_secs()) && ttl.subsec_millis() == 0 {
            Ok(Ttl(ttl))
        } else {
            Err("a time to live has whole seconds from 1s to 5m".into())
        }
    }
}

impl Scalar for HoldTime {
    fn read(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(HoldTime::Forever);
        }
        let zero = "without a hold time the first lost connection would withdraw every import";
        match if text == "0" { Ok(Duration::ZERO) } else { Duration::read(text) }? {
            Duration::ZERO => Err(zero.into()),
            some => Ok(HoldTime::For(some)),
        }
    }
}

impl Scalar for Resync {
    fn read(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Resync::Never);
        }
        match if text == "0" { Ok(Duration::ZERO) } else { Duration::read(text) }? {
            Duration::ZERO => Err("zero says neither how often nor that it is off".into()),
            some if some < PASSES_APART => {
                Err("two states of an owner are compared only if they lie 5m or more apart".into())
            }
            some => Ok(Resync::Every(some)),
        }
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes(pub u64);

impl Scalar for Bytes {
    fn read(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let number = u64::read(digits).map_err(|_| "a size is a whole number and a unit".to_string())?;
        let factor: u64 = match unit {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            other => return Err(format!("`{other}` is not a unit of size")),
        };
        let total = number.checked_mul(factor).filter(|b| *b > 0 && *b <= 1 << 40);
        total.map(Bytes).ok_or_else(|| "a size is more than 0 and at most 1024GiB".into())
    }
}

/// The largest message a peer may send us, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageBytes(pub u64);

impl Scalar for MessageBytes {
    fn read(text: &str) -> Result<Self, String> {
        let Bytes(bytes) = Bytes::read(text)?;
        if (4 << 10..=4 << 20).contains(&bytes) {
            Ok(MessageBytes(bytes))
        } else {
            Err("a message limit lies between 4KiB and 4MiB, where the library ends the stream".into())
        }
    }
}

/// The pool of egress addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool(pub AddressRange);

impl Scalar for Pool {
    fn read(text: &str) -> Result<Self, String> {
        let range = AddressRange::read(text)?;
        let std::net::IpAddr::V4(base) = range.base() else {
            return Err("the egress pool is IPv4 loopback".into());
        };
        if !base.is_loopback() || range.bits() < 8 {
            return Err("egress listeners are for this machine only: the pool lies within 127.0.0.0/8".into());
        }
        if range.contains([127, 0, 0, 1].into()) {
            return Err("the pool contains 127.0.0.1, which other programs use".into());
        }
        if range.bits() > 30 {
            return Err("the pool has fewer than four addresses".into());
        }
        Ok(Pool(range))
    }
}

impl Scalar for Protocol {
    fn read(text: &str) -> Result<Self, String> {
        Protocol::parse(text).ok_or_else(|| "unknown protocol".into())
    }
}

/// Reads one of `known`, compared exactly.
fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, String> {
    known
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, v)| *v)
        .ok_or_else(|| "not one of the values".into())
}

impl Scalar for CallerForm {
    fn read(text: &str) -> Result<Self, String> {
        let http = CallerForm::HttpHeader;
        one_of(text, &[("none", CallerForm::None), ("proxy-v2", CallerForm::ProxyV2), ("http-header", http)])
    }
}

impl Scalar for Version {
    fn read(text: &str) -> Result<Self, String> {
        one_of(
            text,
            &[("auto", Version::Auto), ("v1alpha1", Version::V1alpha1), ("v1alpha2", Version::V1alpha2)],
        )
    }
}

impl Scalar for Lenience {
    fn read(text: &str) -> Result<Self, String> {
        one_of(text, &[("refuse", Lenience::Refuse), ("accept", Lenience::Accept)])
    }
}

/// SHA-256 of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CertFingerprint(pub(super) Fingerprint);

impl Scalar for CertFingerprint {
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || "a fingerprint is `sha256:` and 64 hexadecimal digits".to_owned();
        let digits = text.strip_prefix("sha256:").ok_or_else(wrong)?;
        let pairs: Vec<&str> = match digits.contains(':') {
            true => digits.split(':').collect(),
            false => {
                digits.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap_or_default()).collect()
            }
        };
        let byte = |pair: &str| {
            let digits = pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(pair, 16).ok().filter(|_| digits)
        };
        let bytes: Option<Vec<u8>> = pairs.into_iter().map(byte).collect();
        let bytes: Option<Fingerprint> = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(CertFingerprint).ok_or_else(wrong)
    }
}

impl Scalar for Extensions {
    fn read(text: &str) -> Result<Self, String> {
        one_of(text, &[("auto", Extensions::Auto), ("required", Extensions::Required)])
    }
}

impl Scalar for Follow {
    fn read(text: &str) -> Result<Self, String> {
        one_of(text, &[("stream", Follow::Stream)])
    }
}

impl Scalar for Profile {
    fn read(text: &str) -> Result<Self, String> {
        one_of(text, &[Profile::HttpsWeb, Profile::HttpsSpiffe].map(|p| (p.as_str(), p)))
    }
}

impl Scalar for LogFormat {
    fn read(text: &str) -> Result<Self, String> {
        one_of(text, &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    }
}

impl Scalar for LogLevel {
    fn read(text: &str) -> Result<Self, String> {
        LogLevel::ALL.into_iter().find(|l| l.as_str() == text).ok_or_else(|| "not one of the values".into())
    }
}

macro_rules! formats {
    ($($id:ident: $name:literal, $doc:literal, $pattern:expr, $numbers:literal, $check:expr, $fix:literal;)*) => {$(
        #[doc = $doc]
        pub(super) static $id: Format = Format {
            name: $name, doc: $doc, pattern: $pattern, fix: $fix, numbers: $numbers, check: $check,
        };
    )*
        /// All formats, for the reference.
        pub(super) static FORMATS: &[&Format] = &[$(&$id),*];
    };
}

formats! {
    NAME: "name", "A DNS label: letters, digits and `-`, at most 63.",
        Some("^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"), false, check::<DnsLabel>,
        "write one label of letters, digits and '-', for example globex";
    SERVICE_NAME: "service name", "1 to 253 characters of printable ASCII without blanks; the service's key towards peers.",
        Some("^[!-~]{1,253}$"), false, check::<ServiceName>,
        "write 1 to 253 printable ASCII characters without blanks, for example ledger";
    FQDN: "fqdn", "A fully qualified DNS name: at least two labels, no wildcard, not an address.",
        None, false, check::<Fqdn>,
        "write a full name in ASCII, for example ledger.acme.example";
    SUFFIX: "suffix", "A domain; names match it at label boundaries.",
        None, false, check::<NameSuffix>,
        "write a domain, for example globex.example";
    TRUST_DOMAIN: "trust domain", "A SPIFFE trust domain: lower-case letters, digits, `.`, `-` and `_`.",
        Some("^(spiffe://)?[a-z0-9._-]{1,255}$"), false, check::<TrustDomain>,
        "write the name in lower case, without a path, for example acme.example";
    SPIFFE_ID: "SPIFFE id", "An exact SPIFFE id with a path; no patterns.",
        Some("^spiffe://[a-z0-9._-]+/.+"), false, check::<SpiffeId>,
        "write the exact id, for example spiffe://globex.example/hamlet/agent";
    FINGERPRINT: "fingerprint", "`sha256:` and the 64 hexadecimal digits of a certificate's SHA-256, colons between them allowed.",
        Some("^sha256:([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$"), false, check::<CertFingerprint>,
        "write sha256: and the 64 digits that `openssl x509 -noout -fingerprint -sha256` prints";
    LISTEN: "listen address", "`IP:PORT` to listen on (IPv6 in brackets, port 0 for any), or `off`.",
        None, false, check::<Listen>,
        "write IP:PORT, for example 0.0.0.0:7443 or [::]:7443, or off";
    BACKEND: "backend address", "`IP:PORT` of a local workload.",
        None, false, check::<Backend>,
        "write the workload's IP:PORT, for example 127.0.0.1:8080";
    ADVERTISED: "ingress address", "`IP:PORT` where peers reach our ingress.",
        None, false, check::<Advertised>,
        "write the IP and port that peers connect to, for example 203.0.113.10:7444";
    PEER_ADDRESS: "peer address", "`HOST:PORT` of the peer's agent; a DNS name or an IP, IPv6 in brackets.",
        None, false, check::<PeerAddress>,
        "write HOST:PORT, for example agent.globex.example:7443";
    ENDPOINT_URL: "https URL", "`https://HOST[:PORT][/PATH]`, without a user name and without `#`.",
        Some("^https://[^@#]+$"), false, check::<EndpointUrl>,
        "write the endpoint's URL, for example https://bundle.globex.example:8443/";
    WORKLOAD_SOCKET: "Workload API address", "`unix:///PATH` of a socket, or `tcp://IP:PORT` on this machine.",
        Some("^(unix:/|tcp://).+"), false, check::<WorkloadSocket>,
        "write the socket of the SPIRE agent, for example unix:///run/spire/sockets/agent.sock";
    HINT: "hint", "The hint of a registration entry; not empty.",
        None, true, check_hint,
        "write what `spire-server entry show` has as the entry's hint";
    PATH: "path", "A file or folder; a relative one starts at the folder of the document's file.",
        None, false, check::<PathBuf>,
        "write a path, for example identity/agent.pem";
    DURATION: "duration", "A whole number and a unit: `ms`, `s`, `m`, `h` or `d`.",
        Some("^[0-9]+(ms|s|m|h|d)$"), false, check::<Duration>,
        "write a whole number and a unit (ms, s, m, h, d), for example 10m";
    POSITIVE: "positive duration", "A duration that isn't zero.",
        Some("^[0-9]+(ms|s|m|h|d)$"), false, check::<Positive>,
        "write a whole number and a unit (ms, s, m, h, d), more than zero, for example 3s";
    TTL: "time to live", "Whole seconds from `1s` to `5m`.",
        Some("^[0-9]+(s|m)$"), false, check::<Ttl>,
        "write a time from 1s to 5m, for example 5s";
    HOLD_TIME: "hold time", "A duration that isn't zero, or `forever`.",
        Some("^(forever|[0-9]+(ms|s|m|h|d))$"), true, check::<HoldTime>,
        "write a time such as 1h, or forever";
    RESYNC: "resynchronisation", "A duration of `5m` or more, or `never`.",
        Some("^(never|[0-9]+(ms|s|m|h|d))$"), true, check::<Resync>,
        "write a time of 5m or more such as 1h, or never";
    BYTES: "size", "A whole number of bytes, with the unit `KiB`, `MiB` or `GiB` or none.",
        Some("^[0-9]+(KiB|MiB|GiB)?$"), true, check::<Bytes>,
        "write a whole number and a unit (KiB, MiB, GiB), for example 64MiB";
    MESSAGE_BYTES: "message size", "A size from `4KiB` to `4MiB`.",
        Some("^[0-9]+(KiB|MiB)?$"), true, check::<MessageBytes>,
        "write a size from 4KiB to 4MiB, for example 64KiB";
    RANGE: "address range", "`ADDRESS/BITS`, or one address.",
        None, false, check::<AddressRange>,
        "write ADDRESS/BITS without bits beyond the prefix, for example 203.0.113.0/24";
    POOL: "egress pool", "An IPv4 range within 127.0.0.0/8 that doesn't contain 127.0.0.1.",
        None, false, check::<Pool>,
        "write a loopback range, for example 127.64.0.0/16";
    PORTS: "port range", "A port or `FIRST-LAST`.",
        Some("^[0-9]{1,5}(-[0-9]{1,5})?$"), true, check::<PortRange>,
        "write a port or a range of ports, for example 443 or \"8000-8999\"";
    TEXT: "text", "Free text of at most 256 bytes without control characters.",
        None, false, check_text,
        "shorten the text to 256 bytes and remove control characters";
    DESCRIPTION: "description", "Free text of at most 4096 bytes.",
        None, false, check_description,
        "shorten the text to 4096 bytes and remove control characters";
    LABEL_KEY: "label key", "1 to 63 bytes without control characters.",
        None, false, check_label_key,
        "write a key of 1 to 63 bytes, for example team";
    IMPORT_PORT_KEY: "service name or `*`", "The owner's name for a service, or `*` for all others.",
        Some("^[!-~]{1,253}$"), false, check::<ServiceName>,
        "write the owner's name for the service, or \"*\" for all others";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_refused_and_their_neighbours_accepted() {
        let cases: &[(&Format, &str, &str)] = &[
            (&DURATION, "10", "10s"),
            (&DURATION, "1.5h", "90m"),
            (&DURATION, "5 s", "5s"),
            (&DURATION, "-1s", "1s"),
            (&DURATION, "99999999999999999999d", "9d"),
            (&DURATION, "4000d", "3000d"),
            (&POSITIVE, "0s", "1ms"),
            (&TTL, "6m", "5m"),
            (&TTL, "1500ms", "2000ms"),
            (&HOLD_TIME, "0", "1h"),
            (&HOLD_TIME, "0h", "forever"),
            (&HOLD_TIME, "Forever", "forever"),
            (&RESYNC, "0s", "never"),
            (&RESYNC, "0", "1h"),
            (&RESYNC, "299s", "300s"),
            (&RESYNC, "off", "never"),
            (&RESYNC, "4000d", "3000d"),
            (&BYTES, "64MB", "64MiB"),
            (&BYTES, "0", "1"),
            (&BYTES, "99999999GiB", "1GiB"),
            (&MESSAGE_BYTES, "5MiB", "4MiB"),
            (&LISTEN, "localhost:7443", "127.0.0.1:7443"),
            (&LISTEN, "no", "off"),
            (&LISTEN, "::1:80", "[::1]:80"),
            (&BACKEND, "0.0.0.0:80", "10.0.0.1:80"),
            (&BACKEND, "10.0.0.1:0", "10.0.0.1:1"),
            (&ADVERTISED, "0.0.0.0:7444", "203.0.113.1:7444"),
            (&ADVERTISED, "[::ffff:1.2.3.4]:7444", "[2600::1]:7444"),
            (&ENDPOINT_URL, "http://globex.example/", "https://globex.example/"),
            (&ENDPOINT_URL, "https://me@globex.example/", "https://globex.example:8443"),
            (&WORKLOAD_SOCKET, "/run/agent.sock", "unix:///run/agent.sock"),
            (&WORKLOAD_SOCKET, "tcp://10.0.0.1:8081", "tcp://127.0.0.1:8081"),
            (&WORKLOAD_SOCKET, "unix:agent.sock", "unix:/agent.sock"),
            (&HINT, "", "internal"),
            (&PEER_ADDRESS, "globex.example", "globex.example:7443"),
            (&PEER_ADDRESS, "globex.example:0", "localhost:1"),
            (&PEER_ADDRESS, "::1:7443", "[::1]:7443"),
            (&PEER_ADDRESS, "https://globex.example:7443", "globex.example:7443"),
            (&PEER_ADDRESS, "127.1:7443", "127.0.0.1:7443"),
            (&POOL, "10.0.0.0/8", "127.64.0.0/16"),
            (&POOL, "127.0.0.0/8", "127.128.0.0/9"),
            (&POOL, "127.64.0.0/31", "127.64.0.0/30"),
            (&POOL, "0.0.0.0/1", "127.64.0.0/10"),
            (&PATH, "", "a"),
            (&TEXT, "a\u{7}b", "a b"),
        ];
        for (format, bad, good) in cases {
            assert!((format.check)(bad).is_err(), "{}: {bad:?} was accepted", format.name);
            assert!((format.check)(good).is_ok(), "{}: {good:?} was refused", format.name);
        }
    }
}
