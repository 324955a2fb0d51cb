//! What is required of a consumer, and the offers of a good owner to it.

use crate::cases::draft::{Expect, offered};
use crate::kit::{Kit, Stop, Verdict, failed};
use crate::registry::{Case, Requirement};
use crate::speech::{Operation, Said, Version};
use crate::stream::{Answer, Heard, Stream};

/// Of every consumer.
pub(crate) const REQUIREMENTS: &[Requirement] = &[
    requirement!("CON-001", Both, Must, "1", "speaks only with peers that mutual TLS has proven"),
    requirement!("CON-002", Both, Should, "1, 4", "uses TLS 1.3 and nothing older"),
    requirement!(
        "CON-003",
        Both,
        Must,
        "2",
        "calls (or serves) the method's path as gRPC does, and doesn't hammer on who refuses"
    ),
    requirement!(
        "CON-004",
        Both,
        Must,
        "2, 3.1, 4",
        "says its initial request first, and waits for nothing before it"
    ),
    requirement!(
        "CON-005",
        Both,
        Must,
        "2, 4",
        "an ACK repeats the nonce, whatever it is, and has a status that is present, with code 0"
    ),
    requirement!(
        "CON-006",
        Both,
        Must,
        "3.2, 4",
        "gives each offer one answer, in order of receipt, also to who doesn't wait"
    ),
    requirement!(
        "CON-007",
        Both,
        Must,
        "2",
        "a NACK repeats the nonce and has a code other than 0 and a text"
    ),
    requirement!(
        "CON-008",
        Both,
        Must,
        "3.2, 5",
        "refuses what it can't decode or doesn't know, and never acknowledges it"
    ),
    requirement!("CON-009", Both, Must, "2.3, 2.4, 3.6", "refuses a service without its required fields"),
    requirement!(
        "CON-010",
        Both,
        Should,
        "5",
        "refuses with the code that says why: INVALID_ARGUMENT, UNIMPLEMENTED"
    ),
    requirement!(
        "CON-011",
        Both,
        Must,
        "1, 4",
        "operations are idempotent: any may be repeated, or come for a service it doesn't have"
    ),
    requirement!("CON-012", Both, Must, "5", "a refusal stops nothing but its own service"),
    requirement!(
        "CON-013",
        Both,
        Must,
        "2.4, 4, 6",
        "takes what real peers send: unknown fields, odd cases, all that is optional"
    ),
    requirement!(
        "CON-014",
        Both,
        Must,
        "4; T7",
        "answers every message under 4 MiB, and survives larger ones"
    ),
    requirement!(
        "CON-015",
        Both,
        Must,
        "5; T11",
        "takes messages however they are cut, and never acknowledges what is none"
    ),
    requirement!("CON-016", Both, Must, "4", "goes on reading while it writes, and writing while it reads"),
    requirement!("CON-017", Both, Must, "2, 4", "says nothing but its initial request and answers"),
    requirement!("CON-018", Both, Should, "5", "refuses names and addresses that no other mesh may give it"),
    requirement!("CON-019", Both, Must, "3.4", "comes back after an unexpected break, and not too fast"),
    requirement!("CON-020", Both, Must, "3.4", "takes the full state again on a new stream"),
    requirement!(
        "CON-021",
        Two,
        Must,
        "4",
        "takes nothing from who doesn't show the configured context value"
    ),
    requirement!("CON-022", Two, Must, "4", "repeats the context value in every message"),
    requirement!("CON-023", Two, Must, "6; extensions 1", "sends no extension to a peer that said no hello"),
    requirement!(
        "CON-024",
        Two,
        Must,
        "4, 5",
        "takes resource_id as the key, whatever it holds, and deletes by it alone"
    ),
    requirement!(
        "CON-025",
        Two,
        Must,
        "5; T11",
        "messages with both halves or none, and requests it didn't expect, don't end the stream"
    ),
    requirement!(
        "CON-026",
        One,
        Must,
        "2.1, 4",
        "keeps the numbers of v1alpha1 apart: 2 is UPDATE, 3 is DELETE"
    ),
];

/// gRPC status codes.
const INVALID_ARGUMENT: i32 = 3;
const UNIMPLEMENTED: i32 = 12;

