//! Laws of names, identities, addresses, digests and texts of peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::Unstructured;
use hamlet_core::digest::{DigestTree, Level, Scope, bucket_of, key_hash, leaf};
use hamlet_core::rejection::one_line;
use hamlet_core::{
    AddressRange, DnsLabel, EndpointAddress, Fqdn, NameSuffix, PeerName, PortRange, ServiceName, SpiffeId,
    TrustDomain,
};

/// Canonical names are fixed points, keep to DNS's sizes, and a suffix ends at a label.
pub(crate) fn names(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (text, other) = text.split_once('\n').unwrap_or((&text, "acme.example"));
    let _ = (ServiceName::parse(text), PeerName::parse(text));
    if let Ok(label) = DnsLabel::parse(text) {
        assert_eq!(DnsLabel::parse(label.as_str()).as_ref(), Ok(&label));
        assert!((1..=63).contains(&label.as_str().len()) && !label.as_str().contains('.'));
    }
    let Ok(name) = Fqdn::parse(text) else { return };
    assert_eq!(Fqdn::parse(name.as_str()).as_ref(), Ok(&name), "a fixed point");
    assert_eq!(Fqdn::parse(&format!("{name}.")).as_ref(), Ok(&name), "one trailing dot is no other name");
    assert_eq!(Fqdn::parse(&name.as_str().to_ascii_uppercase()).as_ref(), Ok(&name));
    assert!(name.as_str().len() <= 253 && name.labels().all(|l| (1..=63).contains(&l.len())));
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    assert!(name.as_str().bytes().all(plain), "{name}");
    if let Ok(child) = DnsLabel::parse("x").and_then(|x| name.child(&x)) {
        assert_eq!(child.as_str(), format!("x.{name}"));
    }
    if let Ok(suffix) = NameSuffix::parse(other) {
        let model =
            name.as_str().ends_with(&format!(".{}", suffix.as_str())) || name.as_str() == suffix.as_str();
        assert_eq!(suffix.contains(&name), model, "{name} in {other}");
        let glued = format!("x{}", suffix.as_str());
        if let Ok(glued) = Fqdn::parse(&glued) {
            assert!(!suffix.contains(&glued), "{glued} is not below {other}");
        }
    }
}

/// An id that is accepted is its own text, and its trust domain is what stands in it.
pub(crate) fn spiffe(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(domain) = TrustDomain::parse(&text) {
        assert_eq!(TrustDomain::parse(domain.as_str()).as_ref(), Ok(&domain));
        assert!(domain.id("gateway").is_ok() || domain.as_str().len() > 200);
    }
    let Ok(id) = SpiffeId::parse(&text) else { return };
    assert_eq!(id.as_str(), text, "nothing is repaired");
    assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
    let rest = text.strip_prefix("spiffe://").expect("the scheme");
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    assert_eq!(id.trust_domain().as_str(), domain);
    assert!(id.as_str().len() <= 2048 && domain.len() <= 255);
    assert!(!path.split('/').any(|s| s == "." || s == ".." || (s.is_empty() && !path.is_empty())), "{text}");
    assert!(!text.contains(['%', '?', '#', '@', '\\', '*', '\0', ' ']), "{text}");
}

/// The special-purpose registries written down a second time, another way.
fn special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            matches!(
                (a, b, c),
                (0 | 10 | 127 | 224..=255, _, _)
                    | (100, 64..=127, _)
                    | (169, 254, _)
                    | (172, 16..=31, _)
                    | (192, 0, 0 | 2)
                    | (192, 31, 196)
                    | (192, 52, 193)
                    | (192, 88, 99)
                    | (192, 168, _)
                    | (192, 175, 48)
                    | (198, 18..=19, _)
                    | (198, 51, 100)
                    | (203, 0, 113)
            )
        }
        IpAddr::V6(ip) => {
            let s = ip.segments();
            let global = (0x2000..=0x3fff).contains(&s[0]);
            let carved = (s[0] == 0x2001 && (s[1] < 0x200 || s[1] == 0xdb8))
                || s[0] == 0x2002
                || (s[0] == 0x3fff && s[1] < 0x1000);
            !global || carved
        }
    }
}

/// What a lenient C library makes of a text (`inet_aton`): shorthand, octal, hexadecimal.
fn lenient(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = text.split('.').collect();
    let number = |t: &str| -> Option<u64> {
        let (digits, radix) = match t.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&t[2..], 16),
            [b'0', _, ..] => (&t[1..], 8),
            _ => (t, 10),
        };
        u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'))
    };
    let numbers: Vec<u64> = parts.iter().map(|p| number(p)).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    let room = 8 * (4 - first.len().min(3));
    if first.len() > 3 || *last >= 1 << room || first.iter().any(|n| *n > 255) {
        return None;
    }
    let high = first.iter().enumerate().fold(0, |sum, (i, n)| sum | n << (24 - 8 * i));
    Some(Ipv4Addr::from((high | last) as u32))
}

