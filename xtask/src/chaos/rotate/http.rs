//! As much HTTP/1.1 as a call needs, by hand: a client library could try again behind our back.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest head that is read.
const HEAD_BYTES: usize = 16 * 1024;
/// Longest body.
const BODY_BYTES: usize = 64 * 1024;

/// One head, up to the empty line.
pub(super) async fn read_head(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let read = stream.read_until(b'\n', &mut head).await?;
        ensure!(read > 0, "closed after {before} bytes of a head");
        ensure!(head.len() <= HEAD_BYTES, "a head of more than {HEAD_BYTES} bytes");
        if matches!(&head[before..], b"\r\n" | b"\n") {
            return Ok(String::from_utf8(head)?);
        }
    }
}

/// Asks for `path` and expects it as the answer's body.
pub(super) async fn get(
    stream: &mut BufReader<TcpStream>,
    host: &str,
    path: &str,
    last: bool,
) -> anyhow::Result<()> {
    let connection = if last { "Connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{connection}\r\n");
    stream.get_mut().write_all(request.as_bytes()).await.context("sending the request")?;
    let head = read_head(stream).await.context("reading the answer")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.with_context(|| format!("an answer without a length: {head:?}"))?;
    ensure!(length <= BODY_BYTES, "a body of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.context("reading the answer's body")?;
    let body = String::from_utf8_lossy(&body);
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{status}: {}", body.trim());
    }
    ensure!(body == path, "another call's answer: {body:?} instead of {path:?}");
    Ok(())
}
