//! `federation.resourcediscovery.v1alpha2` on the wire. *Hardened to untrusted peer.*
//!
//! Offers are written without building a message: the shared value is copied between small
//! headers, then nonce and context follow (proto3 allows fields in any order).

use bytes::{Buf, BufMut};
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::view::Change;
use hamlet_core::{Rejection, RejectionCode};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;

use super::codec::Wire;
use super::{Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret};
use crate::wire::federation::resourcediscovery::v1alpha2 as pb;
use crate::wire::google::protobuf::Any;
use crate::wire::google::rpc;

/// Path of the stream's method.
pub const PATH: &str = "/federation.resourcediscovery.v1alpha2.DiscoveryService/EstablishStream";

/// Our domain in `google.rpc.ErrorInfo`.
const ERROR_DOMAIN: &str = "hamlet.dev";
/// Number of the member that tells a Hamlet agent the version of an offer.
const ENTRY: u32 = 1001;
const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// The messages of one stream; it knows what every message of the stream repeats.
#[derive(Debug, Clone)]
pub struct V2Codec {
    /// The stream's resource type.
    pub resource_url: &'static str,
    /// The context value, if one is configured.
    pub context: Secret,
    /// Largest message that is decoded whole, in bytes.
    pub message_bytes: usize,
}

impl Wire for V2Codec {
    fn put(&self, item: &Outgoing, dst: &mut impl BufMut) {
        self.write(item, dst);
    }

    fn take(&self, src: impl Buf) -> Result<Incoming, Status> {
        read(src, self.message_bytes)
    }
}

/// Decodes one message. Of one larger than `message_bytes`, which is refused, only what the
/// refusal needs is built: many small members cost many times their size in memory.
pub fn read(src: impl Buf, message_bytes: usize) -> Result<Incoming, Status> {
    let bytes = src.remaining();
    let decoded = if bytes > message_bytes {
        OversizedStream::decode(src).map(|message| message.into_incoming(bytes))
    } else {
        pb::BidirectionalStream::decode(src).map(|message| incoming(message, bytes))
    };
    decoded.map_err(|_| {
        Status::invalid_argument("the message is not a v1alpha2 BidirectionalStream; check the encoder")
    })
}

