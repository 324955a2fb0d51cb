//! The messages of both versions, written by hand from the protocol's table of fields, so that a
//! fault in Hamlet's own codec can't hide itself. No behaviour; [`crate::speech`] gives meaning.
//!
//! Checked against bytes that Python's protobuf wrote (`tests/golden.rs`).

#![allow(missing_docs, reason = "the names and numbers are those of the protocol's section 2")]

use std::collections::BTreeMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `federation.resourcediscovery.v1alpha1` and `federation.types.v1alpha1`.
pub mod v1 {
    use super::{Any, BTreeMap, Message, Status};

    #[derive(Clone, PartialEq, Message)]
    pub struct StreamRequest {
        #[prost(string, tag = "1")]
        pub resource_url: String,
        #[prost(string, tag = "2")]
        pub response_nonce: String,
        #[prost(message, optional, tag = "3")]
        pub status: Option<Status>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct StreamResponse {
        #[prost(string, tag = "1")]
        pub nonce: String,
        #[prost(string, tag = "2")]
        pub resource_url: String,
        #[prost(message, optional, tag = "3")]
        pub resource: Option<Any>,
        #[prost(int32, tag = "4")]
        pub operation: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Endpoint {
        #[prost(string, tag = "1")]
        pub address: String,
        #[prost(uint32, tag = "2")]
        pub port: u32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct FederatedService {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub description: String,
        #[prost(string, repeated, tag = "3")]
        pub tags: Vec<String>,
        #[prost(btree_map = "string, string", tag = "4")]
        pub labels: BTreeMap<String, String>,
        #[prost(string, tag = "5")]
        pub fqdn: String,
        #[prost(string, tag = "6")]
        pub id: String,
        #[prost(string, tag = "7")]
        pub san: String,
        #[prost(string, repeated, tag = "8")]
        pub protocols: Vec<String>,
        #[prost(message, repeated, tag = "9")]
        pub endpoints: Vec<Endpoint>,
    }
}

/// `federation.resourcediscovery.v1alpha2` and `federation.types.v1alpha2`.
pub mod v2 {
    use super::{Any, BTreeMap, Message, Status};

    #[derive(Clone, PartialEq, Message)]
    pub struct StreamRequest {
        #[prost(string, tag = "1")]
        pub resource_url: String,
        #[prost(string, tag = "2")]
        pub response_nonce: String,
        #[prost(message, optional, tag = "3")]
        pub status: Option<Status>,
        #[prost(string, tag = "4")]
        pub context: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct StreamResponse {
        #[prost(string, tag = "1")]
        pub nonce: String,
        #[prost(string, tag = "2")]
        pub resource_url: String,
        #[prost(string, tag = "3")]
        pub resource_id: String,
        #[prost(message, optional, tag = "4")]
        pub resource: Option<Any>,
        #[prost(int32, tag = "5")]
        pub operation: i32,
        #[prost(string, tag = "6")]
        pub context: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct BidirectionalStream {
        #[prost(message, optional, tag = "1")]
        pub request: Option<StreamRequest>,
        #[prost(message, optional, tag = "2")]
        pub response: Option<StreamResponse>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Endpoint {
        #[prost(string, tag = "1")]
        pub address: String,
        #[prost(uint32, tag = "2")]
        pub port: u32,
        #[prost(string, repeated, tag = "3")]
        pub labels: Vec<String>,
        #[prost(string, tag = "4")]
        pub description: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Instance {
        #[prost(string, tag = "1")]
        pub id: String,
        #[prost(string, tag = "2")]
        pub protocol: String,
        #[prost(btree_map = "string, string", tag = "3")]
        pub metadata: BTreeMap<String, String>,
        #[prost(string, repeated, tag = "4")]
        pub endpoint_selector: Vec<String>,
        #[prost(string, tag = "5")]
        pub description: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct FederatedService {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub description: String,
        #[prost(string, repeated, tag = "3")]
        pub tags: Vec<String>,
        #[prost(btree_map = "string, string", tag = "4")]
        pub labels: BTreeMap<String, String>,
        #[prost(string, tag = "5")]
        pub fqdn: String,
        #[prost(message, repeated, tag = "9")]
        pub endpoints: Vec<Endpoint>,
        #[prost(string, repeated, tag = "10")]
        pub sans: Vec<String>,
        #[prost(message, repeated, tag = "11")]
        pub instances: Vec<Instance>,
    }
}

/// The numbers of the fields of one message, each with its bytes if it has a length; `None` if the
/// bytes are no message. For what a struct would hide: fields that nobody knows.
pub fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut found = vec![];
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let content = match key & 7 {
            0 => {
                varint(&mut bytes)?;
                &bytes[..0]
            }
            1 => take(&mut bytes, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                take(&mut bytes, length)?
            }
            5 => take(&mut bytes, 4)?,
            _ => return None,
        };
        found.push((key >> 3, content));
    }
    Some(found)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// One field with a length, as bytes: for messages that no struct would write.
pub fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    prost::encoding::encode_varint(u64::from(number) << 3 | 2, &mut bytes);
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_found_and_what_is_no_message_is_said_to_be_none() {
        let mut bytes = Status { code: 3, message: "m".into(), details: vec![] }.encode_to_vec();
        bytes.extend(field(1999, b"xyz"));
        assert_eq!(fields(&bytes).unwrap(), [(1, &b""[..]), (2, &b"m"[..]), (1999, &b"xyz"[..])]);
        assert_eq!(fields(&bytes[..bytes.len() - 1]), None);
        assert_eq!(fields(&[0x0f]), None);
        assert_eq!(fields(&[0xff; 12]), None);
    }
}
