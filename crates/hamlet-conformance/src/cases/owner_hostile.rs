//! An owner under test, and consumers that say what they shouldn't.

use bytes::Bytes;

use crate::cases::owner::{
    alive, context_everywhere, goes_on, in_flight, key, no_extensions, nonces, told, whole,
};
use crate::kit::{Kit, Stop, Verdict, failed, not_applicable};
use crate::registry::Case;
use crate::speech::{Offer, Said};
use crate::stream::{Heard, Stream, framed};
use crate::tls::Face;
use crate::wire::{Any, Status, field};

/// gRPC status codes.
const INVALID_ARGUMENT: i32 = 3;
const UNAVAILABLE: i32 = 14;
/// Answers of a flood, and requests of another.
const FLOOD: usize = 2_000;
const RESETS: usize = 40;
/// Offers that are written to an owner that has no use for them.
const UNWANTED: usize = 300;

pub(crate) const CASES: &[Case] = &[
    case!("OWN-005", Both, Hostile, Nothing, "bytes that are no message", |k| {
        Box::pin(ends(k, |_| framed(&[0xff; 40])))
    }),
    case!("OWN-005", Both, Hostile, Nothing, "a message that is cut off", |k| {
        Box::pin(ends(k, |s| framed(&s.initial().encode(s.version())[..20])))
    }),
    case!("OWN-005", Both, Hostile, Nothing, "a string that is not UTF-8", |k| {
        Box::pin(ends(k, |s| {
            let string = field(1, &[0xff, 0xfe, 0xc0]);
            let nested = field(1, &string);
            framed(if s.version() == crate::speech::Version::V1alpha2 { &nested } else { &string })
        }))
    }),
    case!("OWN-005", Both, Hostile, Nothing, "a frame that says it is compressed", |k| {
        Box::pin(ends(k, |s| {
            let mut bytes = framed(&s.initial().encode(s.version())).to_vec();
            bytes[0] = 1;
            bytes.into()
        }))
    }),
    case!("OWN-005", Both, Hostile, Nothing, "half a frame, then the end of our half", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let bytes = framed(&s.initial().encode(k.version()));
            s.raw(bytes.slice(..bytes.len() / 2));
            s.half_close();
            silent(k, &mut s).await
        }
    )),
    case!("OWN-006", Both, Hostile, Nothing, "an initial request of 5 MiB", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        let bytes = s.initial().encode_with_unknown(k.version(), &vec![7; 5 << 20]);
        s.bytes(&bytes);
        let heard = first_of(&mut s, k).await;
        drop(s);
        k.recovers().await?;
        Ok(format!("it got {heard}; a new subscription is served"))
    })),
    case!("OWN-006", Both, Hostile, Nothing, "a frame that promises 4 GiB", |k| {
        Box::pin(ends(k, |_| Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3])))
    }),
    case!("OWN-006", Both, Hostile, Nothing, "an ACK whose nonce has 1 MiB", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let ask = s.answer(&"n".repeat(1 << 20), Some(Status::default()));
        s.say(&Said::ask(ask));
        s.ack(&first);
        let heard = first_of(&mut s, k).await;
        drop(s);
        k.recovers().await?;
        Ok(format!("it got {heard}; a new subscription is served"))
    })),
    case!("OWN-007", Both, Hostile, Nothing, "fields from 1000 on in the initial request", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let bytes = s.initial().encode_with_unknown(k.version(), b"an extension that nobody has");
            s.bytes(&bytes);
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-007", Both, Hostile, Nothing, "fields from 1000 on in an ACK", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let ask = Said::ask(s.answer(&first.nonce, Some(Status::default())));
        s.bytes(&ask.encode_with_unknown(k.version(), b"?"));
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-007", Both, Hostile, Nothing, "64 KiB in a field that nobody knows", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let bytes = s.initial().encode_with_unknown(k.version(), &[0; 30 << 10]);
            s.bytes(&bytes);
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-008", Both, Hostile, Nothing, "a consumer that says nothing", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        s.start();
        silent(k, &mut s).await
    })),
    case!("OWN-008", Both, Hostile, Nothing, "an ACK instead of the initial request", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let ask = s.answer("1", Some(Status::default()));
            s.say(&Said::ask(ask));
            silent(k, &mut s).await
        }
    )),
    case!("OWN-008", Two, Hostile, Nothing, "an offer instead of the initial request", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let offer = k.good_offer(&s);
            s.say(&Said::offer(offer));
            silent(k, &mut s).await
        }
    )),
    case!("OWN-010", Both, Hostile, Nothing, "services stay whole although the first was refused", |k| {
        Box::pin(async move {
            let (mut s, first) = in_flight(k).await?;
            s.nack(&first, INVALID_ARGUMENT, "endpoints: required");
            let second = k.offer(&mut s).await?;
            whole(&second, k.version()).map(|service| format!("{:?} is whole", service.key))
        })
    }),
    case!("OWN-011", Both, Hostile, Nothing, "nonces where everything is refused", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            let mut all = vec![k.offer(&mut s).await?];
            s.nack(&all[0].clone(), INVALID_ARGUMENT, "fqdn: not taken");
            while let Ok(offer) = s.next_offer(k.quiet()).await {
                s.nack(&offer, INVALID_ARGUMENT, "fqdn: not taken");
                all.push(offer);
                if all.len() >= 100 {
                    break;
                }
            }
            nonces(&all)
        }
    )),
    case!("OWN-012", Both, Hostile, Nothing, "the answer is withheld", |k| Box::pin(async move {
        let (mut s, _) = in_flight(k).await?;
        nothing_more(k, &mut s).await
    })),
    case!("OWN-013", Both, Hostile, Nothing, "an ACK without resource_url", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let mut ask = s.answer(&first.nonce, Some(Status::default()));
        ask.resource_url.clear();
        s.say(&Said::ask(ask));
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-013", Two, Hostile, Nothing, "an ACK without the context value", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let mut ask = s.answer(&first.nonce, Some(Status::default()));
        ask.context.clear();
        s.say(&Said::ask(ask));
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-013", Both, Hostile, Nothing, "an ACK with 100 details", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let detail = Any { type_url: "type.googleapis.com/google.rpc.Help".to_owned(), value: vec![1; 20] };
        let status = Status { code: 0, message: String::new(), details: vec![detail; 100] };
        let ask = s.answer(&first.nonce, Some(status));
        s.say(&Said::ask(ask));
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-014", Both, Hostile, Nothing, "an ACK for a nonce that doesn't exist", |k| {
        Box::pin(shrugs(k, |s, _| vec![s.answer("never-sent", Some(Status::default()))]))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "the same ACK twice", |k| {
        Box::pin(shrugs(k, |s, o| vec![s.answer(&o.nonce, Some(Status::default())); 2]))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "an ACK without status", |k| {
        Box::pin(shrugs(k, |s, o| vec![s.answer(&o.nonce, None)]))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "an ACK with an empty nonce", |k| {
        Box::pin(shrugs(k, |s, _| vec![s.answer("", Some(Status::default()))]))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "an ACK of another type", |k| {
        Box::pin(shrugs(k, |s, _| {
            let mut ask = s.answer("never-sent", Some(Status::default()));
            ask.resource_url = "type.googleapis.com/google.protobuf.Empty".to_owned();
            vec![ask]
        }))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "a NACK for a nonce that doesn't exist", |k| {
        Box::pin(shrugs(k, |s, _| {
            let status = Status { code: 13, message: "internal".to_owned(), details: vec![] };
            vec![s.answer("never-sent", Some(status))]
        }))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "a nonce of 8 KiB", |k| {
        Box::pin(shrugs(k, |s, _| vec![s.answer(&"n".repeat(8 << 10), Some(Status::default()))]))
    }),
    case!("OWN-014", Both, Hostile, Nothing, "2,000 ACKs for nonces that don't exist", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            for at in 0..FLOOD {
                let ask = s.answer(&format!("flood-{at}"), Some(Status::default()));
                s.say(&Said::ask(ask));
            }
            s.ack(&first);
            let heard = first_of(&mut s, k).await;
            drop(s);
            k.recovers().await?;
            Ok(format!("it got {heard}; a new subscription is served"))
        }
    )),
    case!("OWN-015", Both, Hostile, Nothing, "a NACK with a text of 16 KiB and control characters", |k| {
        Box::pin(nacked(k, 7, "\u{1b}[2J\r\n\0".repeat(2 << 10)))
    }),
    case!("OWN-015", Both, Hostile, Nothing, "a NACK with a code that doesn't exist", |k| {
        Box::pin(nacked(k, 999, "no such code".to_owned()))
    }),
    case!("OWN-015", Both, Hostile, Nothing, "a NACK with a negative code and no text", |k| {
        Box::pin(nacked(k, -1, String::new()))
    }),
    case!("OWN-015", Both, Hostile, Nothing, "an ACK after the NACK of the same nonce", |k| Box::pin(
        async move {
            let (mut s, first) = in_flight(k).await?;
            s.nack(&first, INVALID_ARGUMENT, "no");
            s.ack(&first);
            k.offer(&mut s).await.map(told)
        }
    )),
    case!("OWN-015", Both, Hostile, Nothing, "everything is refused, and the stream lives", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            let mut offer = k.offer(&mut s).await;
            let mut count = 0;
            while let Ok(refused) = offer {
                s.nack(&refused, INVALID_ARGUMENT, "no");
                count += 1;
                offer = s.next_offer(k.quiet()).await.map_err(|h| Stop::Failed(h.to_string()));
                if count >= 200 {
                    break;
                }
            }
            alive(k, &mut s).await.map(|seen| format!("{count} NACKs; {seen}"))
        }
    )),
    case!("OWN-016", Both, Hostile, Nothing, "a permanent NACK", |k| Box::pin(refused(k, INVALID_ARGUMENT))),
    case!("OWN-016", Both, Hostile, Nothing, "a NACK with UNAVAILABLE", |k| Box::pin(refused(
        k,
        UNAVAILABLE
    ))),
    case!("OWN-017", Both, Hostile, Nothing, "a request for an unknown type", |k| {
        Box::pin(other_type(k, "type.googleapis.com/google.protobuf.Empty"))
    }),
    case!("OWN-017", Both, Hostile, Nothing, "a request for the other version's type", |k| Box::pin(
        async move {
            let other = match k.version() {
                crate::speech::Version::V1alpha1 => crate::speech::Version::V1alpha2,
                crate::speech::Version::V1alpha2 => crate::speech::Version::V1alpha1,
            };
            other_type(k, &other.type_url()).await
        }
    )),
    case!("OWN-017", Both, Hostile, Nothing, "a request without a type", |k| Box::pin(other_type(k, ""))),
    case!("OWN-018", Both, Hostile, Nothing, "a request for an unknown type is ended", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let mut said = s.initial();
            if let Some(ask) = &mut said.ask {
                ask.resource_url = "type.googleapis.com/google.protobuf.Empty".to_owned();
            }
            s.say(&said);
            match s.ending(k.deadline()).await {
                heard @ Heard::End(INVALID_ARGUMENT, _) => Ok(heard.to_string()),
                other => failed(format!("{other} instead of INVALID_ARGUMENT (3)")),
            }
        }
    )),
    case!("OWN-019", Both, Hostile, Nothing, "a second one", |k| Box::pin(again(k, 1))),
    case!("OWN-019", Both, Hostile, Nothing, "ten more", |k| Box::pin(again(k, 10))),
    case!("OWN-023", Both, Hostile, Target, "two streams on one connection", |k| Box::pin(async move {
        let client = k.dial().await?;
        let (mut a, mut b) = (client.stream(), client.stream());
        a.say(&a.initial());
        b.say(&b.initial());
        let (one, two) = (a.next_offer(k.deadline()).await, b.next_offer(k.deadline()).await);
        served(k, [one, two]).await
    })),
    case!("OWN-023", Both, Hostile, Target, "two connections of one peer", |k| Box::pin(async move {
        let (first, second) = (k.dial().await?, k.dial().await?);
        let (mut a, mut b) = (first.stream(), second.stream());
        a.say(&a.initial());
        b.say(&b.initial());
        let (one, two) = (a.next_offer(k.deadline()).await, b.next_offer(k.deadline()).await);
        served(k, [one, two]).await
    })),
    case!("OWN-023", Both, Hostile, Target, "40 streams that are reset at once", |k| Box::pin(async move {
        let client = k.dial().await?;
        for _ in 0..RESETS {
            let mut s = client.stream();
            s.say(&s.initial());
            let _ = s.hear(std::time::Duration::from_millis(1)).await;
        }
        drop(client);
        k.recovers().await?;
        Ok("a new connection is served".to_owned())
    })),
    case!("OWN-024", Both, Hostile, Target, "a window of one byte, and nothing is read", |k| Box::pin(
        async move {
            let client = k.dial_with(Face::Proper, 1).await.map_err(Stop::Failed)?;
            let mut s = client.stream();
            s.say(&s.initial());
            tokio::time::sleep(k.quiet()).await;
            drop((s, client));
            k.recovers().await?;
            Ok("a new connection is served".to_owned())
        }
    )),
    case!("OWN-025", Both, Hostile, Target, "headers although nothing was said", |k| Box::pin(async move {
        let mut s = k.stream().await?;
        match s.hear(k.deadline()).await {
            Heard::Headers => Ok("headers first".to_owned()),
            other => failed(other.to_string()),
        }
    })),
    case!("OWN-026", Two, Hostile, Context, "another context value", |k| {
        Box::pin(context(k, |ours| format!("{ours}x")))
    }),
    case!("OWN-026", Two, Hostile, Context, "a part of the context value", |k| {
        Box::pin(context(k, |ours| ours.chars().skip(1).collect()))
    }),
    case!("OWN-026", Two, Hostile, Context, "no context value", |k| Box::pin(context(k, |_| String::new()))),
    case!("OWN-027", Two, Hostile, Context, "it is repeated although we don't", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let mut ask = s.answer(&first.nonce, Some(Status::default()));
        ask.context.clear();
        s.say(&Said::ask(ask));
        k.offer(&mut s).await?;
        context_everywhere(k, &s)
    })),
    case!("OWN-028", Two, Hostile, Nothing, "we send fields from 1000 on, but no hello", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let initial = s.initial().encode_with_unknown(k.version(), b"?");
            s.bytes(&initial);
            let first = k.offer(&mut s).await?;
            let ask = Said::ask(s.answer(&first.nonce, Some(Status::default())));
            s.bytes(&ask.encode_with_unknown(k.version(), b"?"));
            k.settle(&mut s).await?;
            no_extensions(k, &s)
        }
    )),
    case!("OWN-030", Two, Hostile, Nothing, "a message with neither half", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        s.bytes(&[]);
        goes_on(k, &mut s, &first).await.map(told)
    })),
    case!("OWN-030", Two, Hostile, Nothing, "an ACK and an offer in one message", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        let ask = s.answer(&first.nonce, Some(Status::default()));
        let offer = k.good_offer(&s);
        s.say(&Said { ask: Some(ask), offer: Some(offer), ..Said::default() });
        k.offer(&mut s).await.map(told)
    })),
    case!("OWN-030", Two, Hostile, Nothing, "an offer that makes no sense", |k| Box::pin(async move {
        let (mut s, first) = in_flight(k).await?;
        s.say(&Said::offer(Offer { nonce: "x".to_owned(), operation: 77, ..Offer::default() }));
        goes_on(k, &mut s, &first).await.map(told)
    })),
    case!("OWN-031", Two, Hostile, Nothing, "300 offers are written before anything is read", |k| Box::pin(
        async move {
            let mut s = k.subscribed().await?;
            for _ in 0..UNWANTED {
                let offer = k.good_offer(&s);
                s.say(&Said::offer(offer));
            }
            let first = k.offer(&mut s).await?;
            goes_on(k, &mut s, &first).await.map(told)
        }
    )),
];

