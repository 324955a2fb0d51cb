//! Why one side refuses the other, as it is said on the wire and shown to people.
//!
//! Invariant: what goes over the wire is a number, so no text of a stranger reaches a terminal.

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $word:literal, $text:literal;)*) => {
        /// Why an exchange was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
        #[repr(u8)]
        pub enum Refusal {
            $($(#[$doc])* #[error($text)] $name = $code,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Refusal] = &[$(Refusal::$name,)*];

            /// Its number on the wire.
            pub fn code(self) -> u8 {
                self as u8
            }

            /// The refusal with a number; an unknown one comes from a later version.
            pub fn of_code(code: u8) -> Option<Refusal> {
                Refusal::ALL.iter().copied().find(|r| r.code() == code)
            }

            /// A short word for logs and metrics.
            pub fn word(self) -> &'static str {
                match self { $(Refusal::$name => $word,)* }
            }
        }
    };
}

refusals! {
    /// No invitation has this id.
    Unknown = 1, "unknown", "there is no such invitation; it may have been withdrawn: ask for a new token";
    /// Somebody else has used it.
    Used = 2, "used", "the token was used already; if that was not you, tell the other mesh at once, and ask for a new one";
    /// Its time is over.
    Expired = 3, "expired", "the token has expired; ask for a new one: `hamlet peer invite`";
    /// The secret, or the channel, was not proven.
    Proof = 4, "proof", "the proof of the token's secret is wrong: the token was altered, or somebody sits in the middle";
    /// The inviter's own trust domain.
    OwnDomain = 5, "own-domain", "both sides have the same trust domain; a peer is another mesh";
    /// A trust domain that is a peer already.
    KnownDomain = 6, "known-domain", "the trust domain is a peer there already; remove that peer first: `hamlet peer remove`";
    /// A root key that is known already.
    KnownRoot = 7, "known-root", "a root key of the bundle is known already, of another mesh; each mesh needs a CA of its own";
    /// An address that isn't taken.
    Address = 8, "address", "an address of the accepting agent isn't taken; see --address on this side and --allow-range on the other";
    /// Not the mesh that was expected.
    ForeignDomain = 9, "foreign-domain", "the token is meant for another trust domain; ask for one of your own";
    /// Bytes that make no sense.
    Malformed = 10, "malformed", "what was sent is not in the form that it must have; do both sides run a recent hamlet?";
    /// The certificate is not one of the bundle.
    Certificate = 11, "certificate", "the agent's certificate is not valid under the bundle that it brought; check its identity files";
    /// Too many wrong proofs.
    Busy = 12, "busy", "there were too many attempts; try again in a minute";
    /// Something is wrong on the other side.
    Unavailable = 13, "unavailable", "the other side can't complete it now; its log and `hamlet peer list` there say why";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_refusal_has_a_number_and_a_word_of_its_own_and_says_what_to_do() {
        let codes: BTreeSet<u8> = Refusal::ALL.iter().map(|r| r.code()).collect();
        let words: BTreeSet<&str> = Refusal::ALL.iter().map(|r| r.word()).collect();
        assert_eq!((codes.len(), words.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        assert!(Refusal::ALL.iter().all(|r| Refusal::of_code(r.code()) == Some(*r)));
        assert_eq!(Refusal::of_code(0), None);
        assert_eq!(Refusal::of_code(200), None);
    }
}
