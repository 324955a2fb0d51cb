//! A consumer under test, and owners that send too much, too soon or what is no message.

use std::collections::BTreeSet;

use crate::cases::consumer::acked;
use crate::cases::draft::{Expect, offered, survives};
use crate::cases::owner::{context_everywhere, no_extensions};
use crate::kit::{Kit, Verdict, failed};
use crate::registry::Case;
use crate::speech::{Ask, Operation, Said, Version};
use crate::stream::{Answer, Heard, Stream, framed};
use crate::wire::{Status, field};

/// Offers that are written back to back.
const PIPELINED: usize = 100;
/// Offers that are written before any answer is read.
const UNREAD: usize = 400;
/// Refusals in a row.
const REFUSALS: usize = 20;

pub(crate) const CASES: &[Case] = &[
    case!("CON-006", Both, Happy, Nothing, "three offers, one after the other", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        for _ in 0..3 {
            let offer = k.good_offer(&s);
            acked(k, &mut s, Said::offer(offer)).await?;
        }
        Ok("three ACKs".to_owned())
    })),
    case!("CON-006", Both, Hostile, Nothing, "100 offers without waiting", |k| Box::pin(pipelined(
        k, PIPELINED, false
    ))),
    case!("CON-006", Both, Hostile, Nothing, "good and bad ones mixed, without waiting", |k| {
        Box::pin(pipelined(k, REFUSALS, true))
    }),
    case!("CON-006", Both, Hostile, Nothing, "50 versions of one service without waiting", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            let mut service = k.service();
            let mut nonces = vec![];
            for at in 0..50 {
                service.description = format!("version {at}");
                let value = service.encode(k.version());
                let operation = if at == 0 { Operation::Create } else { Operation::Update };
                let number = k.version().operation(operation);
                let offer = s.offer(&format!("{}-{at}", service.key), &service.key, number, value);
                nonces.push(offer.nonce.clone());
                s.say(&Said::offer(offer));
            }
            in_order(k, &mut s, &nonces).await
        }
    )),
    case!("CON-006", Both, Hostile, Nothing, "the same nonce for two offers", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        for _ in 0..2 {
            let mut offer = k.good_offer(&s);
            offer.nonce = "the same".to_owned();
            acked(k, &mut s, Said::offer(offer)).await?;
        }
        Ok("two ACKs".to_owned())
    })),
    case!("CON-012", Both, Happy, Nothing, "a good offer after a good one", |k| offered(
        k,
        Expect::Ack,
        |_| {}
    )),
    case!("CON-012", Both, Hostile, Nothing, "20 refusals in a row", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        for _ in 0..REFUSALS {
            let mut offer = k.good_offer(&s);
            offer.operation = 99;
            s.say(&Said::offer(offer.clone()));
            match s.answer_to(&offer.nonce, k.deadline()).await {
                Answer::Nack(..) => {}
                other => return failed(other.to_string()),
            }
        }
        k.lives(&mut s).await?;
        Ok("20 NACKs, then an ACK".to_owned())
    })),
    case!("CON-012", Both, Hostile, Nothing, "a bad version of a service it has", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let offer = k.good_offer(&s);
        acked(k, &mut s, Said::offer(offer.clone())).await?;
        let mut bad = offer;
        bad.nonce += "-bad";
        bad.resource = None;
        bad.operation = k.version().operation(Operation::Update);
        s.say(&Said::offer(bad.clone()));
        let answer = s.answer_to(&bad.nonce, k.deadline()).await;
        if !matches!(answer, Answer::Nack(..)) {
            return failed(answer.to_string());
        }
        k.lives(&mut s).await?;
        Ok(format!("{answer}; the stream lives"))
    })),
    case!("CON-014", Both, Happy, Nothing, "a service of 8 KiB", |k| {
        offered(k, Expect::Ack, |d| d.more = field(crate::speech::UNKNOWN_FIELD, &[1; 8 << 10]))
    }),
    case!("CON-014", Both, Hostile, Nothing, "a service of 100 KiB", |k| {
        offered(k, Expect::Either, |d| d.more = field(crate::speech::UNKNOWN_FIELD, &[1; 100 << 10]))
    }),
    case!("CON-014", Both, Hostile, Nothing, "a service of 1 MiB", |k| {
        offered(k, Expect::Either, |d| d.more = field(crate::speech::UNKNOWN_FIELD, &vec![1; 1 << 20]))
    }),
    case!("CON-014", Both, Hostile, Nothing, "a service of 3.9 MiB", |k| {
        offered(k, Expect::Either, |d| d.more = field(crate::speech::UNKNOWN_FIELD, &vec![1; 3_900 << 10]))
    }),
    case!("CON-014", Both, Hostile, Nothing, "a service of 5 MiB", |k| { survives_or_refuses(k) }),
    case!("CON-014", Both, Hostile, Nothing, "10,000 labels", |k| {
        offered(k, Expect::Either, |d| {
            d.service.labels = (0..10_000).map(|n| (format!("k{n}"), "v".to_owned())).collect()
        })
    }),
    case!("CON-014", Both, Hostile, Nothing, "5,000 endpoints", |k| {
        offered(k, Expect::Either, |d| {
            let one = d.service.endpoints[0].clone();
            d.service.endpoints = vec![one; 5_000];
        })
    }),
    case!("CON-015", Both, Happy, Nothing, "an offer, byte by byte", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let offer = k.good_offer(&s);
        let bytes = framed(&Said::offer(offer.clone()).encode(k.version()));
        for at in 0..bytes.len() {
            s.raw(bytes.slice(at..=at));
        }
        answered(k, &mut s, &offer.nonce).await
    })),
    case!("CON-015", Both, Happy, Nothing, "two offers in one piece", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let (one, two) = (k.good_offer(&s), k.good_offer(&s));
        let bytes = [&one, &two].map(|o| framed(&Said::offer(o.clone()).encode(k.version()))).concat();
        s.raw(bytes.into());
        in_order(k, &mut s, &[one.nonce, two.nonce]).await
    })),
    case!("CON-015", Both, Hostile, Nothing, "bytes that are no message", |k| Box::pin(no_message(
        k,
        framed(&[0xff; 40]).to_vec()
    ))),
    case!("CON-015", Both, Hostile, Nothing, "a nonce that is not UTF-8", |k| Box::pin(async move {
        let nonce = field(1, &[0xff, 0xfe]);
        let message = if k.version() == Version::V1alpha2 { field(2, &nonce) } else { nonce };
        no_message(k, framed(&message).to_vec()).await
    })),
    case!("CON-015", Both, Hostile, Nothing, "a frame that says it is compressed", |k| Box::pin(
        async move {
            let mut frame = framed(b"not gzip either").to_vec();
            frame[0] = 1;
            no_message(k, frame).await
        }
    )),
    case!("CON-015", Both, Hostile, Nothing, "a frame that promises 4 GiB", |k| {
        Box::pin(no_message(k, vec![0, 0xff, 0xff, 0xff, 0xff, 1]))
    }),
    case!("CON-015", Both, Hostile, Nothing, "an offer whose resource is 100 levels deep", |k| {
        offered(k, Expect::Either, |d| {
            let mut deep = vec![];
            for _ in 0..100 {
                deep = field(crate::speech::UNKNOWN_FIELD, &deep);
            }
            d.more = deep;
        })
    }),
    case!("CON-016", Both, Happy, Nothing, "an answer comes while nothing else is offered", |k| {
        offered(k, Expect::Ack, |_| {})
    }),
    case!("CON-016", Both, Hostile, Nothing, "400 offers are written before any answer is read", |k| {
        Box::pin(pipelined(k, UNREAD, false))
    }),
    case!("CON-017", Both, Happy, Nothing, "silence after an ACK", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let offer = k.good_offer(&s);
        acked(k, &mut s, Said::offer(offer)).await?;
        unasked(k, &mut s).await
    })),
    case!("CON-017", Both, Hostile, Nothing, "silence towards an owner that offers nothing", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            unasked(k, &mut s).await
        }
    )),
    case!("CON-022", Two, Happy, Context, "the context value of request and ACK", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        k.lives(&mut s).await?;
        context_everywhere(k, &s)
    })),
    case!("CON-022", Two, Hostile, Context, "it is repeated in a NACK", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let mut offer = k.good_offer(&s);
        offer.operation = 99;
        s.say(&Said::offer(offer.clone()));
        let _ = s.answer_to(&offer.nonce, k.deadline()).await;
        context_everywhere(k, &s)
    })),
    case!("CON-023", Two, Happy, Nothing, "fields of request and ACK", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        k.lives(&mut s).await?;
        no_extensions(k, &s)
    })),
    case!("CON-023", Two, Hostile, Nothing, "we send fields from 1000 on, but no hello", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            let offer = k.good_offer(&s);
            s.bytes(&Said::offer(offer.clone()).encode_with_unknown(k.version(), b"?"));
            let _ = s.answer_to(&offer.nonce, k.deadline()).await;
            k.lives(&mut s).await?;
            no_extensions(k, &s)
        }
    )),
    case!("CON-025", Two, Happy, Nothing, "an offer alone", |k| offered(k, Expect::Ack, |_| {})),
    case!("CON-025", Two, Hostile, Nothing, "a message with neither half", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        s.bytes(&[]);
        k.lives(&mut s).await?;
        Ok("the stream lives".to_owned())
    })),
    case!("CON-025", Two, Hostile, Nothing, "an offer and an answer in one message", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            let offer = k.good_offer(&s);
            let ask = s.answer("never-sent", Some(Status::default()));
            let both = Said { ask: Some(ask), offer: Some(offer), ..Said::default() };
            acked(k, &mut s, both).await?;
            Ok("the offer was acknowledged".to_owned())
        }
    )),
    case!("CON-025", Two, Hostile, Nothing, "an ACK for something it never sent", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        let ask = s.answer("never-sent", Some(Status::default()));
        s.say(&Said::ask(ask));
        k.lives(&mut s).await?;
        Ok("the stream lives".to_owned())
    })),
    case!("CON-025", Two, Hostile, Nothing, "a second initial request", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        s.say(&s.initial());
        k.lives(&mut s).await?;
        Ok("the stream lives".to_owned())
    })),
    case!("CON-025", Two, Hostile, Nothing, "an offer before our initial request", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let offer = k.good_offer(&s);
            s.say(&Said::offer(offer.clone()));
            s.say(&s.initial());
            k.lives(&mut s).await?;
            Ok("the stream lives".to_owned())
        }
    )),
];

