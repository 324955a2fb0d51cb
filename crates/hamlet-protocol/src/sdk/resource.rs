//! What can be a resource: any protobuf message, and the checked service of the published protocol.
//!
//! A resource is bytes under a key on the wire. What makes it one is its type URL, and that equal
//! values have equal bytes: the digests of both sides are over the bytes.

use std::fmt::Debug;

use bytes::Bytes;
use hamlet_core::{FederatedService, Rejection, RejectionCode};

use crate::dialect::service;

/// A protobuf message as resource: implement this for a generated type, and it is a [`Resource`].
///
/// `prost` encodes fields in the order of their numbers; a map field must be a `BTreeMap` (the
/// `btree_map` option of `prost-build`), because a `HashMap` would give equal messages different
/// bytes.
///
/// ```
/// #[derive(Clone, PartialEq, prost::Message)]
/// struct Price {
///     #[prost(string, tag = "1")]
///     currency: String,
///     #[prost(uint64, tag = "2")]
///     cents: u64,
/// }
///
/// impl hamlet_protocol::sdk::ProtobufResource for Price {
///     const TYPE_URL: &'static str = "type.googleapis.com/shop.v1.Price";
/// }
/// ```
pub trait ProtobufResource: prost::Message + Default + Clone + PartialEq + Debug + 'static {
    /// The type URL: `type.googleapis.com/` and the message's full name. Both ends must say the same.
    const TYPE_URL: &'static str;
}

/// Anything that can be federated. Implemented for every [`ProtobufResource`] and for
/// [`FederatedService`]; implement it yourself only for a type that isn't encoded by `prost`.
pub trait Resource: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// The type URL, which is also the stream's `resource_url`.
    const TYPE_URL: &'static str;

    /// The message's bytes: equal values must have equal bytes.
    ///
    /// # Errors
    /// Why it can't be offered under this key, with a hint.
    fn to_value(&self, key: &str) -> Result<Bytes, String>;

    /// Reads what a peer sent. The bytes are hostile: check sizes before building anything.
    ///
    /// # Errors
    /// The refusal that the owner is told.
    fn from_value(key: &str, value: &[u8]) -> Result<Self, Rejection>;
}

impl<M: ProtobufResource> Resource for M {
    const TYPE_URL: &'static str = <M as ProtobufResource>::TYPE_URL;

    fn to_value(&self, _key: &str) -> Result<Bytes, String> {
        Ok(self.encode_to_vec().into())
    }

    fn from_value(_key: &str, value: &[u8]) -> Result<M, Rejection> {
        M::decode(value).map_err(|error| {
            let message = format!("not a message of its type ({error}); check the encoder");
            Rejection::new(RejectionCode::Malformed, "resource-undecodable", "resource.value", message)
        })
    }
}

impl Resource for FederatedService {
    const TYPE_URL: &'static str = service::TYPE_URL;

    fn to_value(&self, key: &str) -> Result<Bytes, String> {
        if key != self.name.as_str() {
            return Err(format!("the key of a service is its name; use {}", self.name));
        }
        Ok(service::encode(self))
    }

    fn from_value(key: &str, value: &[u8]) -> Result<FederatedService, Rejection> {
        service::decode(key, value)
    }
}