/// What comes first, headers aside.
async fn first_of(s: &mut Stream, k: &Kit) -> Heard {
    loop {
        match s.hear(k.deadline()).await {
            Heard::Headers => {}
            other => return other,
        }
    }
}

/// After these bytes the stream ends with an error, no offer comes, and the next is served.
async fn ends(k: &mut Kit, make: fn(&Stream) -> Bytes) -> Verdict {
    let mut s = k.stream().await?;
    let bytes = make(&s);
    s.raw(bytes);
    let heard = match s.next_offer(k.deadline()).await {
        Ok(_) => return failed("an offer, as if it had been an initial request"),
        Err(heard) => heard,
    };
    // Whoever dialled us can only reset.
    match heard {
        Heard::End(1.., _) | Heard::Broken(_) | Heard::Http(400..) => {}
        Heard::Left if !k.dials() => {}
        other => return failed(format!("{other} instead of an error")),
    }
    drop(s);
    k.recovers().await?;
    Ok(format!("{heard}; a new subscription is served"))
}

/// No offer comes, whatever else does.
async fn silent(k: &mut Kit, s: &mut Stream) -> Verdict {
    match s.next_offer(k.quiet()).await {
        Ok(offer) => failed(format!("an offer of {}", key(&offer, k.version()))),
        Err(heard) => Ok(heard.to_string()),
    }
}