/// Each of these nonces is answered once, in this order.
async fn in_order(k: &Kit, stream: &mut Stream, nonces: &[String]) -> Verdict {
    let mut seen = vec![];
    let mut codes = BTreeSet::new();
    while seen.len() < nonces.len() {
        match stream.next_ask(k.deadline() * 2).await {
            Ok(ask) if ask.nonce.is_empty() => {}
            Ok(ask) => {
                codes.insert(ask.status.map(|s| s.code));
                seen.push(ask.nonce);
            }
            Err(heard) => return failed(format!("{heard} after {} of {} answers", seen.len(), nonces.len())),
        }
    }
    if seen != nonces {
        let at = seen.iter().zip(nonces).position(|(a, b)| a != b).unwrap_or_default();
        return failed(format!("answer {} has nonce {:?} instead of {:?}", at + 1, seen[at], nonces[at]));
    }
    match stream.next_ask(k.quiet()).await {
        Ok(ask) if !ask.nonce.is_empty() => failed(format!("one answer too many, to {:?}", ask.nonce)),
        _ => Ok(format!("{} answers in order, codes {codes:?}", seen.len())),
    }
}

async fn pipelined(k: &mut Kit, count: usize, mixed: bool) -> Verdict {
    let mut s = k.publishing().await?;
    let mut nonces = vec![];
    for at in 0..count {
        let mut offer = k.good_offer(&s);
        if mixed && at % 2 == 1 {
            offer.operation = 99;
        }
        nonces.push(offer.nonce.clone());
        s.say(&Said::offer(offer));
    }
    in_order(k, &mut s, &nonces).await
}

