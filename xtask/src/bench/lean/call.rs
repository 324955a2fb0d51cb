//! One gRPC call over HTTP/2: frames of five bytes and a message, as the server sends them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use hamlet_protocol::transport;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Flow-control windows, as ours.
const WINDOW_BYTES: u32 = 1 << 20;

/// Connects, shakes hands; what comes back has to be polled for anything to move.
pub(in crate::bench) async fn connect(
    server: SocketAddr,
    tls: Arc<ClientConfig>,
) -> anyhow::Result<(SendRequest<Bytes>, Connection<TlsStream<TcpStream>, Bytes>)> {
    let tcp = TcpStream::connect(server).await.context("can't connect")?;
    transport::tune(&tcp)?;
    let name = ServerName::try_from("localhost").context("a name")?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.context("TLS failed")?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    builder.handshake(stream).await.context("HTTP/2 failed")
}

/// A call in progress.
pub(in crate::bench) struct Call {
    outbound: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    inbound: Option<RecvStream>,
    buffer: BytesMut,
}

impl Call {
    /// Calls `path` and says `first`; `last` if nothing follows.
    pub(in crate::bench) fn open(
        sender: &mut SendRequest<Bytes>,
        path: &str,
        first: &[u8],
        last: bool,
    ) -> anyhow::Result<Call> {
        let request = http::Request::post(format!("https://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, outbound) = sender.send_request(request, false)?;
        let mut call = Call { outbound, response: Some(response), inbound: None, buffer: BytesMut::new() };
        call.send(first, last)?;
        Ok(call)
    }

    /// Sends one message.
    pub(in crate::bench) fn send(&mut self, message: &[u8], last: bool) -> anyhow::Result<()> {
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(message);
        Ok(self.outbound.send_data(frame.freeze(), last)?)
    }

    /// The next message; `None` when the server ended the call in good order.
    pub(in crate::bench) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        'reading: loop {
            if let Some(message) = self.whole() {
                return Ok(Some(message));
            }
            if let Some(response) = self.response.take() {
                let response = response.await?;
                if !response.status().is_success() {
                    bail!("HTTP {}", response.status());
                }
                if let Some(status) = response.headers().get("grpc-status").filter(|s| *s != "0") {
                    bail!("gRPC status {status:?}: {:?}", response.headers().get("grpc-message"));
                }
                self.inbound = Some(response.into_body());
            }
            let Some(inbound) = &mut self.inbound else { break 'reading };
            let Some(data) = inbound.data().await.transpose()? else { break 'reading };
            inbound.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
        if let Some(inbound) = &mut self.inbound
            && let Some(trailers) = inbound.trailers().await?
            && let Some(status) = trailers.get("grpc-status").filter(|s| *s != "0")
        {
            bail!("gRPC status {status:?}: {:?}", trailers.get("grpc-message"));
        }
        Ok(None)
    }

    fn whole(&mut self) -> Option<Bytes> {
        let header: [u8; 5] = self.buffer.get(..5)?.try_into().ok()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(length).freeze())
    }
}
