//! Laws of what is read from the wire and from the disk: whatever was read can be written, and is
//! then read as the same.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hamlet_core::durable::ImportRecord;
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::{Fqdn, NameSuffix, PeerName, PortRange, Rejection, SpiffeId, TrustDomain};
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::translate::{down, up};
use hamlet_protocol::dialect::v1alpha1::{End, V1Codec};
use hamlet_protocol::dialect::v1alpha2::read;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use prost::Message;

/// What an operator would allow: no address range, so no special-purpose address.
pub(crate) fn rules() -> Arc<ImportRules> {
    static RULES: OnceLock<Arc<ImportRules>> = OnceLock::new();
    let made = RULES.get_or_init(|| {
        Arc::new(ImportRules {
            peer: PeerName::parse("bank").expect("a name"),
            trust_domain: TrustDomain::parse("bank.example").expect("a domain"),
            suffixes: vec![NameSuffix::parse("bank.example").expect("a suffix")],
            sans: vec![SpiffeId::parse("spiffe://bank.example/gateway").expect("an id")],
            ranges: vec![],
            endpoint_ports: vec![PortRange::parse("7444").expect("a port")],
            service_ports: BTreeMap::new(),
        })
    });
    made.clone()
}

/// The messages of v1alpha2: a message that is refused for its size says the same of itself as one
/// that is taken whole.
pub(crate) fn message(input: &[u8]) {
    let whole = read(input, usize::MAX);
    if let Ok(oversized) = read(input, 0)
        && let Ok(whole) = &whole
    {
        let (a, b) = (whole.offer.as_ref(), oversized.offer.as_ref());
        assert_eq!(a.map(|o| (&o.nonce, &o.key, o.operation)), b.map(|o| (&o.nonce, &o.key, o.operation)));
        let (a, b) = (whole.request.as_ref(), oversized.request.as_ref());
        assert_eq!(a.map(|r| (&r.nonce, &r.status)), b.map(|r| (&r.nonce, &r.status)));
    }
    let Ok(whole) = whole else { return };
    assert_eq!(whole.bytes, input.len());
    if let Some((_, value)) = whole.offer.and_then(|o| o.resource.map(|r| (o.key, r.1))) {
        service(&value);
    }
}

/// The messages of v1alpha1, of the end that the first byte names: a change that is refused for its
/// size says the same of itself as one that is taken whole.
pub(crate) fn message_v1(input: &[u8]) {
    let Some((first, message)) = input.split_first() else { return };
    let end = if first & 1 == 1 { End::Consumer } else { End::Owner };
    let read = |message_bytes| V1Codec { end, message_bytes }.read(message);
    let (Ok(whole), Ok(oversized)) = (read(usize::MAX), read(0)) else {
        assert!(read(usize::MAX).is_err() && read(0).is_err(), "its size makes it no other message");
        return;
    };
    assert_eq!((whole.bytes, oversized.bytes), (message.len(), message.len()));
    assert_eq!(whole.request, oversized.request);
    assert_eq!((whole.offer.is_some(), whole.request.is_some()), (end == End::Consumer, end == End::Owner));
    let (Some(whole), Some(oversized)) = (whole.offer, oversized.offer) else { return };
    assert_eq!((&whole.nonce, &whole.resource_url), (&oversized.nonce, &oversized.resource_url));
    if let Some(refused) = &whole.refused {
        one_line(refused);
    }
    if let Some((_, value)) = whole.resource {
        service(&value);
    }
}

/// A service of v1alpha1: refused in one line, or the same after it was said in v1alpha1 again.
pub(crate) fn service_v1(input: &[u8]) {
    let translated = up(input).and_then(|(key, value)| Ok((decode(&key, &value)?, key)));
    let (translated, key) = match translated {
        Ok(translated) => translated,
        Err(refused) => return one_line(&refused),
    };
    // Only what a v1alpha1 peer must name, and this one didn't.
    let Ok((written, value)) = down(&translated) else { return };
    // The id is the peer's word for the service, and a DNS name as well: we write names in small
    // letters.
    assert_eq!(Ok(&*written), Fqdn::parse(&key).as_ref().map(Fqdn::as_str));
    if written != key {
        return;
    }
    let (again, value) = up(&value).expect("what we write can be read");
    assert_eq!(again, written);
    assert_eq!(decode(&key, &value), Ok(translated));
}

fn one_line(refused: &Rejection) {
    let text = refused.to_string();
    assert!(!text.chars().any(char::is_control) && text.len() < 1_024, "{text:?}");
}

/// The controls of the extensions: what was read is written and read as the same.
pub(crate) fn control(input: &[u8]) {
    let Ok(control) = ext::Control::decode(input) else { return };
    let written = control.encode_to_vec();
    let again = ext::Control::decode(&written[..]).expect("what we write can be read");
    assert_eq!(control, again);
    assert_eq!(written, again.encode_to_vec());
}

/// A service: refused in one line, or read, written and read as the same; and what policy lets in
/// lies in its bounds.
pub(crate) fn service(input: &[u8]) {
    let decoded = match decode("ledger", input) {
        Ok(decoded) => decoded,
        Err(refused) => return one_line(&refused),
    };
    let written = encode(&decoded);
    assert_eq!(decode("ledger", &written).as_ref(), Ok(&decoded), "what we write can be read");
    assert_eq!(encode(&decoded), written);
    let rules = rules();
    match rules.admit(&decoded) {
        Ok(admitted) => {
            assert!(rules.suffixes[0].contains(&admitted.fqdn), "{}", admitted.fqdn);
            for endpoint in &decoded.endpoints {
                assert_eq!(endpoint.address.special_purpose(), None, "{:?}", endpoint.address);
                assert_eq!(endpoint.port.get(), 7444);
            }
            assert!(!decoded.sans.is_empty() && decoded.sans.iter().all(|s| rules.sans.contains(s)));
        }
        Err(refused) => assert!(!refused.to_string().chars().any(char::is_control)),
    }
}

/// Records of the store: what was read is written and read as the same, and a slice that starts
/// with them stands, whatever they say.
pub(crate) fn records(input: &[u8]) {
    let Ok((records, _)) = postcard::take_from_bytes::<BTreeMap<String, ImportRecord>>(input) else { return };
    let written = postcard::to_stdvec(&records).expect("records can be written");
    let again: BTreeMap<String, ImportRecord> = postcard::from_bytes(&written).expect("and read");
    assert_eq!(records, again);
    let peer = PeerName::parse("bank").expect("a name");
    let mut slice = ImportedSlice::new(peer, TYPE_URL, Arc::new(decode), NameLeases::new());
    slice.set_rules(Some(rules()), ImportLimits::default(), GuardSettings::default());
    let many = records.len() as u64;
    let now = Duration::from_secs(1);
    slice.load(records, now);
    let counts = slice.counts();
    assert!(counts.in_force as u64 <= many && counts.heard as u64 <= many);
    let staged = slice.reevaluate(now);
    slice.apply(staged, now);
    let staged = slice.due(now + Duration::from_secs(3_600));
    slice.apply(staged, now + Duration::from_secs(3_600));
    assert!(slice.counts().in_force as u64 <= many);
}
