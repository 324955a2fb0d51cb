//! What is required of an owner, and the cases of a good consumer with it.

use std::collections::BTreeSet;

use crate::kit::{Kit, Stop, Verdict, failed, not_applicable};
use crate::registry::{Case, Requirement};
use crate::speech::{Offer, Operation, Said, Service, Version};
use crate::stream::{Heard, Stream};
use crate::wire::{Status, field};

/// Of every owner.
pub(crate) const REQUIREMENTS: &[Requirement] = &[
    requirement!("OWN-001", Both, Must, "1", "serves only peers that mutual TLS has proven"),
    requirement!("OWN-002", Both, Should, "1, 4", "offers TLS 1.3 and nothing older, and HTTP/2 by ALPN"),
    requirement!(
        "OWN-003",
        Both,
        Must,
        "2",
        "serves the method's path, and answers any other with UNIMPLEMENTED"
    ),
    requirement!("OWN-004", Both, Should, "2", "refuses what is no gRPC call, and headers without measure"),
    requirement!(
        "OWN-005",
        Both,
        Must,
        "5; T11",
        "takes messages however they are cut, and ends the stream with an error at what is none"
    ),
    requirement!("OWN-006", Both, Must, "4; T7", "bounds the size of a message, and survives larger ones"),
    requirement!("OWN-007", Both, Must, "6", "ignores fields it doesn't know"),
    requirement!("OWN-008", Both, Must, "3.1", "offers nothing before the initial request"),
    requirement!(
        "OWN-009",
        Both,
        Must,
        "3.1, 3.4",
        "answers the initial request with the full state, on every new stream"
    ),
    requirement!(
        "OWN-010",
        Both,
        Must,
        "1, 2",
        "every offer carries the whole service, in the type that was asked for, with all required fields"
    ),
    requirement!("OWN-011", Both, Should, "5", "gives every offer a nonce that is unique on its stream"),
    requirement!("OWN-012", Both, Must / Should, "3.2", "waits for the answer before the next offer"),
    requirement!("OWN-013", Both, Must, "2, 4", "takes an ACK in every form that real peers send"),
    requirement!("OWN-014", Both, Must, "4, 5", "an odd answer doesn't end the stream"),
    requirement!("OWN-015", Both, Must, "5", "a NACK stops nothing but its own service"),
    requirement!(
        "OWN-016",
        Both,
        Should,
        "5",
        "doesn't offer a refused version again, except after UNAVAILABLE"
    ),
    requirement!("OWN-017", Both, Must, "2, 5", "never offers anything to who asked for another type"),
    requirement!("OWN-018", Both, Should, "5", "ends a request for an unknown type with INVALID_ARGUMENT"),
    requirement!("OWN-019", Both, Must, "4, 5", "a second initial request doesn't end the stream"),
    requirement!(
        "OWN-020",
        Both,
        Must,
        "3.3",
        "sends every change as soon as it happens, and the latest state in the end"
    ),
    requirement!("OWN-021", Both, Must / Should, "4", "a DELETE carries the whole last version"),
    requirement!(
        "OWN-022",
        Both,
        Must,
        "3.4, 4",
        "however a consumer leaves, the next subscription is served"
    ),
    requirement!("OWN-023", Both, Must, "T14", "survives many streams and connections of one peer"),
    requirement!("OWN-024", Both, Must, "T12", "survives a consumer that reads nothing"),
    requirement!("OWN-025", Both, Should, "4", "sends response headers at once, not with the first offer"),
    requirement!("OWN-026", Two, Must, "4", "serves only who shows the configured context value"),
    requirement!("OWN-027", Two, Must, "4", "repeats the context value in every message"),
    requirement!("OWN-028", Two, Must, "6; extensions 1", "sends no extension to a peer that said no hello"),
    requirement!(
        "OWN-029",
        Two,
        Must,
        "2.2, 4",
        "every offer has a resource_id, the same for all versions of a service"
    ),
    requirement!(
        "OWN-030",
        Two,
        Must,
        "5; T11",
        "messages with both halves or none, and offers to an owner, don't end the stream"
    ),
    requirement!("OWN-031", Two, Must, "4", "goes on reading while it writes"),
];