/// No spelling makes a special-purpose address look like another one.
pub(crate) fn addresses(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut spellings = vec![text.to_string()];
    if let Some(four) = input.first_chunk::<4>() {
        spellings.extend(spell_v4(Ipv4Addr::from(*four)));
    }
    if let Some(sixteen) = input.first_chunk::<16>() {
        let ip = Ipv6Addr::from(*sixteen);
        spellings.extend([ip.to_string(), format!("[{ip}]"), format!("{ip}%1"), format!("{ip}/128")]);
    }
    for text in spellings {
        if let Ok(range) = AddressRange::parse(&text) {
            assert_eq!(AddressRange::parse(&range.to_string()), Ok(range));
            assert!(range.contains(range.base()));
        }
        if let Ok(ports) = PortRange::parse(&text) {
            assert!(!ports.contains(0));
        }
        let Ok(address) = EndpointAddress::parse(&text) else { continue };
        let ip = address.ip();
        assert_eq!(text.parse::<IpAddr>(), Ok(ip), "only what the strict parser takes");
        assert!(!text.contains(['[', ']', '%', '/', ' ', 'x']), "{text}");
        if let Some(c) = lenient(&text) {
            assert_eq!(IpAddr::V4(c), ip, "a lenient reader sees the same in {text}");
        }
        if let IpAddr::V6(v6) = ip {
            assert_eq!(v6.to_ipv4_mapped(), None);
        }
        assert_eq!(address.special_purpose().is_some(), special(ip), "{ip}");
        if address.never_an_endpoint() {
            assert!(special(ip), "{ip}");
        }
    }
}

fn spell_v4(ip: Ipv4Addr) -> Vec<String> {
    let n = u32::from(ip);
    let [a, b, c, d] = ip.octets();
    vec![
        ip.to_string(),
        n.to_string(),
        format!("{n:#x}"),
        format!("0{n:o}"),
        format!("{a}.{}", n & 0xff_ffff),
        format!("{a}.{b}.{}", n & 0xffff),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("{a:03}.{b:03}.{c:03}.{d:03}"),
        format!("{ip}."),
        format!(" {ip}"),
        format!("::ffff:{ip}"),
        format!("::{ip}"),
        format!("64:ff9b::{ip}"),
        format!("2002:{:02x}{:02x}:{:02x}{:02x}::1", a, b, c, d),
        format!("[{ip}]"),
        format!("{ip}/32"),
        format!("{ip}:443"),
    ]
}

/// A tree that was changed step by step has the root of one that is built anew, and no other set
/// has it.
pub(crate) fn digests(input: &[u8]) {
    const LOOKS_MAX: usize = 4;
    let mut looks = 0;
    let mut bytes = Unstructured::new(&input[..input.len().min(600)]);
    let mut tree = DigestTree::new("t");
    let mut model: BTreeMap<String, u8> = BTreeMap::new();
    let anew = |model: &BTreeMap<String, u8>| {
        let mut tree = DigestTree::new("t");
        model.iter().for_each(|(k, v)| tree.insert(k, leaf("t", k, &[*v])));
        (tree.root(), tree.count())
    };
    while let (Ok(what), Ok(key)) = (bytes.arbitrary::<u8>(), bytes.int_in_range(0..=60u16)) {
        let key = format!("k{key}");
        match what {
            0..=127 => {
                tree.insert(&key, leaf("t", &key, &[what]));
                model.insert(key, what);
            }
            128..=220 => {
                tree.remove(&key);
                model.remove(&key);
            }
            // Built anew it costs a hash for each key: looked at now and then.
            _ if looks < LOOKS_MAX => {
                looks += 1;
                assert_eq!((tree.root(), tree.count()), anew(&model));
            }
            _ => {}
        }
        if bytes.is_empty() {
            break;
        }
    }
    let (root, count) = (tree.root(), tree.count());
    assert_eq!((root, count), anew(&model));
    assert_eq!(count, model.len() as u64);
    if let Some((key, value)) = model.iter().next().map(|(k, v)| (k.clone(), *v)) {
        let mut other = tree.clone();
        other.insert(&key, leaf("t", &key, &[value.wrapping_add(1)]));
        let place = bucket_of(&key_hash(&key));
        model.insert(key, value.wrapping_add(1));
        assert_ne!(root, anew(&model).0, "another value has another root");
        let mut among = Some(Scope::whole(Level::One));
        while let Some(nodes) = among {
            let differ = tree.differing(&nodes, &other.cut_hashes(&nodes)).expect("as many hashes");
            assert!(differ.count() == 1 && differ.contains(place), "going down ends at the one key");
            among = differ.children();
        }
    }
}

/// Text of a peer becomes one bounded line without anything that moves a cursor.
pub(crate) fn text(input: &[u8]) {
    let Some((max, text)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let max = usize::from(*max) + 1;
    let line = one_line(&text, max);
    assert!(line.len() <= max, "{} of at most {max}", line.len());
    assert!(!line.chars().any(char::is_control), "{line:?}");
    // Everything that Unicode calls a bidirectional control, and what has no width.
    let moves = |c: char| matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    assert!(!line.contains(moves), "{line:?}");
}
