//! Bundles as JWK sets: a bundle document is refused in one line, or written and read as the same, as a set
//! and in a map; and what follows a held bundle never takes its sequence back.

use std::time::Duration;

use hamlet_core::TrustDomain;
use hamlet_identity::{Authorities, BundleError, Channel, HeldBundle, SpiffeBundle};

/// The law of bundle documents and of their succession.
pub(crate) fn jwks(input: &[u8]) {
    let domain = || TrustDomain::parse("acme.example").expect("a domain");
    // Two documents, parted by a byte of 0: the second is offered after the first.
    let (first, second) = match input.iter().position(|b| *b == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, input),
    };
    let found = match SpiffeBundle::from_bytes(domain(), first) {
        Ok(found) => found,
        Err(error) => {
            assert!(!error.to_string().contains(['\0', '\n', '\x1b']));
            return;
        }
    };
    match found.to_jwks() {
        Ok(written) => {
            assert_eq!(SpiffeBundle::from_jwks(domain(), written.as_bytes()).as_ref(), Ok(&found));
            let map = SpiffeBundle::to_map([&found]).expect("one domain");
            let mut back = SpiffeBundle::from_map(map.as_bytes()).expect("our own map");
            assert_eq!(back.remove(&domain()).expect("the one domain").authorities, found.authorities);
        }
        Err(error) => {
            assert_eq!(
                (error, found.authorities.clone()),
                (BundleError::NothingToWrite, Authorities::NoX509)
            );
        }
    }

    let mut held = HeldBundle::first(found, Channel::Endpoint);
    let Ok(next) = SpiffeBundle::from_bytes(domain(), second) else { return };
    let before = held.clone();
    match held.offer(&next, Channel::Stream, Duration::ZERO, Duration::from_secs(1)) {
        Ok(_) => assert!(held.sequence() >= before.sequence()),
        Err(_) => assert_eq!(held, before),
    }
    assert_eq!(
        HeldBundle::from_bytes(&held.to_bytes(), Duration::ZERO, Duration::from_secs(1))
            .map(|h| h.sequence()),
        Ok(held.sequence())
    );
}
