//! The one call of the Workload API that is made here, and its messages. *Hardened to the local
//! platform.*
//!
//! The client of the `spiffe` crate drops the revocation lists, so the call is ours; what a message
//! holds of identities and CAs is read by that crate. It keeps nothing and decides nothing.
//! Invariants: no protobuf type leaves this file; a message that lacks what it must have, or with an
//! identity or a bundle that can't be read, is an error as a whole (Workload API, 4.5); lists are
//! handed on unread, and no key is printed.

use std::collections::HashMap;
use std::sync::Arc;

use futures::Stream;
use hamlet_core::rejection::one_line;
use spiffe::transport::{Endpoint, TransportError};
use spiffe::{
    SpiffeIdError, TrustDomain, X509Bundle, X509BundleError, X509BundleSet, X509Svid, X509SvidError,
};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Most bytes of one message. A larger one is not read, and what was said last stays.
pub const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most bytes that are shown of what the other side says of an error.
const STATUS_TEXT_MAX: usize = 256;
const CALL: &str = "/SpiffeWorkloadAPI/FetchX509SVID";

/// `X509SVIDRequest`: empty.
#[derive(prost::Message)]
struct SvidRequest {}

/// `X509SVIDResponse`.
#[derive(prost::Message)]
#[prost(skip_debug)]
struct SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    crl: Vec<Vec<u8>>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(prost::Message)]
#[prost(skip_debug)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

/// What one message says.
pub(super) struct Told {
    /// Our identities, the default one first.
    pub(super) svids: Vec<X509Svid>,
    /// The CAs of our own trust domain and of others.
    pub(super) bundles: X509BundleSet,
    /// Revocation lists in DER, as they came.
    pub(super) crls: Vec<Vec<u8>>,
}

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// Nobody can be reached there.
    #[error(transparent)]
    Unreachable(#[from] TransportError),
    /// The other side, or what is between, ended the call.
    #[error("{:?}: {}", .0.code(), one_line(.0.message(), STATUS_TEXT_MAX))]
    Ended(Box<Status>),
    /// A mandatory field is empty.
    #[error("its message lacks {0}")]
    Lacks(&'static str),
    /// An identity can't be read.
    #[error("an identity in its message can't be used: {0}")]
    Svid(#[from] X509SvidError),
    /// A bundle can't be read.
    #[error("a bundle in its message can't be used: {0}")]
    Bundle(#[from] X509BundleError),
    /// A bundle is of no trust domain.
    #[error("a bundle in its message is of no trust domain: {0}")]
    Domain(#[from] SpiffeIdError),
}

impl From<Status> for WireError {
    fn from(status: Status) -> WireError {
        WireError::Ended(Box::new(status))
    }
}

impl WireError {
    /// What the other side said, if it ended the call.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            WireError::Ended(status) => Some(status.code()),
            _ => None,
        }
    }
}

/// A connection to a Workload API.
pub(super) struct Caller(Grpc<Channel>);

impl Caller {
    /// Connects; takes as long as that takes.
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Caller, WireError> {
        let channel = spiffe::transport::connect(endpoint).await?;
        Ok(Caller(Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)))
    }

    /// Its messages, as long as it sends some.
    pub(super) async fn messages(
        mut self,
    ) -> Result<impl Stream<Item = Result<Told, WireError>> + Send + 'static, WireError> {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(SvidRequest {});
        // Without it a Workload API must refuse (Workload Endpoint, 6).
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let codec = ProstCodec::<SvidRequest, SvidResponse>::default();
        let answer = self.0.server_streaming(request, PathAndQuery::from_static(CALL), codec).await?;
        // The connection lives as long as what it carries.
        let state = (self, answer.into_inner());
        Ok(Box::pin(futures::stream::unfold(state, |(caller, mut messages)| async move {
            let told = match messages.message().await {
                Ok(message) => told(message?),
                Err(status) => Err(status.into()),
            };
            Some((told, (caller, messages)))
        })))
    }
}

fn told(message: SvidResponse) -> Result<Told, WireError> {
    if message.svids.is_empty() {
        return Err(WireError::Lacks("X509SVIDResponse.svids"));
    }
    let (mut svids, mut bundles) = (Vec::new(), X509BundleSet::new());
    for svid in message.svids {
        for (empty, field) in [
            (svid.spiffe_id.is_empty(), "X509SVID.spiffe_id"),
            (svid.x509_svid.is_empty(), "X509SVID.x509_svid"),
            (svid.x509_svid_key.is_empty(), "X509SVID.x509_svid_key"),
            (svid.bundle.is_empty(), "X509SVID.bundle"),
        ] {
            if empty {
                return Err(WireError::Lacks(field));
            }
        }
        let hint = (!svid.hint.is_empty()).then(|| Arc::from(svid.hint.as_str()));
        let read = X509Svid::parse_from_der_with_hint(&svid.x509_svid, &svid.x509_svid_key, hint)?;
        // The id in the certificate counts, not the one beside it.
        let domain = read.spiffe_id().trust_domain().clone();
        bundles.add_bundle(X509Bundle::parse_from_der(domain, &svid.bundle)?);
        svids.push(read);
    }
    for (domain, ders) in message.federated_bundles {
        bundles.add_bundle(X509Bundle::parse_from_der(TrustDomain::try_from(domain)?, &ders)?);
    }
    Ok(Told { svids, bundles, crls: message.crl })
}