async fn nothing_more(k: &Kit, s: &mut Stream) -> Verdict {
    match s.next_offer(k.quiet()).await {
        Err(Heard::Nothing) => Ok("nothing more came".to_owned()),
        Ok(_) => failed("the next offer came without an answer to the first"),
        Err(heard) => failed(heard.to_string()),
    }
}

/// These answers change nothing: after the proper one the next offer comes.
async fn shrugs(k: &mut Kit, make: fn(&Stream, &Offer) -> Vec<crate::speech::Ask>) -> Verdict {
    let (mut s, first) = in_flight(k).await?;
    for ask in make(&s, &first) {
        s.say(&Said::ask(ask));
    }
    goes_on(k, &mut s, &first).await.map(told)
}

async fn nacked(k: &mut Kit, code: i32, text: String) -> Verdict {
    let (mut s, first) = in_flight(k).await?;
    s.nack(&first, code, &text);
    k.offer(&mut s).await.map(told)
}

/// The first service is refused, all others are taken: is it offered again?
async fn refused(k: &mut Kit, code: i32) -> Verdict {
    let version = k.version();
    let (mut s, first) = in_flight(k).await?;
    let wanted = key(&first, version);
    s.nack(&first, code, "not now");
    let patience = if code == UNAVAILABLE { k.deadline() } else { k.quiet() };
    loop {
        match s.next_offer(patience).await {
            Ok(offer) if key(&offer, version) == wanted => {
                return if code == UNAVAILABLE {
                    Ok("it was offered again".to_owned())
                } else {
                    failed("it was offered again")
                };
            }
            Ok(offer) => s.ack(&offer),
            Err(Heard::Nothing) if code == UNAVAILABLE => return failed("it was not offered again in time"),
            Err(Heard::Nothing) => return Ok("it was not offered again".to_owned()),
            Err(heard) => return failed(heard.to_string()),
        }
    }
}

