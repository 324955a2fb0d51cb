//! One offer in the making, which a case spoils in one place.

use futures::future::BoxFuture;

use crate::kit::{Kit, Verdict, failed};
use crate::speech::{Offer, Operation, Said, Service, Version};
use crate::stream::{Answer, Heard, Stream};
use crate::wire::Any;

/// What the consumer must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It takes it.
    Ack,
    /// It refuses it, with a code and a text.
    Nack,
    /// It refuses it with this code.
    Code(i32),
    /// One or the other.
    Either,
}

/// An offer of a good service, until it is changed.
pub(crate) struct Draft {
    pub(crate) version: Version,
    pub(crate) service: Service,
    pub(crate) offer: Offer,
    /// Instead of the service's bytes.
    pub(crate) value: Option<Vec<u8>>,
    /// After the service's bytes.
    pub(crate) more: Vec<u8>,
    /// The type of the resource; `None` leaves the resource out.
    pub(crate) type_url: Option<String>,
    /// Adds fields from 1000 on to the message.
    pub(crate) unknown: bool,
}

impl Draft {
    fn new(k: &mut Kit, stream: &Stream) -> Draft {
        let service = k.service();
        let create = k.version().operation(Operation::Create);
        let offer = stream.offer(&format!("n-{}", service.key), &service.key, create, vec![]);
        Draft {
            version: k.version(),
            service,
            offer,
            value: None,
            more: vec![],
            type_url: Some(k.version().type_url()),
            unknown: false,
        }
    }

    fn bytes(self) -> (String, Vec<u8>) {
        let Draft { version, service, offer, value, more, type_url, unknown } = self;
        let value = value.unwrap_or_else(|| [service.encode(version), more].concat());
        let offer = Offer { resource: type_url.map(|type_url| Any { type_url, value }), ..offer };
        let nonce = offer.nonce.clone();
        let said = Said::offer(offer);
        (nonce, if unknown { said.encode_with_unknown(version, b"?") } else { said.encode(version) })
    }
}

/// Offers one spoilt (or odd, but good) service, and a good one after it.
pub(crate) fn offered(k: &mut Kit, expect: Expect, change: fn(&mut Draft)) -> BoxFuture<'_, Verdict> {
    Box::pin(async move {
        let mut stream = k.publishing().await?;
        let mut draft = Draft::new(k, &stream);
        change(&mut draft);
        let (nonce, bytes) = draft.bytes();
        stream.bytes(&bytes);
        let answer = stream.answer_to(&nonce, k.deadline()).await;
        let good = match (&answer, expect) {
            (Answer::Ack(_), Expect::Ack | Expect::Either) => true,
            (Answer::Nack(_, text), Expect::Nack | Expect::Either) => !text.is_empty(),
            (Answer::Nack(code, _), Expect::Code(wanted)) => *code == wanted,
            _ => false,
        };
        if !good {
            return failed(format!("{answer} where {} was due", expect.name()));
        }
        k.lives(&mut stream).await?;
        Ok(format!("{answer}; the stream lives"))
    })
}

/// Offers something that may well end the stream, but neither be taken nor hurt.
pub(crate) fn survives(k: &mut Kit, change: fn(&mut Draft)) -> BoxFuture<'_, Verdict> {
    Box::pin(async move {
        let mut stream = k.publishing().await?;
        let mut draft = Draft::new(k, &stream);
        change(&mut draft);
        let (nonce, bytes) = draft.bytes();
        stream.bytes(&bytes);
        let answer = stream.answer_to(&nonce, k.deadline()).await;
        drop(stream);
        match &answer {
            Answer::Ack(_) | Answer::Bare => return failed(answer.to_string()),
            Answer::Not(Heard::Nothing) => return failed("neither an answer nor an end"),
            _ => {}
        }
        k.recovers().await?;
        Ok(format!("{answer}; it is there for new streams"))
    })
}

impl Expect {
    fn name(self) -> String {
        match self {
            Expect::Ack => "an ACK".to_owned(),
            Expect::Nack => "a NACK with a text".to_owned(),
            Expect::Code(code) => format!("a NACK {code}"),
            Expect::Either => "an answer".to_owned(),
        }
    }
}
