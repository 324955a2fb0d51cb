//! A trusted peer that dials us and misbehaves, over real sockets: each thing has one defined
//! answer, nothing panics, and the honest peer on the same agent gets its next change.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::dialect::v1alpha2::PATH;
use hamlet_protocol::link::CONNECTIONS_MAX;
use hamlet_protocol::server::STREAMS_A_MINUTE;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_testkit::pki::{DAY, HOUR, LeafSpec, TestCa, TestLeaf};
use hamlet_testkit::{GENEROUS, eventually, eventually_ok};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod common;
use common::raw::*;
use common::stage::Stage;

/// The hostile peer's stream, subscribed as a foreign peer.
async fn subscribed(stage: &Stage) -> (hyper::client::conn::http2::SendRequest<Body>, Call) {
    let mut sender = connect(stage.bank.address, &stage.leaf).await.unwrap();
    let mut call = Call::open(&mut sender).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    call.writer.say(subscription());
    let first = call.offer().await;
    assert_eq!((first.nonce.as_str(), first.resource_id.as_str()), ("1", "ledger"));
    (sender, call)
}

fn padded(bytes: usize) -> Vec<u8> {
    let mut response = upsert("padded", "n");
    response.resource.as_mut().unwrap().value = vec![0; bytes].into();
    let over = offers(response.clone()).encoded_len() - bytes;
    response.resource.as_mut().unwrap().value = vec![0; bytes - over].into();
    let message = offers(response).encode_to_vec();
    assert_eq!(message.len(), bytes);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_change_is_refused_and_the_stream_lives() {
    let stage = Stage::set(None).await;
    let (_sender, mut call) = subscribed(&stage).await;
    let good = || upsert("good", "n");
    let other = Some(Any { type_url: "other".into(), ..good().resource.unwrap() });
    let garbage = Some(Any { value: Bytes::from_static(b"\xff\xff"), ..good().resource.unwrap() });
    let cases: Vec<(&str, i32, Vec<u8>)> = vec![
        ("whole", 0, offers(good()).encode_to_vec()),
        ("oversized", 8, padded(64 * 1024 + 1)),
        ("as large as may be, undecodable", 3, padded(64 * 1024)),
        ("no resource", 3, offers(pb::StreamResponse { resource: None, ..good() }).encode_to_vec()),
        ("operation 0", 12, offers(pb::StreamResponse { operation: 0, ..good() }).encode_to_vec()),
        ("operation 3", 12, offers(pb::StreamResponse { operation: 3, ..good() }).encode_to_vec()),
        ("Any of another type", 3, offers(pb::StreamResponse { resource: other, ..good() }).encode_to_vec()),
        (
            "another resource_url",
            12,
            offers(pb::StreamResponse { resource_url: "x".into(), ..good() }).encode_to_vec(),
        ),
        (
            "undecodable resource",
            3,
            offers(pb::StreamResponse { resource: garbage, ..good() }).encode_to_vec(),
        ),
        ("no key", 3, offers(pb::StreamResponse { resource_id: String::new(), ..good() }).encode_to_vec()),
        ("deletion of nothing", 0, {
            let unknown =
                pb::StreamResponse { resource_id: "unknown".into(), resource: None, operation: 2, ..good() };
            offers(unknown).encode_to_vec()
        }),
        ("whole again", 0, offers(good()).encode_to_vec()),
    ];
    for (what, code, message) in cases {
        call.writer.bytes(&message);
        assert_eq!(call.answer("n").await, Ok(code), "{what}");
    }
    // What was refused as `good` was heard; the whole one is in force again.
    eventually("in force", GENEROUS, || stage.bank.imports() == ["good.evil.example"]).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breach_of_the_protocol_is_counted_and_the_stream_lives() {
    let stage = Stage::set(None).await;
    let (_sender, mut call) = subscribed(&stage).await;
    let ok = || Some(rpc::Status::default());
    let breaches = [
        answers("999", ok()),
        answers("x\u{1b}[31m", ok()),
        subscription(),
        pb::BidirectionalStream::default(),
        asks(pb::StreamRequest::default()),
    ];
    let count = breaches.len() as u64;
    for (i, breach) in breaches.into_iter().enumerate() {
        call.writer.say(breach);
        let wanted = i as u64 + 1;
        eventually("it is counted", GENEROUS, || stage.status().violations == wanted).await;
    }
    call.writer.say(answers("1", None));
    eventually("an answer without status is counted", GENEROUS, || stage.status().violations == count + 1)
        .await;
    assert_eq!(stage.status().oldest_unanswered, None, "and taken");
    call.writer.say(offers(upsert("good", "n")));
    assert_eq!(call.answer("n").await, Ok(0));
    stage.still_serves().await;
    let next = call.offer().await;
    assert_eq!(next.resource_id, "after", "the hostile peer is still served as well");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_message_can_be_ends_the_stream_with_a_reason() {
    let stage = Stage::set(None).await;
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 1, 0]);
    let huge = padded((4 << 20) + 1);
    let not_a_message = framed(b"\x0a\xff\xff\xff");
    let cases: [(&str, Bytes, &[i32]); 5] = [
        ("over 4 MiB", framed(&huge), &[11]),
        ("a length of 4 GiB", Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]), &[11]),
        ("undecodable", not_a_message, &[3]),
        ("compressed though nothing was agreed", compressed, &[13, 12]),
        ("a frame of no known kind", Bytes::from_static(&[9, 0, 0, 0, 0]), &[13, 14]),
    ];
    for (what, bytes, codes) in cases {
        let (_sender, mut call) = subscribed(&stage).await;
        call.writer.raw(bytes);
        match call.end().await {
            Heard::Status(code, text) => {
                assert!(codes.contains(&code) || code == 14, "{what}: {code} {text}");
                assert!(!text.is_empty(), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_opens_with_the_context_value_and_our_type_only() {
    let stage = Stage::set(None).await;
    let request = |url: &str, context: &str| {
        asks(pb::StreamRequest {
            resource_url: url.into(),
            context: context.into(),
            ..pb::StreamRequest::default()
        })
    };
    let early =
        |context: &str| offers(pb::StreamResponse { context: context.into(), ..upsert("early", "n") });
    let cases = [
        ("another context", request(TYPE_URL, "guess"), 16),
        ("no context", request(TYPE_URL, ""), 16),
        ("another type", request("other", common::agent::CONTEXT), 3),
        ("no type", request("", common::agent::CONTEXT), 3),
        ("a change first, with another context", early("guess"), 16),
    ];
    for (what, first, code) in cases {
        let mut sender = connect(stage.bank.address, &stage.leaf).await.unwrap();
        let mut call = Call::open(&mut sender).await.unwrap_or_else(|heard| panic!("{heard:?}"));
        call.writer.say(first);
        match call.end().await {
            Heard::Status(got, _) => assert_eq!(got, code, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let mut sender = connect(stage.bank.address, &stage.leaf).await.unwrap();
    let mut call = Call::open(&mut sender).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    call.writer.say(early(common::agent::CONTEXT));
    assert_eq!(call.answer("n").await, Ok(0), "a change before the initial request, with the value");
    assert_eq!(stage.status().violations, 1);
    call.writer.say(subscription());
    assert_eq!(call.offer().await.resource_id, "ledger");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_our_method_is_refused_in_http_or_grpc_terms() {
    let stage = Stage::set(None).await;
    let mut sender = connect(stage.bank.address, &stage.leaf).await.unwrap();
    let other = "/federation.resourcediscovery.v1beta1.DiscoveryService/EstablishStream";
    let cases = [
        ("POST", other, "application/grpc", Heard::Status(12, String::new())),
        ("POST", "/", "application/grpc", Heard::Status(12, String::new())),
        ("POST", PATH, "application/json", Heard::Http(415)),
        ("GET", PATH, "application/grpc", Heard::Http(405)),
    ];
    for (method, path, content_type, expected) in cases {
        let (request, writer) = request(method, path, content_type);
        let mut call =
            Call::with(&mut sender, request, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
        match (call.end().await, expected) {
            (Heard::Status(code, _), Heard::Status(wanted, _)) => assert_eq!(code, wanted, "{path}"),
            (got, wanted) => assert_eq!(got, wanted, "{method} {path} {content_type}"),
        }
    }
    let (request, writer) = request("POST", PATH, "application/grpc+proto");
    let mut call = Call::with(&mut sender, request, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    call.writer.say(subscription());
    assert_eq!(call.offer().await.resource_id, "ledger", "the proper neighbour is served");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_answers_is_shown_stalled_and_kept() {
    let stage = Stage::set(None).await;
    let (_sender, mut call) = subscribed(&stage).await;
    stage.still_serves().await;
    let status = stage.status();
    assert!(status.oldest_unanswered.is_some());
    assert_eq!((status.behind, status.owner.unwrap().sent), (2, 1), "one of the two in flight, never more");
    // When it comes to its senses, it gets the rest.
    call.writer.say(answers("1", Some(rpc::Status::default())));
    assert_eq!(call.offer().await.resource_id, "after");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_reads_holds_up_nobody() {
    let stage = Stage::set(None).await;
    let mut raw = RawHttp2::connect(stage.bank.address, &stage.leaf, 0).await.unwrap();
    let mut start = call_headers(1, &[]);
    start.extend(frame(DATA, 0, 1, &framed(&subscription().encode_to_vec())));
    for i in 0..100 {
        start.extend(frame(DATA, 0, 1, &framed(&offers(upsert("good", &i.to_string())).encode_to_vec())));
    }
    raw.write(&start).await.unwrap();
    eventually("its changes are taken", GENEROUS, || stage.bank.imports() == ["good.evil.example"]).await;
    stage.still_serves().await;
    assert!(
        raw.silent(Duration::from_millis(50), |f| f.0 == DATA && !f.3.is_empty()).await,
        "no window, no data"
    );
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_four_connections_and_a_closed_one_makes_room() {
    let stage = Stage::set(None).await;
    let (address, leaf) = (stage.bank.address, &stage.leaf);
    let mut open = vec![];
    for _ in 0..CONNECTIONS_MAX {
        let mut sender = connect(address, leaf).await.unwrap();
        let call = Call::open(&mut sender).await.unwrap_or_else(|heard| panic!("{heard:?}"));
        open.push((sender, call));
    }
    let fifth = async {
        let mut sender = connect(address, leaf).await.map_err(|e| Heard::Broken(e.to_string()))?;
        Call::open(&mut sender).await.map(|call| (sender, call))
    };
    assert!(matches!(fifth.await, Err(Heard::Broken(_))));
    open.pop();
    eventually_ok("a place is free again", GENEROUS, async || {
        let mut sender = connect(address, leaf).await.map_err(|e| Heard::Broken(e.to_string()))?;
        let mut call = Call::open(&mut sender).await?;
        call.writer.say(subscription());
        match call.hear().await {
            Heard::Message(_) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_four_streams_at_once_and_the_fifth_is_refused() {
    let stage = Stage::set(None).await;
    let mut raw = RawHttp2::connect(stage.bank.address, &stage.leaf, 0).await.unwrap();
    // Without a window none of them can be ended by the agent, once it has written to it.
    let before = stage.status().streams;
    for (opened, stream) in (before + 1..).zip([1, 3, 5, 7]) {
        let mut start = call_headers(stream, &[]);
        start.extend(frame(DATA, 0, stream, &framed(&subscription().encode_to_vec())));
        raw.write(&start).await.unwrap();
        eventually("its first change is written", GENEROUS, || {
            let status = stage.status();
            status.streams == opened && status.owner.is_some_and(|o| o.sent == 1)
        })
        .await;
    }
    raw.write(&call_headers(9, &[])).await.unwrap();
    let refused = raw.until(|f| f.0 == RST_STREAM && f.2 == 9).await.expect("the connection lives");
    assert_eq!(refused.3, 7u32.to_be_bytes(), "REFUSED_STREAM");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_over_the_limit_are_refused_and_those_below_it_taken() {
    let stage = Stage::set(None).await;
    let mut raw = RawHttp2::connect(stage.bank.address, &stage.leaf, 65_535).await.unwrap();
    let (huge, large) = ("h".repeat(9 * 1024), "h".repeat(4 * 1024));
    raw.write(&call_headers(1, &[("x-huge", &huge)])).await.unwrap();
    // Either the stream is refused with 431 and reset, or the connection is closed.
    let refused = raw.until(|f| f.2 == 1 || f.0 == GOAWAY).await;
    assert!(refused.is_none_or(|f| f.0 != DATA), "no call was made of it");
    let mut raw = RawHttp2::connect(stage.bank.address, &stage.leaf, 65_535).await.unwrap();
    let mut start = call_headers(1, &[("x-large", &large)]);
    start.extend(frame(DATA, 0, 1, &framed(&subscription().encode_to_vec())));
    raw.write(&start).await.unwrap();
    assert!(raw.until(|f| f.2 == 1 && f.0 == DATA).await.is_some(), "it is subscribed");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let stage = Stage::set(None).await;
    let mut raw = RawHttp2::connect(stage.bank.address, &stage.leaf, 65_535).await.unwrap();
    for stream in (0..400u32).map(|i| 2 * i + 1) {
        let mut both = call_headers(stream, &[]);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        if raw.write(&both).await.is_err() {
            break;
        }
    }
    let _ = raw.until(|f| f.0 == GOAWAY).await;
    assert_eq!(raw.until(|_| false).await, None, "closed");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_opens_stream_after_stream_is_closed_and_a_new_one_is_served() {
    let stage = Stage::set(None).await;
    let mut sender = connect(stage.bank.address, &stage.leaf).await.unwrap();
    let mut served = 0;
    let broken = loop {
        let (request, writer) = request("POST", "/", "application/grpc");
        let outcome = match Call::with(&mut sender, request, writer).await {
            Ok(mut call) => call.end().await,
            Err(heard) => heard,
        };
        match outcome {
            Heard::Status(12, _) => served += 1,
            other => break other,
        }
    };
    assert_eq!(served, STREAMS_A_MINUTE, "{broken:?}");
    eventually_ok("the connection is gone", GENEROUS, async || match sender.is_closed() {
        true => Ok(()),
        false => Err("open"),
    })
    .await;
    let _stream = subscribed(&stage).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_http2_ends_the_connection() {
    let stage = Stage::set(None).await;
    let mut hello = vec![];
    hello.put_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    hello.put_slice(&frame(0xee, 0xff, u32::MAX, &[0; 16_000]));
    hello.put_slice(&frame(DATA, 0, 0, &[1; 100]));
    for garbage in [b"GET / HTTP/1.1\r\nhost: bank\r\n\r\n".to_vec(), vec![0; 4096], vec![0xff; 4096], hello]
    {
        let mut tls = tls(stage.bank.address, Some(&stage.leaf)).await.unwrap();
        let _ = tls.write_all(&garbage).await;
        let _ = tls.flush().await;
        let mut rest = vec![];
        let closing = tokio::time::timeout(GENEROUS, tls.read_to_end(&mut rest)).await;
        assert!(closing.is_ok(), "closed, whatever came before");
    }
    stage.close().await;
}

/// Whether a call with this certificate gets through.
async fn gets_through(stage: &Stage, leaf: Option<&TestLeaf>) -> bool {
    let Ok(tls) = tls(stage.bank.address, leaf).await else { return false };
    let io = hyper_util::rt::TokioIo::new(tls);
    let executor = hyper_util::rt::TokioExecutor::new();
    let Ok((mut sender, connection)) = hyper::client::conn::http2::handshake(executor, io).await else {
        return false;
    };
    // The stranger is no part of the agent: nobody supervises it.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(connection);
    let (request, _writer) = request("POST", "/", "application/grpc");
    let answer = tokio::time::timeout(GENEROUS, sender.send_request(request)).await;
    answer.expect("an answer in time").is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_ends_at_tls_and_the_peer_gets_through() {
    let stage = Stage::set(None).await;
    let good = LeafSpec::of(stage.evil_id().as_str());
    let spec = |change: &dyn Fn(&mut LeafSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        stage.evil.leaf(spec)
    };
    let strangers: Vec<(&str, Option<TestLeaf>)> = vec![
        ("no certificate", None),
        ("another CA", Some(TestCa::new("evil.example").agent())),
        (
            "another domain under the peer's CA",
            Some(spec(&|s| s.uris = vec!["spiffe://shop.example/agent".into()])),
        ),
        ("another id of the peer", Some(spec(&|s| s.uris = vec!["spiffe://evil.example/gateway".into()]))),
        ("two ids", Some(spec(&|s| s.uris.push("spiffe://evil.example/other".into())))),
        ("expired", Some(spec(&|s| (s.not_before, s.not_after) = (-DAY, -HOUR)))),
        ("not valid yet", Some(spec(&|s| (s.not_before, s.not_after) = (HOUR, DAY)))),
        ("a stolen certificate", Some(stage.evil.agent().with_key_of(&stage.evil.agent()))),
    ];
    for (who, leaf) in &strangers {
        assert!(!gets_through(&stage, leaf.as_ref()).await, "{who}");
        assert!(gets_through(&stage, Some(&spec(&|_| {}))).await, "the neighbour of {who}");
    }
    let (server, name) = (stage.bank.address, Arc::new("bank.example".to_owned()));
    let old = hamlet_testkit::tls::old_client(&stage.leaf);
    let tcp = tokio::net::TcpStream::connect(server).await.unwrap();
    let name = (*name).clone().try_into().unwrap();
    assert!(tokio_rustls::TlsConnector::from(old).connect(name, tcp).await.is_err(), "TLS 1.2");
    stage.close().await;
}
