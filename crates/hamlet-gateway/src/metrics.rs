//! Metrics of the data plane; the field docs are the help texts. Labels are bounded: listener
//! and outcome, never a name.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            /// The label's text.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

label! {
    /// Which listener a connection came in by.
    ListenerKind {
        /// The TLS port for other meshes.
        Ingress = "ingress",
        /// A service's own listener for our workloads.
        Egress = "egress",
        /// The shared HTTP listener for our workloads.
        EgressHttp = "egress_http",
    }
}

label! {
    /// What became of a connection.
    Outcome {
        /// It was served and ended well.
        Served = "served",
        /// It was served and then failed or was reset.
        Broken = "broken",
        /// It was served and had no byte for the idle timeout.
        Idle = "idle",
        /// Its route was withdrawn and the drain ended.
        Drained = "drained",
        /// Its peer was no longer proven.
        Unproven = "unproven",
        /// The certificates that had proven its peer ended.
        Expired = "expired",
        /// Plaintext, or no ClientHello.
        NotTls = "not_tls",
        /// The client closed before its ClientHello was whole.
        HelloClosed = "hello_closed",
        /// A silent socket that was evicted.
        Evicted = "evicted",
        /// No handshake within the deadline.
        HandshakeTimeout = "handshake_timeout",
        /// No SNI, or one that is no name.
        NoSni = "no_sni",
        /// An SNI that nothing is served under.
        UnknownSni = "unknown_sni",
        /// The TLS handshake failed, for example for the client's certificate.
        HandshakeFailed = "handshake_failed",
        /// The client is a peer that the service isn't published to.
        NotPublished = "not_published",
        /// A limit was reached.
        Overloaded = "overloaded",
        /// No backend or endpoint could be reached.
        Unreachable = "unreachable",
        /// An endpoint didn't prove the identity that the offer names.
        Misidentified = "misidentified",
        /// The listener has no route any more.
        NoRoute = "no_route",
    }
}

/// Labels of a finished connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// Which listener.
    pub listener: ListenerKind,
    /// What became of it.
    pub outcome: Outcome,
}

/// Label of a listener alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabels {
    /// Which listener.
    pub listener: ListenerKind,
}

/// Labels of an HTTP response that we passed on or made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResponseLabels {
    /// Which listener.
    pub listener: ListenerKind,
    /// Status class: 1 to 5.
    pub class: u8,
}

/// The metrics of one gateway. Clones share their values.
#[derive(Debug, Clone, Default)]
pub struct GatewayMetrics {
    /// Connections ended, by listener and outcome.
    pub connections: Family<ConnectionLabels, Counter>,
    /// Connections open now, by listener.
    pub open: Family<ListenerLabels, Gauge>,
    /// Bytes received from the side that connected to us, by listener.
    pub received_bytes: Family<ListenerLabels, Counter>,
    /// Bytes sent to the side that connected to us, by listener.
    pub sent_bytes: Family<ListenerLabels, Counter>,
    /// HTTP responses, by listener and status class.
    pub responses: Family<ResponseLabels, Counter>,
    /// Endpoints of other meshes that failed to prove the identity their offer names.
    pub identity_alarms: Counter,
    /// Egress names with a listener of their own.
    pub egress_listening: Gauge,
    /// Egress names without a listener of their own.
    pub egress_not_listening: Gauge,
}

impl GatewayMetrics {
    /// Adds all metrics to `registry` under the prefix `gateway_`; the program's registry puts
    /// `hamlet_` in front.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register(
            "connections",
            "Connections ended, by listener and outcome",
            self.connections.clone(),
        );
        registry.register("open_connections", "Connections open now, by listener", self.open.clone());
        let help = "Bytes received from the side that connected to us, by listener";
        registry.register("received_bytes", help, self.received_bytes.clone());
        let help = "Bytes sent to the side that connected to us, by listener";
        registry.register("sent_bytes", help, self.sent_bytes.clone());
        registry.register(
            "http_responses",
            "HTTP responses, by listener and status class",
            self.responses.clone(),
        );
        let help = "Endpoints of other meshes that failed to prove the identity their offer names";
        registry.register("identity_alarms", help, self.identity_alarms.clone());
        let help = "Egress names with a listener of their own";
        registry.register("egress_listening", help, self.egress_listening.clone());
        let help = "Egress names without a listener of their own";
        registry.register("egress_not_listening", help, self.egress_not_listening.clone());
    }

    pub(crate) fn ended(&self, listener: ListenerKind, outcome: Outcome) {
        self.connections.get_or_create(&ConnectionLabels { listener, outcome }).inc();
    }

    pub(crate) fn responded(&self, listener: ListenerKind, status: http::StatusCode) {
        let class = (status.as_u16() / 100) as u8;
        self.responses.get_or_create(&ResponseLabels { listener, class }).inc();
    }

    pub(crate) fn open(&self, listener: ListenerKind) -> Gauge {
        self.open.get_or_create(&ListenerLabels { listener }).clone()
    }

    /// The counters for bytes received and sent.
    pub(crate) fn bytes(&self, listener: ListenerKind) -> (Counter, Counter) {
        let labels = ListenerLabels { listener };
        (self.received_bytes.get_or_create(&labels).clone(), self.sent_bytes.get_or_create(&labels).clone())
    }

    pub(crate) fn snapshot(&self) -> GatewayStats {
        let mut stats = GatewayStats { identity_alarms: self.identity_alarms.get(), ..Default::default() };
        for &listener in ListenerKind::ALL {
            stats.open.insert(listener, u64::try_from(self.open(listener).get()).unwrap_or_default());
            for &outcome in Outcome::ALL {
                // `get` creates nothing, so that the exposition has only what happened.
                let count = self.connections.get(&ConnectionLabels { listener, outcome }).map(|c| c.get());
                stats.ended.extend(count.map(|n| ((listener, outcome), n)));
            }
        }
        stats
    }
}

/// A snapshot of the counters, for status pages and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayStats {
    /// Connections open now.
    pub open: BTreeMap<ListenerKind, u64>,
    /// Connections ended since the start; what never happened is absent.
    pub ended: BTreeMap<(ListenerKind, Outcome), u64>,
    /// Endpoints of other meshes that failed to prove the identity their offer names.
    pub identity_alarms: u64,
}

impl GatewayStats {
    /// How many connections of `listener` ended with `outcome`.
    pub fn count(&self, listener: ListenerKind, outcome: Outcome) -> u64 {
        self.ended.get(&(listener, outcome)).copied().unwrap_or_default()
    }
}
