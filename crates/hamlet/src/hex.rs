//! Hashes as people and files read them: lower-case hexadecimal without separators. Not the form of
//! certificate fingerprints that people compare (`hamlet_identity::fingerprint_text`).

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash that `text` is; `None` if it is none.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}
