//! A consumer under test, and streams that begin late, break, or show another context value.

use std::time::Duration;

use crate::cases::consumer::acked;
use crate::kit::{Accepted, Kit, Stop, Verdict, failed};
use crate::registry::Case;
use crate::speech::{Offer, Said};
use crate::stream::{Answer, Heard};
use crate::tls::Face;

/// gRPC status.
const UNAVAILABLE: i32 = 14;
/// How long is counted how often it comes back.
const COUNTED: Duration = Duration::from_secs(3);
/// So often in that time is too fast: exponential backoff starts at 1 s.
const TOO_OFTEN: usize = 6;

pub(crate) const CASES: &[Case] = &[
    case!("CON-004", Both, Hostile, Listen, "the server sends no headers", |k| Box::pin(async move {
        let (mut s, _) = k.accept().await?;
        match s.next_ask(k.deadline()).await {
            Ok(ask) if ask.is_initial() => Ok("the initial request came without them".to_owned()),
            Ok(_) => failed("something else came first"),
            Err(heard) => failed(heard.to_string()),
        }
    })),
    case!("CON-004", Both, Hostile, Listen, "headers and the first offer come much later", |k| Box::pin(
        async move {
            let (mut s, _) = k.accept().await?;
            let asked = s.next_ask(k.deadline()).await;
            asked.map_err(|h| Stop::Failed(h.to_string()))?;
            tokio::time::sleep(k.quiet() * 2).await;
            if k.version() == crate::speech::Version::V1alpha2 {
                s.say(&s.initial());
            }
            k.lives(&mut s).await?;
            Ok("the offer was acknowledged".to_owned())
        }
    )),
    case!("CON-004", Two, Hostile, Target, "we say ours byte by byte, and nothing else", |k| Box::pin(
        async move {
            let mut s = k.stream().await?;
            let bytes = crate::stream::framed(&s.initial().encode(k.version()));
            for at in 0..bytes.len() {
                s.raw(bytes.slice(at..=at));
            }
            match s.next_ask(k.deadline()).await {
                Ok(ask) if ask.is_initial() => Ok("an initial request".to_owned()),
                Ok(_) => failed("something else came first"),
                Err(heard) => failed(heard.to_string()),
            }
        }
    )),
    case!("CON-019", Both, Happy, Listen, "the server ends the stream with UNAVAILABLE", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            k.lives(&mut s).await?;
            s.end(UNAVAILABLE, "starting");
            let _ = s.ending(k.quiet()).await;
            drop(s);
            returns(k).await
        }
    )),
    case!("CON-019", Both, Hostile, Listen, "the connection is refused again and again", |k| Box::pin(
        async move {
            let mut s = k.publishing().await?;
            s.end(UNAVAILABLE, "starting");
            drop(s);
            let mut tries = 0;
            let counting = async {
                while let Ok(tcp) = k.accept_tcp(k.options.connect).await {
                    drop(tcp);
                    tries += 1;
                }
            };
            let _: Result<(), _> = tokio::time::timeout(COUNTED, counting).await;
            if tries > TOO_OFTEN {
                failed(format!("{tries} tries within 3 s"))
            } else {
                Ok(format!("{tries} tries within 3 s"))
            }
        }
    )),
    case!("CON-019", Two, Happy, Target, "a new stream after one that was cancelled", |k| Box::pin(
        next_stream(k, true)
    )),
    case!(
        "CON-019",
        Two,
        Hostile,
        Target,
        "a new stream after one that broke before its initial request",
        |k| {
            Box::pin(async move {
                let mut s = k.stream().await?;
                let _ = s.hear(k.quiet()).await;
                drop(s);
                next_stream(k, false).await
            })
        }
    ),
    case!("CON-020", Two, Happy, Target, "the same offers again", |k| Box::pin(repeated(k, true))),
    case!("CON-020", Two, Hostile, Target, "they stop half-way the first time", |k| Box::pin(repeated(
        k, false
    ))),
    case!("CON-020", Both, Happy, Listen, "the same offers again, from the start", |k| Box::pin(repeated(
        k, true
    ))),
    case!("CON-020", Both, Hostile, Listen, "they stop half-way, and go on from the start", |k| Box::pin(
        repeated(k, false)
    )),
    case!("CON-021", Two, Happy, Nothing, "the configured context value", |k| Box::pin(async move {
        let mut s = k.publishing().await?;
        k.lives(&mut s).await?;
        Ok("ACK".to_owned())
    })),
    case!("CON-021", Two, Hostile, Context, "another context value", |k| Box::pin(context(
        k,
        |ours| format!("{ours}x")
    ))),
    case!("CON-021", Two, Hostile, Context, "no context value", |k| Box::pin(context(k, |_| String::new()))),
];

async fn returns(k: &mut Kit) -> Verdict {
    match k.accept_once(Face::Proper, k.options.connect).await? {
        Accepted::Stream(mut s, _) => {
            s.start();
            match s.next_ask(k.deadline()).await {
                Ok(ask) if ask.is_initial() => Ok("it came back and asked anew".to_owned()),
                Ok(_) => failed("it came back, but said something else first"),
                Err(heard) => failed(format!("it came back; then {heard}")),
            }
        }
        Accepted::Refused(text) => failed(format!("it came back, but {text}")),
    }
}

async fn next_stream(k: &mut Kit, before: bool) -> Verdict {
    if before {
        let mut s = k.publishing().await?;
        k.lives(&mut s).await?;
    }
    let mut s = k.publishing().await?;
    k.lives(&mut s).await?;
    Ok("served".to_owned())
}

/// A full state of three, and the same again on a new stream.
async fn repeated(k: &mut Kit, whole: bool) -> Verdict {
    let mut s = k.publishing().await?;
    let offers: Vec<Offer> = (0..3).map(|_| k.good_offer(&s)).collect();
    for offer in offers.iter().take(if whole { 3 } else { 1 }) {
        acked(k, &mut s, Said::offer(offer.clone())).await?;
    }
    if !k.dials() {
        s.end(UNAVAILABLE, "restarting");
        let _ = s.ending(k.quiet()).await;
    }
    drop(s);
    let mut s = k.publishing().await?;
    for offer in &offers {
        acked(k, &mut s, Said::offer(offer.clone())).await?;
    }
    Ok("three ACKs on the new stream".to_owned())
}

/// Shows another value; a consumer that accepts must take nothing.
async fn context(k: &mut Kit, make: fn(&str) -> String) -> Verdict {
    if !k.dials() {
        return Err(Stop::NotApplicable("only who accepts compares the value".to_owned()));
    }
    let mut s = k.stream().await?;
    let value = make(&k.options.context);
    let mut said = s.initial();
    if let Some(ask) = &mut said.ask {
        ask.context.clone_from(&value);
    }
    s.say(&said);
    let mut offer = k.good_offer(&s);
    offer.context = value;
    s.say(&Said::offer(offer.clone()));
    let answer = s.answer_to(&offer.nonce, k.deadline()).await;
    drop(s);
    match &answer {
        Answer::Ack(_) | Answer::Bare => return failed(answer.to_string()),
        Answer::Not(Heard::Nothing) => return failed("neither a refusal nor an end"),
        _ => {}
    }
    k.recovers().await?;
    Ok(format!("{answer}; the right value is served"))
}
