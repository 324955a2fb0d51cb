//! Tokens: one text each, and everything that chat, shells and strangers do to them.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hamlet_core::{SpiffeId, TrustDomain};
use hamlet_peering::{AgentAddress, AllowedAddresses, EXPIRY_SKEW, Secret, TOKEN_PREFIX, Token, TokenError};
use proptest::prelude::*;

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).unwrap()
}

fn token() -> Token {
    Token {
        id: [7; 16],
        secret: Secret::new([0x5e; 32]),
        addresses: vec![AgentAddress::parse("agent.acme.example:7443").unwrap()],
        trust_domain: domain("acme.example"),
        agent_id: SpiffeId::parse("spiffe://acme.example/hamlet/agent").unwrap(),
        roots: vec![[9; 32]],
        expires: Duration::from_secs(2_000_000_000),
        expected_domain: Some(domain("globex.example")),
    }
}

#[test]
fn a_token_is_read_back_and_shows_no_secret() {
    let token = token();
    let text = token.encode().unwrap();
    assert!(text.starts_with(TOKEN_PREFIX) && text.len() < 400, "{} bytes", text.len());
    assert_eq!(Token::parse(&format!("  {}\r\n", *text)).unwrap(), token);
    let shown = format!("{token:?}");
    assert!(!shown.contains("5e") && !shown.contains("94") && shown.contains("acme.example"), "{shown}");
}

#[test]
fn every_changed_character_and_every_cut_is_noticed() {
    let text = token().encode().unwrap();
    for at in 0..text.len() {
        for with in ["A", "b", "-", "_", "7", "=", "+", "/", " ", "\n", "é"] {
            let mut altered = text.to_string();
            altered.replace_range(at..=at, with);
            if altered.trim() != *text {
                assert!(Token::parse(&altered).is_err(), "{with:?} at {at}");
            }
        }
        assert!(Token::parse(&text[..at]).is_err(), "cut at {at}");
        assert!(Token::parse(&format!("{}x{}", &text[..at], &text[at..])).is_err(), "longer at {at}");
    }
    let twice = format!("{} {}", *text, *text);
    assert!(Token::parse(&twice).is_err());
    assert!(Token::parse(&text).is_ok());
}

#[test]
fn what_is_no_token_is_told_apart() {
    let big = format!("{TOKEN_PREFIX}{}", "A".repeat(10_000));
    let later = token().encode().unwrap().replace("hamlet1.", "hamlet2.");
    for (text, want) in [
        ("", TokenError::Empty),
        (" \n", TokenError::Empty),
        ("hello", TokenError::Prefix),
        (later.as_str(), TokenError::Prefix),
        ("hamlet1.", TokenError::Altered),
        ("hamlet1.AAAA", TokenError::Altered),
        (big.as_str(), TokenError::TooLong),
    ] {
        assert_eq!(Token::parse(text), Err(want), "{:.20}", text);
    }
}

/// A token whose checksum is right, whatever its payload is: what a hostile inviter can make.
fn forged(change: impl Fn(&mut Vec<u8>)) -> Result<Token, TokenError> {
    let text = token().encode().unwrap();
    let mut bytes = BASE64URL_NOPAD.decode(&text.as_bytes()[TOKEN_PREFIX.len()..]).unwrap();
    bytes.truncate(bytes.len() - 8);
    change(&mut bytes);
    let message = [TOKEN_PREFIX.as_bytes(), &bytes].concat();
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &message);
    bytes.extend(&sum.as_ref()[..8]);
    Token::parse(&format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
}

#[test]
fn a_right_checksum_over_wrong_content_is_refused() {
    assert_eq!(forged(|_| ()), Ok(token()));
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            bytes.splice(at..at + from.len(), to.bytes());
        }
    };
    for (what, result) in [
        ("bytes after the end", forged(|b| b.push(0))),
        ("a byte less", forged(|b| b.truncate(b.len() - 1))),
        ("upper case in the domain", forged(replace("acme.example", "Acme.example"))),
        ("an agent of another domain", forged(replace("spiffe://acme", "spiffe://evil"))),
        (
            "an address of link-local metadata",
            forged(replace("agent.acme.example:7443", "169.254.169.254:0000080")),
        ),
        ("this machine", forged(replace("agent.acme.example:7443", "the.agent.localhost:743"))),
        ("an address with spaces", forged(replace("agent.acme.example:7443", "agent acme.example:7443"))),
        ("an expiry beyond reason", forged(|b| b[48..56].copy_from_slice(&[0xff; 8]))),
        ("no token's length", forged(Vec::clear)),
    ] {
        assert!(result.is_err(), "{what} was accepted");
    }
}

#[test]
fn the_acceptor_judges_expiry_domains_and_addresses() {
    let (ours, now) = (domain("globex.example"), Duration::from_secs(1_999_999_999));
    let allowed = AllowedAddresses::default();
    let token = token();
    assert_eq!(token.check(&ours, now, &allowed), Ok(()));
    assert_eq!(token.check(&ours, token.expires + EXPIRY_SKEW, &allowed), Ok(()));
    let late = token.expires + EXPIRY_SKEW + Duration::from_secs(1);
    assert_eq!(token.check(&ours, late, &allowed), Err(TokenError::Expired));
    let own = token.check(&domain("acme.example"), now, &allowed);
    assert_eq!(own, Err(TokenError::OwnDomain(domain("acme.example"))));
    let foreign = token.check(&domain("initech.example"), now, &allowed);
    assert!(matches!(foreign, Err(TokenError::ForeignDomain { .. })));
    let inside = Token { addresses: vec![AgentAddress::parse("10.0.0.1:7443").unwrap()], ..token };
    assert!(matches!(inside.check(&ours, now, &allowed), Err(TokenError::Address(_))));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Token::parse(&text);
        let _ = Token::parse(&format!("{TOKEN_PREFIX}{text}"));
        let _ = forged(|b| *b = bytes.clone());
    }

    #[test]
    fn what_is_read_says_itself_again(bytes in prop::collection::vec(any::<u8>(), 1..4), at in 0_usize..200) {
        let read = forged(|b| for (i, byte) in bytes.iter().enumerate() {
            if let Some(slot) = b.get_mut(at + i) { *slot = *byte; }
        });
        if let Ok(token) = read {
            prop_assert_eq!(Token::parse(&token.encode().unwrap()).unwrap(), token);
        }
    }
}
