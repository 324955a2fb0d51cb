//! An owner whose services change, and consumers that leave.

use crate::cases::owner::{full_state, in_flight, key, told, whole};
use crate::kit::{Kit, Stop, Verdict, about, failed};
use crate::registry::Case;
use crate::speech::{Offer, Operation};
use crate::stream::{Heard, Stream};

pub(crate) const CASES: &[Case] = &[
    case!(
        "OWN-009",
        Both,
        Hostile,
        Nothing,
        "the full state comes again after a consumer that answered nothing",
        |k| {
            Box::pin(async move {
                drop(in_flight(k).await?);
                k.recovers().await?;
                Ok(format!("{} services", full_state(k).await?.len()))
            })
        }
    ),
    case!("OWN-020", Both, Happy, Nothing, "a service is created", |k| Box::pin(async move {
        let (_s, offer, _) = created(k).await?;
        is(&offer, Operation::Create, k)
    })),
    case!("OWN-020", Both, Happy, Nothing, "it is updated", |k| Box::pin(async move {
        let (mut s, before, name) = created(k).await?;
        k.publish("update", &name).await?;
        let after = k.until_offer(&mut s, &name).await?;
        if after.resource == before.resource {
            return failed("the update has the bytes of the version before");
        }
        is(&after, Operation::Update, k)
    })),
    case!("OWN-020", Both, Happy, Nothing, "it is deleted", |k| Box::pin(async move {
        let (mut s, _, name) = created(k).await?;
        k.publish("delete", &name).await?;
        let gone = k.until_offer(&mut s, &name).await?;
        is(&gone, Operation::Delete, k)
    })),
    case!("OWN-020", Both, Hostile, Nothing, "changes while an answer is withheld: the latest comes", |k| {
        Box::pin(withheld(k))
    }),
    case!(
        "OWN-020",
        Both,
        Hostile,
        Nothing,
        "what was deleted while nobody listened is gone for a new consumer",
        |k| Box::pin(deleted_unheard(k))
    ),
    case!(
        "OWN-020",
        Both,
        Hostile,
        Nothing,
        "a change reaches a consumer that has refused everything",
        |k| {
            Box::pin(async move {
                let mut s = k.subscribed().await?;
                let mut offer = k.offer(&mut s).await;
                while let Ok(refused) = offer {
                    s.nack(&refused, 7, "name-outside-suffixes: fqdn: not taken here");
                    offer = s.next_offer(k.quiet()).await.map_err(|h| Stop::Failed(h.to_string()));
                }
                let name = k.name();
                k.publish("create", &name).await?;
                let found = k.until_offer(&mut s, &name).await;
                k.publish("delete", &name).await?;
                found.map(told)
            })
        }
    ),
    case!("OWN-021", Both, Happy, Nothing, "a DELETE has a resource", |k| Box::pin(async move {
        let (_, gone, _) = deleted(k).await?;
        match &gone.resource {
            Some(any) if !any.value.is_empty() => Ok(told(gone)),
            _ => failed("a DELETE without the service"),
        }
    })),
    case!("OWN-021", Both, Hostile, Nothing, "it is the last version, although that one was refused", |k| {
        Box::pin(async move {
            let name = k.name();
            let mut s = k.subscribed().await?;
            k.settle(&mut s).await?;
            k.publish("create", &name).await?;
            let first = k.offer(&mut s).await?;
            s.nack(&first, 3, "endpoints: required");
            k.publish("delete", &name).await?;
            let gone = k.until_offer(&mut s, &name).await?;
            whole(&gone, k.version())?;
            is(&gone, Operation::Delete, k)
        })
    }),
    case!("OWN-029", Two, Hostile, Nothing, "a DELETE has the id of its UPSERT", |k| Box::pin(async move {
        let (created, gone, _) = deleted(k).await?;
        if created.resource_id == gone.resource_id {
            return Ok(format!("{:?}", gone.resource_id));
        }
        failed(format!("{:?} became {:?}", created.resource_id, gone.resource_id))
    })),
    case!("OWN-022", Both, Happy, Nothing, "a consumer that cancels", |k| Box::pin(async move {
        let mut s = k.subscribed().await?;
        k.settle(&mut s).await?;
        drop(s);
        k.recovers().await?;
        Ok("the next is served".to_owned())
    })),
    case!("OWN-022", Both, Hostile, Nothing, "one that half-closes after its initial request", |k| {
        Box::pin(async move {
            let mut s = k.subscribed().await?;
            s.half_close();
            let heard = s.ending(k.quiet()).await;
            k.recovers().await?;
            Ok(format!("it got {heard}; the next is served"))
        })
    }),
    case!("OWN-022", Both, Hostile, Nothing, "one that half-closes before it has said anything", |k| {
        Box::pin(async move {
            let mut s = k.stream().await?;
            s.half_close();
            let heard = s.ending(k.quiet()).await;
            k.recovers().await?;
            Ok(format!("it got {heard}; the next is served"))
        })
    }),
    case!("OWN-022", Both, Hostile, Nothing, "ten in a row that leave with an offer unanswered", |k| {
        Box::pin(async move {
            for _ in 0..if k.dials() { 10 } else { 2 } {
                drop(in_flight(k).await?);
            }
            k.recovers().await?;
            Ok("the next is served".to_owned())
        })
    }),
];