async fn answered(k: &Kit, s: &mut Stream, nonce: &str) -> Verdict {
    match s.answer_to(nonce, k.deadline()).await {
        Answer::Ack(_) => Ok("ACK".to_owned()),
        other => failed(other.to_string()),
    }
}

/// These bytes are never acknowledged, and the implementation outlives them.
async fn no_message(k: &mut Kit, frame: Vec<u8>) -> Verdict {
    let mut s = k.publishing().await?;
    s.raw(frame.into());
    let heard = loop {
        match s.next_ask(k.deadline()).await {
            Ok(ask) if ask.status.as_ref().is_some_and(|s| s.code == 0) => return failed("an ACK"),
            Ok(_) => {}
            Err(heard) => break heard,
        }
    };
    if heard == Heard::Nothing {
        return failed("neither an answer nor an end");
    }
    drop(s);
    k.recovers().await?;
    Ok(format!("{heard}; it is there for new streams"))
}

/// Nothing is said unasked.
async fn unasked(k: &Kit, s: &mut Stream) -> Verdict {
    match s.next_ask(k.quiet()).await {
        Err(Heard::Nothing) => {
            let initial = |said: &&Said| said.ask.as_ref().is_some_and(Ask::is_initial);
            let times = s.heard().iter().filter(initial).count();
            if times > 1 { failed(format!("{times} initial requests")) } else { Ok("silence".to_owned()) }
        }
        Ok(ask) => failed(format!("a request (nonce {:?}, resource_url {:?})", ask.nonce, ask.resource_url)),
        Err(heard) => failed(heard.to_string()),
    }
}

fn survives_or_refuses(k: &mut Kit) -> futures::future::BoxFuture<'_, Verdict> {
    survives(k, |d| d.more = field(crate::speech::UNKNOWN_FIELD, &vec![1; 5 << 20]))
}