/// With a consumer that does all as it should.
pub(crate) const CASES: &[Case] = &[
    case!("OWN-005", Both, Happy, Nothing, "the initial request, byte by byte", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        let bytes = crate::stream::framed(&s.initial().encode(k.version()));
        for at in 0..bytes.len() {
            s.raw(bytes.slice(at..=at));
        }
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-005", Both, Happy, Nothing, "fields in another order, and one that stands twice", |k| {
        Box::pin(async move {
            let mut s = k.stream().await?;
            let url = k.version().type_url();
            // In proto3 the last of a field that stands twice is the one that counts.
            let mut request = [field(2, b""), field(1, b"something else"), field(1, url.as_bytes())].concat();
            if k.version() == Version::V1alpha2 {
                request = field(1, &[field(4, k.options.context.as_bytes()), request].concat());
            }
            s.bytes(&request);
            k.offer(&mut s).await.map(told)
        })
    }),
    case!("OWN-006", Both, Happy, Nothing, "an initial request of 8 KiB", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        let bytes = s.initial().encode_with_unknown(k.version(), &[7; 4 << 10]);
        s.bytes(&bytes);
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-007", Both, Happy, Nothing, "an initial request with an unknown field 15", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            s.bytes(&[s.initial().encode(k.version()), field(15, b"?")].concat());
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-008", Both, Happy, Nothing, "offers come after the initial request", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-009", Both, Happy, Nothing, "the full state comes, each service created once", |k| Box::pin(
        async move {
            let all = full_state(k).await?;
            let create = k.version().operation(Operation::Create);
            let keys: BTreeSet<String> = all.iter().map(|o| key(o, k.version())).collect();
            if let Some(other) = all.iter().find(|o| o.operation != create) {
                return failed(format!("operation {} in the full state", other.operation));
            }
            if keys.len() != all.len() {
                return failed(format!("{} offers of {} services", all.len(), keys.len()));
            }
            Ok(format!("{} services", all.len()))
        }
    )),
    case!("OWN-010", Both, Happy, Nothing, "each service is whole and decodes", |k| Box::pin(async move {
        let all = full_state(k).await?;
        for offer in &all {
            whole(offer, k.version())?;
        }
        Ok(format!("{} whole services", all.len()))
    })),
    case!("OWN-011", Both, Happy, Nothing, "nonces of the full state", |k| Box::pin(async move {
        let all = full_state(k).await?;
        nonces(&all)
    })),
    case!("OWN-012", Both, Happy, Nothing, "the next offer follows the ACK", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        goes_on(k, &mut s, &first).await.map(told)
    })),
    case!("OWN-013", Both, Happy, Nothing, "an ACK with an empty status that is present", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            let ask = s.answer(&first.nonce, Some(Status::default()));
            s.say(&Said::ask(ask));
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-013", Both, Happy, Nothing, "an ACK whose status has code 0 and a text", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            let ok = Status { code: 0, message: "OK".to_owned(), details: vec![] };
            let ask = s.answer(&first.nonce, Some(ok));
            s.say(&Said::ask(ask));
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-014", Both, Happy, Nothing, "two proper answers", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let second = goes_on(k, &mut s, &first).await?;
        s.ack(&second);
        alive(k, &mut s).await
    })),
    case!("OWN-015", Both, Happy, Nothing, "after a NACK the next service is offered", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            s.nack(&first, 3, "fqdn: not a name we take");
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-016", Both, Happy, Nothing, "what was acknowledged isn't offered again", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            k.settle(&mut s).await?;
            match s.next_offer(k.quiet()).await {
                Err(Heard::Nothing) => Ok("silence".to_owned()),
                Ok(again) => failed(format!("{} was offered again", key(&again, k.version()))),
                Err(heard) => failed(heard.to_string()),
            }
        }
    )),
    case!("OWN-017", Both, Happy, Nothing, "the published type is served", |k| Box::pin(async move {
        let (_, first) = in_flight(k).await?;
        if first.resource_url == k.version().type_url() {
            return Ok(first.resource_url);
        }
        failed(format!("resource_url {:?}", first.resource_url))
    })),
    case!("OWN-018", Both, Happy, Nothing, "a request for the published type isn't ended", |k| Box::pin(
        async move {
            let (mut s, _) = in_flight(k).await?;
            alive(k, &mut s).await
        }
    )),
    case!("OWN-019", Both, Happy, Nothing, "one initial request is enough for all", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            goes_on(k, &mut s, &first).await.map(told)
        }
    )),
    case!("OWN-023", Both, Happy, Nothing, "one stream of one connection", |k| Box::pin(async move {
        let (_, first) = in_flight(k).await?;
        Ok(told(first))
    })),
    case!("OWN-024", Both, Happy, Nothing, "a consumer that reads a little later", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            tokio::time::sleep(k.quiet()).await;
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-025", Both, Happy, Target, "headers after the initial request", |k| Box::pin(async move {
        let mut s = k.subscribed().await?;
        match s.hear(k.deadline()).await {
            Heard::Headers => Ok("headers first".to_owned()),
            other => failed(other.to_string()),
        }
    })),
    case!("OWN-026", Two, Happy, Nothing, "the configured context value", |k| Box::pin(async move {
        let (_, first) = in_flight(k).await?;
        Ok(told(first))
    })),
    case!("OWN-027", Two, Happy, Context, "the context value of the full state", |k| Box::pin(async move {
        let mut s = k.subscribed().await?;
        k.settle(&mut s).await?;
        context_everywhere(k, &s)
    })),
    case!("OWN-028", Two, Happy, Nothing, "fields of the full state", |k| Box::pin(async move {
        let mut s = k.subscribed().await?;
        k.settle(&mut s).await?;
        no_extensions(k, &s)
    })),
    case!("OWN-029", Two, Happy, Nothing, "ids of the full state", |k| Box::pin(async move {
        let all = full_state(k).await?;
        let ids: BTreeSet<&str> = all.iter().map(|o| o.resource_id.as_str()).collect();
        if ids.contains("") || ids.len() != all.len() {
            return failed(format!("{} ids for {} services: {ids:?}", ids.len(), all.len()));
        }
        Ok(format!("{} ids", ids.len()))
    })),
    case!("OWN-030", Two, Happy, Nothing, "a request alone", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        goes_on(k, &mut s, &first).await.map(told)
    })),
    case!("OWN-031", Two, Happy, Nothing, "an offer of ours is read while its own is unanswered", |k| {
        Box::pin(async move {
            let (mut s, first) = in_flight(k).await?;
            let ours = k.good_offer(&s);
            s.say(&Said::offer(ours));
            goes_on(k, &mut s, &first).await.map(told)
        })
    }),
];