/// One offer each.
pub(crate) const CASES: &[Case] = &[
    case!("CON-004", Both, Happy, Nothing, "the first message", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        if k.version() == Version::V1alpha2 && k.dials() {
            s.say(&s.initial());
        }
        s.start();
        let ask = s.next_ask(k.deadline()).await.map_err(|h| Stop::Failed(h.to_string()))?;
        if ask.is_initial() && ask.resource_url == k.version().type_url() {
            return Ok(ask.resource_url);
        }
        failed(format!(
            "resource_url {:?}, nonce {:?}, status {:?}",
            ask.resource_url,
            ask.nonce,
            ask.status.is_some()
        ))
    })),
    case!("CON-005", Both, Happy, Nothing, "the ACK of a good offer", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let offer = k.good_offer(&s);
        s.say(&Said::offer(offer.clone()));
        match s.answer_to(&offer.nonce, k.deadline()).await {
            Answer::Ack(ask) => {
                let text = ask.status.map(|s| s.message).unwrap_or_default();
                if text.is_empty() {
                    Ok("nonce repeated, status present and empty".to_owned())
                } else {
                    failed(format!("a text in an ACK: {text:?}"))
                }
            }
            other => failed(other.to_string()),
        }
    })),
    case!("CON-005", Both, Hostile, Nothing, "an empty nonce", |k| {
        offered(k, Expect::Ack, |d| d.offer.nonce.clear())
    }),
    case!("CON-005", Both, Hostile, Nothing, "a nonce of blanks and letters of other scripts", |k| {
        offered(k, Expect::Ack, |d| d.offer.nonce = "  ñ 漢 \u{1F600}\t".to_owned())
    }),
    case!("CON-005", Both, Hostile, Nothing, "a nonce of 1,000 bytes", |k| {
        offered(k, Expect::Ack, |d| d.offer.nonce = "n".repeat(1_000))
    }),
    case!("CON-007", Both, Happy, Nothing, "a good offer isn't refused", |k| offered(k, Expect::Ack, |_| {})),
    case!("CON-007", Both, Hostile, Nothing, "the NACK of a service without a name", |k| {
        offered(k, Expect::Nack, |d| d.service.fqdn.clear())
    }),
    case!("CON-007", Both, Hostile, Nothing, "the NACK of an offer with an empty nonce", |k| {
        offered(k, Expect::Nack, |d| {
            d.offer.nonce.clear();
            d.service.fqdn.clear();
        })
    }),
    case!("CON-008", Both, Happy, Nothing, "a good service is acknowledged", |k| offered(
        k,
        Expect::Ack,
        |_| {}
    )),
    case!("CON-008", Both, Hostile, Nothing, "a resource that doesn't decode", |k| {
        offered(k, Expect::Nack, |d| d.value = Some(vec![0xff; 30]))
    }),
    case!("CON-008", Both, Hostile, Nothing, "a service that is cut off", |k| {
        offered(k, Expect::Nack, |d| {
            let mut value = d.service.encode(d.version);
            value.truncate(value.len() - 3);
            d.value = Some(value);
        })
    }),
    case!("CON-008", Both, Hostile, Nothing, "a name that is not UTF-8", |k| {
        offered(k, Expect::Nack, |d| d.more = crate::wire::field(5, &[0xff, 0xfe, 0xc0]))
    }),
    case!("CON-008", Both, Hostile, Nothing, "no resource", |k| offered(k, Expect::Nack, |d| d.type_url =
        None)),
    case!("CON-008", Both, Hostile, Nothing, "an empty resource", |k| {
        offered(k, Expect::Nack, |d| d.value = Some(vec![]))
    }),
    case!("CON-008", Both, Hostile, Nothing, "a resource of another type than resource_url", |k| {
        offered(k, Expect::Nack, |d| {
            d.type_url = Some("type.googleapis.com/google.protobuf.Empty".to_owned())
        })
    }),
    case!("CON-008", Both, Hostile, Nothing, "a resource without a type", |k| {
        offered(k, Expect::Nack, |d| d.type_url = Some(String::new()))
    }),
    case!("CON-008", Both, Hostile, Nothing, "another resource_url than the stream's", |k| {
        offered(k, Expect::Nack, |d| {
            d.offer.resource_url = "type.googleapis.com/google.protobuf.Empty".to_owned();
            d.type_url = Some(d.offer.resource_url.clone());
        })
    }),
    case!("CON-008", Both, Hostile, Nothing, "operation 0", |k| offered(k, Expect::Nack, |d| d
        .offer
        .operation =
        0)),
    case!("CON-008", Both, Hostile, Nothing, "operation 4", |k| offered(k, Expect::Nack, |d| d
        .offer
        .operation =
        4)),
    case!("CON-008", Two, Hostile, Nothing, "operation 3, which v1alpha1 has", |k| {
        offered(k, Expect::Nack, |d| d.offer.operation = 3)
    }),
    case!("CON-008", Both, Hostile, Nothing, "operation -1", |k| offered(k, Expect::Nack, |d| d
        .offer
        .operation =
        -1)),
    case!("CON-009", Both, Happy, Nothing, "nothing but required fields", |k| {
        offered(k, Expect::Ack, |d| d.service.description.clear())
    }),
    case!("CON-009", Both, Hostile, Nothing, "no id", |k| offered(k, Expect::Nack, |d| d
        .service
        .key
        .clear())),
    case!("CON-009", Both, Hostile, Nothing, "no fqdn", |k| offered(k, Expect::Nack, |d| d
        .service
        .fqdn
        .clear())),
    case!("CON-009", Both, Hostile, Nothing, "no SAN", |k| offered(k, Expect::Nack, |d| d
        .service
        .sans
        .clear())),
    case!("CON-009", Both, Hostile, Nothing, "no protocol (no instance)", |k| {
        offered(k, Expect::Nack, |d| d.service.protocols.clear())
    }),
    case!("CON-009", Both, Hostile, Nothing, "no endpoint", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints.clear())
    }),
    case!("CON-009", Both, Hostile, Nothing, "an endpoint without address", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints[0].0.clear())
    }),
    case!("CON-009", Both, Hostile, Nothing, "an endpoint with port 0", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints[0].1 = 0)
    }),
    case!("CON-009", Both, Hostile, Nothing, "an endpoint with port 70000", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints[0].1 = 70_000)
    }),
    case!("CON-010", Both, Happy, Nothing, "a good service has code 0", |k| offered(k, Expect::Ack, |_| {})),
    case!("CON-010", Both, Hostile, Nothing, "a missing field: INVALID_ARGUMENT", |k| {
        offered(k, Expect::Code(INVALID_ARGUMENT), |d| d.service.fqdn.clear())
    }),
    case!("CON-010", Both, Hostile, Nothing, "an undecodable resource: INVALID_ARGUMENT", |k| {
        offered(k, Expect::Code(INVALID_ARGUMENT), |d| d.value = Some(vec![0xff; 30]))
    }),
    case!("CON-010", Both, Hostile, Nothing, "an unknown operation: UNIMPLEMENTED", |k| {
        offered(k, Expect::Code(UNIMPLEMENTED), |d| d.offer.operation = 99)
    }),
    case!("CON-011", Both, Happy, Nothing, "created, updated, deleted", |k| Box::pin(async move {
        life(k, &[Operation::Create, Operation::Update, Operation::Delete]).await
    })),
    case!("CON-011", Both, Hostile, Nothing, "an update of what was never created", |k| {
        Box::pin(async move { life(k, &[Operation::Update]).await })
    }),
    case!("CON-011", Both, Hostile, Nothing, "a DELETE of what was never created", |k| {
        Box::pin(async move { life(k, &[Operation::Delete]).await })
    }),
    case!("CON-011", Both, Hostile, Nothing, "created three times, deleted twice, created again", |k| {
        Box::pin(async move {
            use Operation::{Create, Delete};
            life(k, &[Create, Create, Create, Delete, Delete, Create]).await
        })
    }),
    case!("CON-013", Both, Happy, Nothing, "all optional fields", |k| {
        offered(k, Expect::Ack, |d| {
            d.service.tags = vec!["prod".to_owned(), "blue".to_owned()];
            d.service.labels = vec![("team".to_owned(), "payments".to_owned())];
            d.service.description = "Bücher, 漢字".to_owned();
        })
    }),
    case!("CON-013", Both, Happy, Nothing, "two endpoints and two protocols", |k| {
        offered(k, Expect::Ack, |d| {
            let second = (d.service.endpoints[0].0.clone(), d.service.endpoints[0].1);
            d.service.endpoints.push(second);
            d.service.protocols = vec!["HTTP".to_owned(), "GRPC".to_owned()];
        })
    }),
    case!("CON-013", Both, Hostile, Nothing, "fields from 1000 on in the message", |k| {
        offered(k, Expect::Ack, |d| d.unknown = true)
    }),
    case!("CON-013", Both, Hostile, Nothing, "an unknown field in the service", |k| {
        offered(k, Expect::Ack, |d| d.more = crate::wire::field(crate::speech::UNKNOWN_FIELD, b"?"))
    }),
    case!("CON-013", Both, Hostile, Nothing, "a protocol in lower case", |k| {
        offered(k, Expect::Ack, |d| d.service.protocols = vec!["https".to_owned()])
    }),
    case!("CON-013", Both, Hostile, Nothing, "a SAN written as URI:spiffe://...", |k| {
        offered(k, Expect::Ack, |d| {
            let san = format!("URI:{}", d.service.sans[0]);
            d.service.sans = vec![san];
        })
    }),
    case!("CON-013", Two, Hostile, Nothing, "metadata keys in lower case", |k| {
        offered(k, Expect::Ack, |d| {
            for (key, _) in &mut d.service.metadata {
                *key = key.to_lowercase();
            }
        })
    }),
    case!("CON-013", Two, Hostile, Nothing, "metadata keys that nobody knows", |k| {
        offered(k, Expect::Ack, |d| d.service.metadata.push(("x-vendor".to_owned(), "kept".to_owned())))
    }),
    case!("CON-013", Two, Hostile, Nothing, "an instance whose selector matches no endpoint", |k| {
        offered(k, Expect::Ack, |d| d.service.selector = vec!["nowhere".to_owned()])
    }),
    case!("CON-018", Both, Happy, Nothing, "a name and an address it may be given", |k| {
        offered(k, Expect::Ack, |_| {})
    }),
    case!("CON-018", Both, Hostile, Nothing, "localhost", |k| {
        offered(k, Expect::Nack, |d| d.service.fqdn = "localhost".to_owned())
    }),
    case!("CON-018", Both, Hostile, Nothing, "a name under cluster.local", |k| {
        offered(k, Expect::Nack, |d| d.service.fqdn = "kubernetes.default.svc.cluster.local".to_owned())
    }),
    case!("CON-018", Both, Hostile, Nothing, "a link-local address", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints[0].0 = "169.254.169.254".to_owned())
    }),
    case!("CON-018", Both, Hostile, Nothing, "a multicast address", |k| {
        offered(k, Expect::Nack, |d| d.service.endpoints[0].0 = "224.0.0.1".to_owned())
    }),
    case!("CON-024", Two, Happy, Nothing, "resource_id is the name", |k| offered(k, Expect::Ack, |_| {})),
    case!("CON-024", Two, Hostile, Nothing, "resource_id is the fqdn", |k| {
        offered(k, Expect::Ack, |d| d.offer.resource_id = d.service.fqdn.clone())
    }),
    case!("CON-024", Two, Hostile, Nothing, "resource_id is something else", |k| {
        offered(k, Expect::Ack, |d| d.offer.resource_id = format!("x-{}", d.service.key))
    }),
    case!("CON-024", Two, Hostile, Nothing, "no resource_id", |k| {
        offered(k, Expect::Nack, |d| d.offer.resource_id.clear())
    }),
    case!("CON-024", Two, Hostile, Nothing, "a resource_id of 4 KiB", |k| {
        offered(k, Expect::Either, |d| d.offer.resource_id = "k".repeat(4 << 10))
    }),
    case!("CON-024", Two, Hostile, Nothing, "a DELETE by resource_id alone", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let offer = k.good_offer(&s);
        acked(k, &mut s, Said::offer(offer.clone())).await?;
        let mut delete = offer;
        delete.nonce += "-gone";
        delete.operation = k.version().operation(Operation::Delete);
        delete.resource = None;
        acked(k, &mut s, Said::offer(delete)).await?;
        Ok("ACK".to_owned())
    })),
    case!("CON-026", One, Happy, Nothing, "CREATE (1), UPDATE (2), DELETE (3)", |k| Box::pin(async move {
        life(k, &[Operation::Create, Operation::Update, Operation::Delete]).await
    })),
    case!("CON-026", One, Hostile, Nothing, "a DELETE without the service is answered", |k| {
        offered(k, Expect::Either, |d| {
            d.offer.operation = 3;
            d.type_url = None;
        })
    }),
    case!("CON-026", One, Hostile, Nothing, "UPDATE (2) doesn't delete: it is updated again", |k| Box::pin(
        async move {
            use Operation::{Create, Update};
            life(k, &[Create, Update, Update, Create]).await
        }
    )),
];