fn is(offer: &Offer, operation: Operation, k: &Kit) -> Verdict {
    let wanted = k.version().operation(operation);
    if offer.operation == wanted {
        return Ok(format!("operation {wanted} of {}", key(offer, k.version())));
    }
    failed(format!("operation {} instead of {wanted}", offer.operation))
}

/// A consumer that has everything, and a service that was created since.
async fn created(k: &mut Kit) -> Result<(Stream, Offer, String), Stop> {
    let name = k.name();
    let mut stream = k.subscribed().await?;
    k.settle(&mut stream).await?;
    k.publish("create", &name).await?;
    let offer = k.until_offer(&mut stream, &name).await?;
    k.made.push(name.clone());
    Ok((stream, offer, name))
}

/// The offer of a service and that of its deletion.
async fn deleted(k: &mut Kit) -> Result<(Offer, Offer, String), Stop> {
    let (mut stream, created, name) = created(k).await?;
    k.publish("delete", &name).await?;
    let gone = k.until_offer(&mut stream, &name).await?;
    Ok((created, gone, name))
}

async fn deleted_unheard(k: &mut Kit) -> Verdict {
    let (s, _, name) = created(k).await?;
    drop(s);
    k.publish("delete", &name).await?;
    let (version, delete) = (k.version(), k.version().operation(Operation::Delete));
    let mut stream = k.subscribed().await?;
    let mut there = false;
    // The owner may learn of it only now: then it says so.
    for offer in k.settle(&mut stream).await?.iter().filter(|o| about(o, &name, version)) {
        there = offer.operation != delete;
    }
    if !there {
        return Ok("it wasn't offered, or taken back".to_owned());
    }
    let gone = k.until_offer(&mut stream, &name).await?;
    is(&gone, Operation::Delete, k)
}

async fn withheld(k: &mut Kit) -> Verdict {
    let version = k.version();
    let (first, second) = (k.name(), k.name());
    let mut s = k.subscribed().await?;
    k.settle(&mut s).await?;
    for name in [&first, &second] {
        k.publish("create", name).await?;
        k.made.push(name.clone());
    }
    let pending = k.offer(&mut s).await?;
    k.publish("update", &second).await?;
    tokio::time::sleep(k.quiet()).await;
    s.ack(&pending);
    // Whatever comes on the way, the last word is what a new consumer hears.
    let mut last = Some(pending).filter(|o| about(o, &second, version));
    loop {
        match s.next_offer(k.quiet() * 2).await {
            Ok(offer) => {
                s.ack(&offer);
                last = Some(offer).filter(|o| about(o, &second, version)).or(last);
            }
            Err(Heard::Nothing) => break,
            Err(heard) => return failed(heard.to_string()),
        }
    }
    drop(s);
    let state = full_state(k).await?;
    let now = state.iter().find(|o| about(o, &second, version));
    match (last, now) {
        (Some(last), Some(now)) if last.resource == now.resource => {
            Ok("the last word is the latest state".to_owned())
        }
        (None, _) => failed("it was never offered"),
        _ => failed("the last word on the stream is older than what a new consumer gets"),
    }
}