/// `BidirectionalStream` without its repeated members, resource and extensions.
#[derive(Clone, PartialEq, Message)]
struct OversizedStream {
    #[prost(message, optional, tag = "1")]
    request: Option<OversizedRequest>,
    #[prost(message, optional, tag = "2")]
    response: Option<OversizedResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct OversizedRequest {
    #[prost(string, tag = "1")]
    resource_url: String,
    #[prost(string, tag = "2")]
    response_nonce: String,
    #[prost(message, optional, tag = "3")]
    status: Option<OversizedStatus>,
    #[prost(string, tag = "4")]
    context: String,
}

#[derive(Clone, PartialEq, Message)]
struct OversizedStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct OversizedResponse {
    #[prost(string, tag = "1")]
    nonce: String,
    #[prost(string, tag = "2")]
    resource_url: String,
    #[prost(string, tag = "3")]
    resource_id: String,
    #[prost(int32, tag = "5")]
    operation: i32,
    #[prost(string, tag = "6")]
    context: String,
}

impl OversizedStream {
    fn into_incoming(self, bytes: usize) -> Incoming {
        let offer = self.response.map(|r| IncomingOffer {
            nonce: r.nonce,
            resource_url: r.resource_url,
            key: r.resource_id,
            resource: None,
            refused: None,
            operation: operation(r.operation),
            context: r.context,
            version: 0,
        });
        let request = self.request.map(|r| IncomingRequest {
            resource_url: r.resource_url,
            nonce: r.response_nonce,
            status: r.status.map(|s| (s.code, s.message)),
            context: r.context,
            control: None,
        });
        Incoming { offer, request, bytes }
    }
}

fn operation(number: i32) -> Operation {
    match pb::stream_response::Operation::try_from(number) {
        Ok(pb::stream_response::Operation::Upsert) => Operation::Upsert,
        Ok(pb::stream_response::Operation::Delete) => Operation::Delete,
        _ => Operation::Unknown(number),
    }
}

/// Splits a decoded message.
pub fn incoming(message: pb::BidirectionalStream, bytes: usize) -> Incoming {
    // A control never travels in a response; one that does is ignored with its member.
    let offer = message.response.map(|r| IncomingOffer {
        nonce: r.nonce,
        resource_url: r.resource_url,
        key: r.resource_id,
        resource: r.resource.map(|any| (any.type_url, any.value)),
        refused: None,
        operation: operation(r.operation),
        context: r.context,
        version: r.entry.map_or(0, |e| e.version),
    });
    let request = message.request.map(|r| IncomingRequest {
        resource_url: r.resource_url,
        nonce: r.response_nonce,
        status: r.status.map(|s| (s.code, s.message)),
        context: r.context,
        control: r.control,
    });
    Incoming { offer, request, bytes }
}

/// The gRPC status code of a refusal (protocol text, section 5).
pub fn status_code(code: RejectionCode) -> i32 {
    let code = match code {
        RejectionCode::Malformed => tonic::Code::InvalidArgument,
        RejectionCode::Policy => tonic::Code::PermissionDenied,
        RejectionCode::Quota => tonic::Code::ResourceExhausted,
        RejectionCode::NameTaken => tonic::Code::AlreadyExists,
        RejectionCode::Unknown => tonic::Code::Unimplemented,
        RejectionCode::Unavailable => tonic::Code::Unavailable,
    };
    code as i32
}

/// The status of an answer. An acknowledgement has one too, present and empty: peers crash
/// without it.
pub(super) fn status(answer: &Result<(), Rejection>) -> rpc::Status {
    let Err(rejection) = answer else { return rpc::Status::default() };
    let detail = rpc::ErrorInfo {
        reason: rejection.reason(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: [("field".to_owned(), rejection.field.clone())].into(),
    };
    rpc::Status {
        code: status_code(rejection.code),
        message: rejection.to_string(),
        details: vec![Any { type_url: ERROR_INFO_URL.to_owned(), value: detail.encode_to_vec().into() }],
    }
}

/// A refusal as the fate of a change says it, with the message beside the field.
pub(crate) fn error_info(rejection: &Rejection) -> rpc::ErrorInfo {
    let texts = [("field", rejection.field.clone()), ("message", rejection.to_string())];
    rpc::ErrorInfo {
        reason: rejection.reason(),
        domain: ERROR_DOMAIN.to_owned(),
        metadata: texts.map(|(key, text)| (key.to_owned(), text)).into(),
    }
}

impl V2Codec {
    /// Appends one message. It can't fail: the buffer grows.
    pub fn write(&self, item: &Outgoing, dst: &mut impl BufMut) {
        match item {
            Outgoing::Offer { nonce, change, versioned } => {
                self.write_offer(*nonce, change, *versioned, dst);
            }
            other => {
                let request = self.request(other);
                let message = pb::BidirectionalStream { request: Some(request), response: None };
                message.encode_raw_to(dst);
            }
        }
    }

    fn request(&self, item: &Outgoing) -> pb::StreamRequest {
        let context = self.context.expose().to_owned();
        let base = pb::StreamRequest { context, ..pb::StreamRequest::default() };
        match item {
            Outgoing::Subscribe { control } => pb::StreamRequest {
                resource_url: self.resource_url.to_owned(),
                control: control.clone(),
                ..base
            },
            Outgoing::Control(control) => pb::StreamRequest { control: Some(control.clone()), ..base },
            Outgoing::Answer { nonce, answer } => pb::StreamRequest {
                resource_url: self.resource_url.to_owned(),
                response_nonce: nonce.clone(),
                status: (!is_on(SeededBug::AckWithoutStatus)).then(|| status(answer)),
                ..base
            },
            Outgoing::Offer { .. } => base,
        }
    }

    fn write_offer(&self, nonce: u64, change: &Change, versioned: bool, dst: &mut impl BufMut) {
        let url = self.resource_url;
        let offer = &change.offer;
        let nonce = nonce.to_string();
        let context = self.context.expose();
        let operation = if change.deleted {
            pb::stream_response::Operation::Delete
        } else {
            pb::stream_response::Operation::Upsert
        };
        let operation = operation as u64;
        let any = field_len(1, url.len()) + field_len(2, offer.value.len());
        let context_len = if context.is_empty() { 0 } else { field_len(6, context.len()) };
        // Entry: only the version, which is never 0.
        let entry = key_len(1) + encoded_len_varint(change.version);
        let entry_len = if versioned { field_len(ENTRY, entry) } else { 0 };
        let response = field_len(1, nonce.len())
            + field_len(2, url.len())
            + field_len(3, offer.key.len())
            + field_len(4, any)
            + key_len(5)
            + encoded_len_varint(operation)
            + context_len
            + entry_len;
        put_header(2, response, dst);
        put_field(1, nonce.as_bytes(), dst);
        put_field(2, url.as_bytes(), dst);
        put_field(3, offer.key.as_bytes(), dst);
        put_header(4, any, dst);
        put_field(1, url.as_bytes(), dst);
        put_field(2, &offer.value, dst);
        encode_key(5, WireType::Varint, dst);
        encode_varint(operation, dst);
        if context_len > 0 {
            put_field(6, context.as_bytes(), dst);
        }
        if versioned {
            put_header(ENTRY, entry, dst);
            encode_key(1, WireType::Varint, dst);
            encode_varint(change.version, dst);
        }
    }
}

pub(super) fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

pub(super) fn put_header(tag: u32, len: usize, dst: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, dst);
    encode_varint(len as u64, dst);
}

pub(super) fn put_field(tag: u32, bytes: &[u8], dst: &mut impl BufMut) {
    put_header(tag, bytes.len(), dst);
    dst.put_slice(bytes);
}

trait EncodeRawTo {
    fn encode_raw_to(&self, dst: &mut impl BufMut);
}

impl EncodeRawTo for pb::BidirectionalStream {
    fn encode_raw_to(&self, dst: &mut impl BufMut) {
        dst.put_slice(&self.encode_to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hamlet_core::view::Offer;
    use std::sync::Arc;

    fn codec(context: &str) -> V2Codec {
        let resource_url = super::super::service::TYPE_URL;
        V2Codec { resource_url, context: Secret::new(context), message_bytes: 65_536 }
    }

    fn written(codec: &V2Codec, item: &Outgoing) -> Vec<u8> {
        let mut out = vec![];
        codec.write(item, &mut out);
        out
    }

    #[test]
    fn the_offer_writer_agrees_with_the_message_definition() {
        for (context, deleted) in [("", false), ("secret", true)] {
            let offer = Arc::new(Offer::new("t", "ledger", Bytes::from_static(b"value")));
            let change = Change { version: 7, offer, deleted, fresh: true };
            let bytes = written(&codec(context), &Outgoing::Offer { nonce: 42, change, versioned: deleted });
            let message = pb::BidirectionalStream::decode(&bytes[..]).unwrap();
            let response = message.response.unwrap();
            assert_eq!(message.request, None);
            assert_eq!(response.nonce, "42");
            assert_eq!(response.resource_id, "ledger");
            assert_eq!(response.resource.as_ref().unwrap().value, Bytes::from_static(b"value"));
            assert_eq!(response.operation, if deleted { 2 } else { 1 });
            assert_eq!(response.context, context);
            let again = pb::BidirectionalStream { request: None, response: Some(response) };
            assert_eq!(again.encode_to_vec(), bytes);
        }
    }

    #[test]
    fn an_acknowledgement_has_a_status_that_is_present_and_empty() {
        let ack = Outgoing::Answer { nonce: "n".into(), answer: Ok(()) };
        let bytes = written(&codec(""), &ack);
        assert!(bytes.windows(2).any(|w| w == [0x1a, 0x00]));
    }

    #[test]
    fn a_refusal_carries_code_rule_field_and_reason() {
        let rejection = Rejection::new(RejectionCode::Policy, "name-outside-suffixes", "fqdn", "rename it");
        let nack = Outgoing::Answer { nonce: "n".into(), answer: Err(rejection) };
        let bytes = written(&codec(""), &nack);
        let status = pb::BidirectionalStream::decode(&bytes[..]).unwrap().request.unwrap().status.unwrap();
        assert_eq!(status.code, 7);
        assert_eq!(status.message, "name-outside-suffixes: fqdn: rename it");
        let info = rpc::ErrorInfo::decode(status.details[0].value.clone()).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NAME_OUTSIDE_SUFFIXES", "hamlet.dev"));
    }

    #[test]
    fn of_an_oversized_message_only_what_its_refusal_needs_is_built() {
        let resource = Any { type_url: "t".into(), value: vec![7; 60_000].into() };
        let response = pb::StreamResponse {
            nonce: "n".into(),
            resource_url: "u".into(),
            resource_id: "k".into(),
            resource: Some(resource),
            operation: 1,
            context: "c".into(),
            ..pb::StreamResponse::default()
        };
        let status = rpc::Status { code: 3, message: "m".into(), details: vec![Any::default(); 10_000] };
        let request = pb::StreamRequest {
            response_nonce: "m".into(),
            status: Some(status),
            ..pb::StreamRequest::default()
        };
        let message = pb::BidirectionalStream { request: Some(request), response: Some(response) };
        let bytes = message.encode_to_vec();
        let (fits, over) =
            (read(&bytes[..], bytes.len()).unwrap(), read(&bytes[..], bytes.len() - 1).unwrap());
        assert_eq!(fits, incoming(message, bytes.len()));
        let whole = fits.offer.unwrap();
        assert_eq!(over.offer.unwrap(), IncomingOffer { resource: None, ..whole });
        assert_eq!(over.request, fits.request);
        assert!(read(&bytes[1..], 10).is_err());
    }

    #[test]
    fn a_context_is_never_printed() {
        assert_eq!(format!("{:?}", codec("secret").context), "***");
    }
}
