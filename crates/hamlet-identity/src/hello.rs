//! Reads a ClientHello, however it is cut into segments and records, and nothing more of TLS.
//! *Hardened to untrusted peer* (threat T17). Not a verifier: what it returns is a claim.
//!
//! Invariant: the same bytes give the same result wherever they are split. The bytes are fed to
//! rustls' own parser, so that what we route by and what the handshake uses can't differ.

use hamlet_core::Fqdn;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest ClientHello, record headers included. A post-quantum one has about 1.5 KiB.
pub const CLIENT_HELLO_BYTES: usize = 16 * 1024;
/// One read; the parser takes this much at a time.
const READ: usize = 2048;

/// Why there is no ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The socket ended before.
    #[error("closed before a whole ClientHello")]
    Closed,
    /// What came is longer than we read.
    #[error("no whole ClientHello within {CLIENT_HELLO_BYTES} bytes")]
    TooLong,
    /// It isn't TLS, or a ClientHello that can't be. The alert was sent.
    #[error("not a TLS ClientHello: {0}")]
    NotTls(rustls::Error),
}

/// Reads until a ClientHello is whole. The caller sets the deadline.
pub async fn read_hello<S>(stream: &mut S) -> Result<Accepted, HelloError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; READ];
    let mut left = CLIENT_HELLO_BYTES;
    while left > 0 {
        let most = left.min(READ);
        let read = stream.read(&mut buffer[..most]).await.map_err(|_| HelloError::Closed)?;
        if read == 0 {
            return Err(HelloError::Closed);
        }
        left -= read;
        let mut bytes = &buffer[..read];
        while !bytes.is_empty() {
            acceptor.read_tls(&mut bytes).map_err(|_| HelloError::TooLong)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut out = Vec::new();
                let _ = alert.write_all(&mut out);
                let _ = stream.write_all(&out).await;
                return Err(HelloError::NotTls(error));
            }
        }
    }
    Err(HelloError::TooLong)
}

/// The name a ClientHello asks for, canonical: case folded, one trailing dot stripped. `None`
/// without SNI, or for one that is an address or no name at all.
pub fn hello_name(accepted: &Accepted) -> Option<Fqdn> {
    Fqdn::parse(accepted.client_hello().server_name()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use rustls_pki_types::ServerName;

    /// A real ClientHello of rustls' default provider, key share X25519MLKEM768 included.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of at most `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let mut out = hello[..3].to_vec();
            out.extend((part.len() as u16).to_be_bytes());
            out.extend(part);
            out
        };
        hello[5..].chunks(size).flat_map(record).collect()
    }

    async fn asked(parts: &[&[u8]]) -> Result<Option<Fqdn>, HelloError> {
        let script = parts.iter().fold(tokio_test::io::Builder::new(), |mut b, part| {
            b.read(part);
            b
        });
        read_whole(script).await
    }

    async fn read_whole(mut script: tokio_test::io::Builder) -> Result<Option<Fqdn>, HelloError> {
        let mut stream = script.build();
        read_hello(&mut stream).await.map(|accepted| hello_name(&accepted))
    }

    fn ledger() -> Fqdn {
        Fqdn::parse("ledger.acme.example").unwrap()
    }

    #[tokio::test]
    async fn a_post_quantum_hello_in_single_bytes_is_read() {
        let hello = hello("ledger.acme.example");
        assert!(hello.len() > 1460, "longer than a segment: {}", hello.len());
        let bytes: Vec<&[u8]> = hello.chunks(1).collect();
        assert_eq!(asked(&bytes).await.unwrap(), Some(ledger()));
    }

    #[tokio::test]
    async fn every_split_in_two_gives_the_same_name_whatever_the_records() {
        let whole = hello("ledger.acme.example");
        for hello in [whole.clone(), in_records(&whole, 512), in_records(&whole, 100)] {
            for at in 1..hello.len() {
                assert_eq!(asked(&[&hello[..at], &hello[at..]]).await.unwrap(), Some(ledger()), "{at}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_is_folded_and_loses_its_trailing_dot_and_an_address_is_no_name() {
        let patched = |with: &[u8; 19]| {
            let mut bytes = hello("ledger.acme.exampla");
            let at = bytes.windows(19).position(|w| w == b"ledger.acme.exampla").unwrap();
            bytes[at..at + 19].copy_from_slice(with);
            bytes
        };
        assert_eq!(asked(&[&patched(b"LEDGER.Acme.examplE")]).await.unwrap(), Some(ledger()));
        let dotted = asked(&[&patched(b"ledger.acme.exampl.")]).await.unwrap();
        assert_eq!(dotted, Some(Fqdn::parse("ledger.acme.exampl").unwrap()));
        for bad in
            [b"ledger.acme.exa..le", b"*edger.acme.example", b"ledger.acme\0example", b"192.168.100.100.100"]
        {
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            far.write_all(&patched(bad)).await.unwrap();
            let asked = read_hello(&mut near).await.ok().and_then(|accepted| hello_name(&accepted));
            assert_eq!(asked, None, "{bad:?}");
        }
        assert_eq!(asked(&[&hello("192.0.2.1")]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn plaintext_truncation_and_excess_end_without_a_hello() {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(b"GET / HTTP/1.1\r\nHost: ledger.acme.example\r\n\r\n").await.unwrap();
        assert!(matches!(read_hello(&mut near).await, Err(HelloError::NotTls(_))));

        let hello = hello("ledger.acme.example");
        assert!(matches!(asked(&[&hello[..hello.len() - 1]]).await, Err(HelloError::Closed)));

        // A handshake message that says it is longer than we read.
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let mut endless = vec![22, 3, 1, 0x40, 0x00, 1, 0, 0x60, 0x00];
        endless.resize(5 + 0x4000, 0);
        far.write_all(&endless).await.unwrap();
        assert!(matches!(read_hello(&mut near).await, Err(HelloError::TooLong)));
    }
}