/// Says something that must be acknowledged.
pub(crate) async fn acked(k: &Kit, stream: &mut Stream, said: Said) -> Result<(), Stop> {
    let nonce = said.offer.as_ref().map(|o| o.nonce.clone()).unwrap_or_default();
    stream.say(&said);
    match stream.answer_to(&nonce, k.deadline()).await {
        Answer::Ack(_) => Ok(()),
        other => failed(other.to_string()),
    }
}

/// The life of one service: each step is acknowledged, with a text that differs each time.
async fn life(k: &mut Kit, steps: &[Operation]) -> Verdict {
    let mut stream = k.publishing().await?;
    let mut service = k.service();
    for (at, operation) in steps.iter().enumerate() {
        service.description = format!("version {at}");
        let number = k.version().operation(*operation);
        let value = service.encode(k.version());
        let offer = stream.offer(&format!("{}-{at}", service.key), &service.key, number, value);
        stream.say(&Said::offer(offer.clone()));
        match stream.answer_to(&offer.nonce, k.deadline()).await {
            Answer::Ack(_) => {}
            Answer::Not(Heard::Nothing) => {
                return failed(format!("step {}, operation {number}: no answer", at + 1));
            }
            other => return failed(format!("step {}, operation {number}: {other}", at + 1)),
        }
    }
    k.lives(&mut stream).await?;
    Ok(format!("{} ACKs", steps.len()))
}
