//! `federation.resourcediscovery.v1alpha1` on the wire. *Hardened to untrusted peer.*
//!
//! One codec for each end, because each direction has a message of its own: the consumer dials and
//! writes requests, the owner answers with changes. No extension ever travels here. Resources are
//! translated at this edge ([`super::translate`]).

use bytes::{Buf, BufMut, Bytes};
use hamlet_core::view::Change;
use hamlet_core::{Rejection, RejectionCode};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::Status;

use super::codec::Wire;
use super::translate::{TYPE_URL, up};
use super::v1alpha2::{field_len, put_field, put_header, status};
use super::{Dialect, Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing};
use crate::wire::federation::resourcediscovery::v1alpha1 as pb;

/// Path of the stream's method.
pub const PATH: &str = "/federation.resourcediscovery.v1alpha1.DiscoveryService/EstablishStream";

/// Which end of the stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// We dialled: we write requests and read responses.
    Consumer,
    /// The peer dialled: we read requests and write responses.
    Owner,
}

/// The messages of one stream.
#[derive(Debug, Clone, Copy)]
pub struct V1Codec {
    /// Which end we are.
    pub end: End,
    /// Largest message that is decoded whole, in bytes.
    pub message_bytes: usize,
}

impl Wire for V1Codec {
    fn put(&self, item: &Outgoing, dst: &mut impl BufMut) {
        self.write(item, dst);
    }

    fn take(&self, src: impl Buf) -> Result<Incoming, Status> {
        self.read(src)
    }
}

/// `StreamRequest` as far as we look at it: the details of a status are many small members that
/// would cost many times their size in memory.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    resource_url: String,
    #[prost(string, tag = "2")]
    response_nonce: String,
    #[prost(message, optional, tag = "3")]
    status: Option<Answer>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

impl V1Codec {
    /// Decodes one message of the other end.
    pub fn read(&self, src: impl Buf) -> Result<Incoming, Status> {
        let bytes = src.remaining();
        match self.end {
            End::Consumer => {
                let message = pb::StreamResponse::decode(src).map_err(|_| not_a("StreamResponse"))?;
                Ok(Incoming { offer: Some(self.offer(message, bytes)), request: None, bytes })
            }
            End::Owner => {
                let message = Request::decode(src).map_err(|_| not_a("StreamRequest"))?;
                let request = IncomingRequest {
                    resource_url: message.resource_url,
                    nonce: message.response_nonce,
                    status: message.status.map(|s| (s.code, s.message)),
                    context: String::new(),
                    control: None,
                };
                Ok(Incoming { offer: None, request: Some(request), bytes })
            }
        }
    }

    fn offer(&self, message: pb::StreamResponse, bytes: usize) -> IncomingOffer {
        let pb::StreamResponse { nonce, resource_url, resource, operation } = message;
        let mut offer = IncomingOffer { nonce, resource_url, ..IncomingOffer::default() };
        // The consumer refuses it by its size.
        if bytes > self.message_bytes {
            return offer;
        }
        match effect(operation) {
            Ok(operation) => offer.operation = operation,
            Err(rejection) => {
                offer.operation = Operation::Unknown(operation);
                offer.refused = Some(rejection);
            }
        }
        match resource {
            None => {
                let text = "required in every v1alpha1 change, deletions too, because its id is the key; send it whole";
                let missing = Rejection::new(RejectionCode::Malformed, "resource-missing", "resource", text);
                offer.refused.get_or_insert(missing);
            }
            Some(any) if any.type_url != TYPE_URL => {
                let text = format!("differs from resource_url; use {TYPE_URL}");
                let other =
                    Rejection::new(RejectionCode::Malformed, "resource-type", "resource.type_url", text);
                // One of another type on a stream of another type is refused for the latter.
                if offer.resource_url == TYPE_URL {
                    offer.refused.get_or_insert(other);
                }
            }
            Some(any) => match up(&any.value) {
                Ok((key, value)) => {
                    offer.key = key;
                    offer.resource = Some((any.type_url, value));
                }
                Err(rejection) => {
                    offer.refused.get_or_insert(rejection);
                }
            },
        }
        offer
    }

    /// Appends one message. What v1alpha1 can't say is never handed to this codec; should it be,
    /// nothing is appended, which the other end reads as an empty message.
    pub fn write(&self, item: &Outgoing, dst: &mut impl BufMut) {
        let request = match (self.end, item) {
            (End::Owner, Outgoing::Offer { nonce, change, .. }) => return write_offer(*nonce, change, dst),
            (End::Consumer, Outgoing::Subscribe { .. }) => {
                pb::StreamRequest { resource_url: TYPE_URL.to_owned(), ..pb::StreamRequest::default() }
            }
            (End::Consumer, Outgoing::Answer { nonce, answer }) => {
                let answer = answer.clone().map_err(|r| Dialect::V1alpha1.in_its_words(r));
                pb::StreamRequest {
                    resource_url: TYPE_URL.to_owned(),
                    response_nonce: nonce.clone(),
                    status: Some(status(&answer)),
                }
            }
            _ => return,
        };
        dst.put_slice(&request.encode_to_vec());
    }
}

fn not_a(message: &str) -> Status {
    Status::invalid_argument(format!("the message is not a v1alpha1 {message}; check the encoder"))
}

/// What an operation's number does; 2 is a deletion in v1alpha2.
fn effect(number: i32) -> Result<Operation, Rejection> {
    match pb::stream_response::Operation::try_from(number) {
        Ok(pb::stream_response::Operation::Create | pb::stream_response::Operation::Update) => {
            Ok(Operation::Upsert)
        }
        Ok(pb::stream_response::Operation::Delete) => Ok(Operation::Delete),
        _ => {
            let text = format!("{number} is no operation of v1alpha1; use CREATE, UPDATE or DELETE");
            Err(Rejection::new(RejectionCode::Unknown, "operation-unknown", "operation", text))
        }
    }
}

/// Writes an offer without building a message: the shared value is copied between small headers.
fn write_offer(nonce: u64, change: &Change, dst: &mut impl BufMut) {
    let value: &Bytes = &change.offer.value;
    let nonce = nonce.to_string();
    let operation = match change {
        Change { deleted: true, .. } => pb::stream_response::Operation::Delete,
        Change { fresh: true, .. } => pb::stream_response::Operation::Create,
        _ => pb::stream_response::Operation::Update,
    };
    let any = field_len(1, TYPE_URL.len()) + field_len(2, value.len());
    put_field(1, nonce.as_bytes(), dst);
    put_field(2, TYPE_URL.as_bytes(), dst);
    put_header(3, any, dst);
    put_field(1, TYPE_URL.as_bytes(), dst);
    put_field(2, value, dst);
    encode_key(4, WireType::Varint, dst);
    encode_varint(operation as u64, dst);
}
