//! The few primitives of the exchange: random numbers, SHA-256, HKDF, HMAC, and the transcript
//! hash. From the same provider as TLS (aws-lc-rs). No protocol.
//!
//! Invariant: secrets are wiped when dropped and `Debug` shows none of them; proofs are compared
//! in constant time.

use std::fmt;

use aws_lc_rs::{digest, hkdf, hmac, rand};
use zeroize::Zeroizing;

/// Label of the transcript hash.
const TRANSCRIPT_LABEL: &[u8] = b"hamlet-peering-1";
/// HKDF's info for the key under which both sides prove that they hold the token.
const KEY_INFO: &[u8] = b"hamlet-peering-1 key";

/// A 32-byte random number; not secret once it is revealed.
pub type Nonce = [u8; 32];
/// SHA-256.
pub(crate) type Hash = [u8; 32];
/// HMAC-SHA-256.
pub(crate) type Mac = [u8; 32];

/// The system gave no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers; look at its log")]
pub struct NoRandomness;

/// Fills an array with random bytes.
///
/// # Errors
/// If the provider has none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Hash {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Appends `part` with its length before it (4 bytes, big-endian), so that no two lists of parts
/// give the same bytes.
pub(crate) fn append_lp(out: &mut Vec<u8>, part: &[u8]) {
    // A part that is longer than 4 GiB can't occur: all of them are bounded by a message.
    out.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(part);
}

/// The token's secret. Never sent, and the inviter forgets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// The bytes, for the token's text only.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// K: what both sides prove to hold, and all that the inviter stores.
    pub fn key(&self, id: &[u8; 16]) -> Key {
        let mut key = Zeroizing::new([0; 32]);
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, id).extract(&self.0[..]);
        // Fails only for lengths that HKDF can't give; 32 bytes are one block.
        let filled = prk.expand(&[KEY_INFO], hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key[..]));
        debug_assert!(filled.is_ok());
        Key(key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Which side a proof is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The inviter.
    A,
    /// The accepter.
    B,
}

impl Side {
    fn label(self) -> &'static [u8] {
        match self {
            Side::A => b"A",
            Side::B => b"B",
        }
    }
}

/// K = HKDF-SHA-256(secret, salt = id).
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// A key that was stored.
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(Zeroizing::new(bytes))
    }

    /// The bytes, for the store only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC(K, side || TH).
    pub(crate) fn prove(&self, side: Side, transcript: &Transcript) -> Mac {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]);
        let mut context = hmac::Context::with_key(&key);
        context.update(side.label());
        context.update(&transcript.0);
        let mut mac = [0; 32];
        mac.copy_from_slice(context.sign().as_ref());
        mac
    }

    /// Whether `mac` is that proof; in constant time.
    pub(crate) fn is_proven(&self, side: Side, transcript: &Transcript, mac: &Mac) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]);
        let message = [side.label(), &transcript.0].concat();
        hmac::verify(&key, &message, mac).is_ok()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What an exchange is bound to beside its messages: the TLS channel and both leaf certificates.
/// The leaves are needed because TLS 1.3's exporter doesn't cover the client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// `EXPORTER-hamlet-peering-1` with the invitation's id as context.
    pub exporter: [u8; 32],
    /// A's leaf, DER.
    pub leaf_a: Vec<u8>,
    /// B's leaf, DER.
    pub leaf_b: Vec<u8>,
}

/// TH: SHA-256 over everything that both sides saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transcript(pub(crate) Hash);

/// The parts of TH, in order.
#[derive(Debug)]
pub(crate) struct Parts<'p> {
    pub(crate) id: &'p [u8; 16],
    pub(crate) binding: &'p Binding,
    pub(crate) commitment: &'p Hash,
    pub(crate) nonce_a: &'p Nonce,
    pub(crate) nonce_b: &'p Nonce,
    pub(crate) document_a: &'p [u8],
    pub(crate) document_b: &'p [u8],
}

impl Transcript {
    pub(crate) fn of(parts: &Parts<'_>) -> Transcript {
        let mut bytes = Vec::with_capacity(512 + parts.document_a.len() + parts.document_b.len());
        for part in [
            TRANSCRIPT_LABEL,
            parts.id,
            &parts.binding.exporter,
            &sha256(&parts.binding.leaf_a),
            &sha256(&parts.binding.leaf_b),
            parts.commitment,
            parts.nonce_a,
            parts.nonce_b,
            parts.document_a,
            parts.document_b,
        ] {
            append_lp(&mut bytes, part);
        }
        Transcript(sha256(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bip39::Language;
    use data_encoding::HEXLOWER;
    use serde_json::Value;

    use crate::words::Words;

    fn bytes(value: &Value, name: &str) -> Vec<u8> {
        HEXLOWER.decode(value[name].as_str().unwrap().as_bytes()).unwrap()
    }

    fn array<const N: usize>(value: &Value, name: &str) -> [u8; N] {
        bytes(value, name).try_into().unwrap()
    }

    #[test]
    fn key_transcript_proofs_and_words_are_those_of_an_independent_program() {
        let vectors: Vec<Value> = serde_json::from_str(include_str!("../tests/vectors.json")).unwrap();
        assert_eq!(vectors.len(), 3);
        for vector in &vectors {
            let (id, nonce_b) = (array(vector, "id"), array(vector, "nonce_b"));
            let key = Secret::new(array(vector, "secret")).key(&id);
            assert_eq!(key.expose(), &array::<32>(vector, "key"));
            let commitment = sha256(&nonce_b);
            assert_eq!(commitment, array::<32>(vector, "commitment"));
            let binding = Binding {
                exporter: array(vector, "exporter"),
                leaf_a: bytes(vector, "leaf_a"),
                leaf_b: bytes(vector, "leaf_b"),
            };
            let transcript = Transcript::of(&Parts {
                id: &id,
                binding: &binding,
                commitment: &commitment,
                nonce_a: &array(vector, "nonce_a"),
                nonce_b: &nonce_b,
                document_a: &bytes(vector, "document_a"),
                document_b: &bytes(vector, "document_b"),
            });
            assert_eq!(transcript.0, array::<32>(vector, "transcript"));
            let (a, b) = (array::<32>(vector, "mac_a"), array::<32>(vector, "mac_b"));
            assert_eq!((key.prove(Side::A, &transcript), key.prove(Side::B, &transcript)), (a, b));
            assert!(key.is_proven(Side::A, &transcript, &a) && key.is_proven(Side::B, &transcript, &b));
            assert!(!key.is_proven(Side::A, &transcript, &b), "a proof can't be sent back");
            let list = Language::English.word_list();
            let words: Vec<&str> = vector["words"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| list[i.as_u64().unwrap() as usize])
                .collect();
            assert_eq!(Words::of(&transcript).to_string(), words.join(" "));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new([0xab; 32]);
        let shown = format!("{secret:?} {:?}", secret.key(&[1; 16]));
        assert_eq!(shown, "Secret(..) Key(..)");
    }
}