async fn other_type(k: &mut Kit, url: &str) -> Verdict {
    let mut s = k.stream().await?;
    let mut said = s.initial();
    if let Some(ask) = &mut said.ask {
        url.clone_into(&mut ask.resource_url);
    }
    s.say(&said);
    let seen = silent(k, &mut s).await?;
    drop(s);
    k.recovers().await?;
    Ok(format!("it got {seen}; a proper request is served"))
}

async fn again(k: &mut Kit, times: usize) -> Verdict {
    let (mut s, first) = in_flight(k).await?;
    for _ in 0..times {
        s.say(&s.initial());
    }
    // To some it is an answer, to others it is nothing; the stream goes on.
    goes_on(k, &mut s, &first).await.map(told)
}

/// At least one of two was served, and the next is.
async fn served(k: &mut Kit, both: [Result<Offer, Heard>; 2]) -> Verdict {
    let count = both.iter().filter(|o| o.is_ok()).count();
    if count == 0 {
        return match both {
            [Err(Heard::Nothing), _] if k.options.publish.is_none() => {
                not_applicable("the owner offers nothing")
            }
            [Err(one), Err(two)] => failed(format!("{one} and {two}")),
            _ => failed("neither was served"),
        };
    }
    k.recovers().await?;
    Ok(format!("{count} of 2 served; a new connection is served"))
}

async fn context(k: &mut Kit, make: fn(&str) -> String) -> Verdict {
    let mut s = k.stream().await?;
    let mut said = s.initial();
    if let Some(ask) = &mut said.ask {
        ask.context = make(&k.options.context);
    }
    s.say(&said);
    let seen = match s.next_offer(k.deadline()).await {
        Ok(_) => return failed("an offer"),
        Err(heard) => heard,
    };
    if matches!(seen, Heard::Nothing) && k.dials() {
        return failed("the stream neither ends nor serves");
    }
    drop(s);
    k.recovers().await?;
    Ok(format!("{seen}; the right value is served"))
}
