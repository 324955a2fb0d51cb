//! A dialect as gRPC wants it: one codec over whatever writes and reads single messages.
//!
//! It knows no message. Invariant: both dialects use the same buffers, and nothing is copied
//! between a dialect and HTTP/2's own.

use bytes::{Buf, BufMut};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::{Incoming, Outgoing};

/// One dialect of one stream: how a message is written and read.
pub(crate) trait Wire: Clone + Send + Sync + 'static {
    /// Appends one message. It can't fail: the buffer grows.
    fn put(&self, item: &Outgoing, dst: &mut impl BufMut);
    /// Decodes one message of the other end.
    ///
    /// # Errors
    /// The status that ends the stream, if it is no message at all.
    fn take(&self, src: impl Buf) -> Result<Incoming, Status>;
}

/// The codec of one stream.
#[derive(Debug, Clone)]
pub(crate) struct WireCodec<W>(pub(crate) W);

/// Small buffers, because most streams are idle most of the time, and the size at which what was
/// written goes to HTTP/2.
fn buffers() -> BufferSettings {
    BufferSettings::new(1024, 7 * 1024)
}

impl<W: Wire> Codec for WireCodec<W> {
    type Encode = Outgoing;
    type Decode = Incoming;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl<W: Wire> Encoder for WireCodec<W> {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.0.put(&item, dst);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

impl<W: Wire> Decoder for WireCodec<W> {
    type Item = Incoming;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Incoming>, Status> {
        self.0.take(src).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}