/// An offer in a few words.
pub(crate) fn told(offer: Offer) -> String {
    format!("an offer of {} bytes", offer.resource.map_or(0, |any| any.value.len()))
}

/// What an offer is keyed by.
pub(crate) fn key(offer: &Offer, version: Version) -> String {
    if version == Version::V1alpha2 {
        return offer.resource_id.clone();
    }
    let service = offer.resource.as_ref().and_then(|any| Service::decode(version, &any.value).ok());
    service.map(|s| s.key).unwrap_or_default()
}

/// A subscription with its first offer unanswered.
pub(crate) async fn in_flight(k: &mut Kit) -> Result<(Stream, Offer), Stop> {
    let mut stream = k.subscribed().await?;
    let first = k.offer(&mut stream).await?;
    Ok((stream, first))
}

/// Acknowledges; the next offer.
pub(crate) async fn goes_on(k: &Kit, stream: &mut Stream, offer: &Offer) -> Result<Offer, Stop> {
    stream.ack(offer);
    k.offer(stream).await
}

/// The stream doesn't end while nobody asks it to.
pub(crate) async fn alive(k: &Kit, stream: &mut Stream) -> Verdict {
    match stream.ending(k.quiet()).await {
        Heard::Nothing => Ok("the stream lives".to_owned()),
        other => failed(other.to_string()),
    }
}

/// Everything that an owner offers to a new consumer.
pub(crate) async fn full_state(k: &mut Kit) -> Result<Vec<Offer>, Stop> {
    let mut stream = k.subscribed().await?;
    k.settle(&mut stream).await
}

/// An offer has all that is required.
pub(crate) fn whole(offer: &Offer, version: Version) -> Result<Service, Stop> {
    let url = version.type_url();
    if offer.resource_url != url {
        return failed(format!("resource_url {:?}", offer.resource_url));
    }
    let Some(any) = &offer.resource else { return failed("an offer without a resource") };
    if any.type_url != url {
        return failed(format!("a resource of type {:?}", any.type_url));
    }
    let service = Service::decode(version, &any.value).map_err(Stop::Failed)?;
    let lacks = service.lacks();
    if lacks.is_empty() {
        Ok(service)
    } else {
        failed(format!("{:?} lacks {}", service.key, lacks.join(", ")))
    }
}

/// Every nonce is there, and none twice.
pub(crate) fn nonces(all: &[Offer]) -> Verdict {
    let distinct: BTreeSet<&str> = all.iter().map(|o| o.nonce.as_str()).collect();
    if distinct.contains("") {
        return failed("an empty nonce");
    }
    if distinct.len() != all.len() {
        return failed(format!("{} nonces for {} offers", distinct.len(), all.len()));
    }
    Ok(format!("{} nonces", distinct.len()))
}

/// Every message so far repeats the context value.
pub(crate) fn context_everywhere(k: &Kit, stream: &Stream) -> Verdict {
    let ours = &k.options.context;
    let differs = |said: &&Said| {
        let ask = said.ask.as_ref().is_some_and(|a| a.context != *ours);
        ask || said.offer.as_ref().is_some_and(|o| o.context != *ours)
    };
    match stream.heard().iter().find(differs) {
        // The value is a secret: it is never shown.
        Some(said) => failed(format!("{} without the context value", Heard::Said(Box::new(said.clone())))),
        None if stream.heard().is_empty() => not_applicable("nothing was said"),
        None => Ok(format!("in {} messages", stream.heard().len())),
    }
}

/// No message so far has a field of the extensions. The first request of who dialled may have one:
/// that is its hello.
pub(crate) fn no_extensions(k: &Kit, stream: &Stream) -> Verdict {
    let skipped = usize::from(!k.dials());
    match stream.heard().iter().skip(skipped).find(|said| said.extended) {
        Some(said) => failed(format!("a field from 1000 on in {}", Heard::Said(Box::new(said.clone())))),
        None => Ok(format!("none in {} messages", stream.heard().len())),
    }
}
