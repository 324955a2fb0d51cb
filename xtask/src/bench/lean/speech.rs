//! What the lean clients say and understand: our v1alpha2 (as a peer that says no hello), the Go
//! reference's v1alpha1, and etcd's watch.

use super::wire::{Fields, field, put, put_number};

/// Our resource type.
const V1ALPHA2: &str = "type.googleapis.com/federation.types.v1alpha2.FederatedService";
/// The Go reference's.
const V1ALPHA1: &str = "type.googleapis.com/federation.types.v1alpha1.FederatedService";

/// A published change, as the marker in it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) struct Delivery {
    /// Number of the service.
    pub(in crate::bench) key: usize,
    /// Its version.
    pub(in crate::bench) version: u64,
    /// When it was published, in nanoseconds since the Unix epoch.
    pub(in crate::bench) at_nanos: u128,
}

impl Delivery {
    /// Finds `#key:version:nanos#` in a value.
    fn find(value: &[u8]) -> Option<Delivery> {
        let from = value.iter().position(|b| *b == b'#')? + 1;
        let length = value[from..].iter().position(|b| *b == b'#')?;
        let text = std::str::from_utf8(&value[from..from + length]).ok()?;
        let mut numbers = text.split(':');
        let (key, version, at) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(Delivery { key: key.parse().ok()?, version: version.parse().ok()?, at_nanos: at.parse().ok()? })
    }
}

/// The language of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Speech {
    /// `federation.resourcediscovery.v1alpha2`.
    V2,
    /// `federation.resourcediscovery.v1alpha1`.
    V1,
    /// etcd's watch.
    Etcd,
}

impl Speech {
    /// The method to call.
    pub(in crate::bench) fn path(self) -> &'static str {
        match self {
            Speech::V2 => "/federation.resourcediscovery.v1alpha2.DiscoveryService/EstablishStream",
            Speech::V1 => "/federation.resourcediscovery.v1alpha1.DiscoveryService/EstablishStream",
            Speech::Etcd => "/etcdserverpb.Watch/Watch",
        }
    }

    /// The first message: everything, please.
    pub(in crate::bench) fn subscribe(self) -> Vec<u8> {
        let mut inner = Vec::new();
        let mut message = Vec::new();
        match self {
            Speech::V1 => put(1, V1ALPHA1.as_bytes(), &mut message),
            Speech::V2 => {
                put(1, V1ALPHA2.as_bytes(), &mut inner);
                put(1, &inner, &mut message);
            }
            Speech::Etcd => {
                // Every key from 0x00 on, as etcd's client writes "all keys".
                put(1, &[0], &mut inner);
                put(2, &[0], &mut inner);
                // From the first revision: what is there already is wanted too.
                put_number(3, 1, &mut inner);
                put(1, &inner, &mut message);
            }
        }
        message
    }

    /// Hands each delivery of a message to `take`; returns the answer, if it wants one.
    pub(in crate::bench) fn hear(self, message: &[u8], mut take: impl FnMut(Delivery)) -> Option<Vec<u8>> {
        let response = match self {
            Speech::Etcd => {
                // A watch has no answers: what was written to the socket counts as delivered.
                let events = Fields(message).filter(|(tag, _)| *tag == 11);
                for (_, event) in events {
                    let value = field(2, event).and_then(|kv| field(5, kv));
                    value.and_then(Delivery::find).into_iter().for_each(&mut take);
                }
                return None;
            }
            Speech::V1 => message,
            // The other member is the server's own subscription.
            Speech::V2 => field(2, message)?,
        };
        let any = field(if self == Speech::V1 { 3 } else { 4 }, response);
        any.and_then(|any| field(2, any)).and_then(Delivery::find).into_iter().for_each(take);
        Some(self.acknowledge(field(1, response).unwrap_or_default()))
    }

    fn acknowledge(self, nonce: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let url = if self == Speech::V1 { V1ALPHA1 } else { V1ALPHA2 };
        put(1, url.as_bytes(), &mut answer);
        put(2, nonce, &mut answer);
        // Present and empty: acknowledged.
        put(3, &[], &mut answer);
        if self == Speech::V1 {
            return answer;
        }
        let mut message = Vec::new();
        put(1, &answer, &mut message);
        message
    }
}

/// A request to etcd to store `value` under `key`.
pub(in crate::bench) fn put_request(key: &str, value: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put(1, key.as_bytes(), &mut message);
    put(2, value, &mut message);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::agent::marker;

    #[test]
    fn a_delivery_is_found_and_answered_in_each_speech() {
        let wanted = Delivery { key: 17, version: 4, at_nanos: 123 };
        let value = [b"\x0a\x03abc", marker(17, 4, 123).as_bytes(), b"xxx"].concat();
        for (speech, resource, wrap) in [(Speech::V1, 3, None), (Speech::V2, 4, Some(2))] {
            let (mut any, mut response) = (vec![], vec![]);
            put(1, b"url", &mut any);
            put(2, &value, &mut any);
            put(1, b"nonce", &mut response);
            put(resource, &any, &mut response);
            let mut message = response.clone();
            if let Some(tag) = wrap {
                message.clear();
                put(tag, &response, &mut message);
            }
            let mut heard = vec![];
            let answer = speech.hear(&message, |d| heard.push(d)).unwrap();
            assert_eq!(heard, [wanted]);
            let answer = if wrap.is_some() { field(1, &answer).unwrap() } else { &answer[..] };
            assert_eq!((field(2, answer), field(3, answer)), (Some(&b"nonce"[..]), Some(&b""[..])));
        }
        let (mut kv, mut event, mut message) = (vec![], vec![], vec![]);
        put(5, &value, &mut kv);
        put(2, &kv, &mut event);
        put(11, &event, &mut message);
        put(11, &event, &mut message);
        let mut heard = vec![];
        assert_eq!(Speech::Etcd.hear(&message, |d| heard.push(d)), None);
        assert_eq!(heard, [wanted, wanted]);
        assert_eq!(Delivery::find(b"no marker"), None);
    }
}
