//! Attacks on HTTP/2 itself by a trusted peer (threat T14), over real sockets, bounded in number:
//! the attacker's connection is closed, what it costs is counted, and the honest peer on the same
//! agent gets its next change. Each flood has a neighbour: half as much of the same is served.

use std::sync::Arc;

use hamlet_protocol::frames::{FRAMES_BURST, FrameLimits};
use hamlet_protocol::limits::ConnectionLimits;
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::tls::stranger_server;
use hamlet_testkit::{GENEROUS, eventually, eventually_ok};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

mod common;
use common::agent::names;
use common::attacks::{Attack, of_nothing, subscribed, with_streams};
use common::raw::*;
use common::stage::Stage;

/// More than any budget, few enough to end soon if nobody closes the connection.
const MANY: u32 = 100_000;

async fn attacker(stage: &Stage, window: u32) -> RawHttp2 {
    let connected = async || RawHttp2::connect(stage.bank.address, &stage.leaf, window).await;
    // A peer has four connections; those before may not be gone yet.
    let mut raw = None;
    eventually_ok("a connection", GENEROUS, async || {
        raw = Some(connected().await?);
        Ok::<_, std::io::Error>(())
    })
    .await;
    raw.expect("connected")
}

/// Writes `once`, then `again` up to [`MANY`] times or until the agent closes the connection.
async fn flood(raw: &mut RawHttp2, once: &[u8], again: impl Fn(u32) -> Vec<u8>) {
    if raw.write(once).await.is_err() {
        return;
    }
    for from in (0..MANY).step_by(64) {
        let burst: Vec<u8> = (from..from + 64).flat_map(&again).collect();
        let written = tokio::time::timeout(GENEROUS, raw.write(&burst)).await;
        if written.expect("the agent reads, or closes").is_err() {
            break;
        }
    }
}

/// The honest peer gets a change that is made now.
async fn honest_gets(stage: &Stage, name: &str) {
    stage.bank.publish_to(&["shop", "evil"], &names(&["ledger", name]));
    eventually("the honest peer gets the change", GENEROUS, || {
        stage.shop.imports().contains(&format!("{name}.bank.example"))
    })
    .await;
    assert_eq!(stage.bank.failed_tasks(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_frames_that_carry_nothing_closes_the_connection_and_half_of_it_does_not() {
    let stage = Stage::set(None).await;
    for Attack { name, once, again } in of_nothing() {
        let again = again(0);
        let before = stage.status().floods;
        let mut raw = attacker(&stage, 65_535).await;
        flood(&mut raw, &once, |_| again.clone()).await;
        assert_eq!(raw.until(|_| false).await, None, "{name}: closed");
        drop(raw);
        eventually("counted", GENEROUS, || stage.status().floods == before + 1).await;
        honest_gets(&stage, &format!("after-{name}")).await;

        let mut raw = attacker(&stage, 65_535).await;
        raw.write(&once).await.unwrap();
        if !once.is_empty() {
            assert!(raw.until(|f| f.0 == DATA && f.2 == 1).await.is_some(), "{name}");
        }
        // Of empty DATA the library takes a hundred; which of the two limits is met first depends on
        // how much is read at once.
        let library = matches!(name, "empty-data" | "padding");
        let half = if library { 50 } else { FRAMES_BURST as usize / 2 };
        raw.write(&again.repeat(half)).await.unwrap();
        raw.write(&subscribed(9)).await.unwrap();
        let served = raw.until(|f| f.0 == DATA && f.2 == 9 && !f.3.is_empty()).await;
        assert!(served.is_some(), "the neighbour of {name} is served");
        assert_eq!(stage.status().floods, before + 1, "{name}");
    }
    stage.close().await;
}

/// Attacks that open streams, or that HTTP/2's own rules end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attacks_with_streams_headers_and_windows_close_the_connection() {
    let stage = Stage::set(None).await;
    for Attack { name, once, again } in with_streams() {
        let streams = stage.status().streams;
        let mut raw = attacker(&stage, 65_535).await;
        flood(&mut raw, &once, again).await;
        assert_eq!(raw.until(|_| false).await, None, "{name}: closed");
        let opened = stage.status().streams - streams;
        assert!(opened <= 17, "{name}: {opened} streams reached the peer's link");
        honest_gets(&stage, &format!("after-{name}")).await;
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_of_nothing_or_of_single_bytes_before_a_large_state_costs_one_change() {
    let stage = Stage::set(None).await;
    let many: Vec<String> = (0..2_000).map(|i| format!("s{i}")).collect();
    stage.bank.publish_to(&["shop", "evil"], &many);
    let mut raw = attacker(&stage, 0).await;
    raw.write(&subscribed(1)).await.unwrap();
    eventually("one change is on its way", GENEROUS, || {
        let status = stage.status();
        status.owner.is_some_and(|o| o.sent == 1) && status.behind >= 1_999
    })
    .await;
    eventually("the honest peer has them all", GENEROUS, || stage.shop.imports().len() == 2_000).await;
    let status = stage.status();
    assert_eq!((status.in_flight, status.owner.unwrap().sent), (1, 1), "and no more are made for this one");
    // A window that opens by single bytes makes us send single bytes; that earns it nothing.
    let before = status.floods;
    let crumb = frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes());
    flood(&mut raw, &[], |_| crumb.clone()).await;
    assert_eq!(raw.until(|_| false).await, None, "closed");
    eventually("counted", GENEROUS, || stage.status().floods == before + 1).await;
    honest_gets(&stage, "after").await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_we_dial_and_that_floods_us_is_left() {
    let evil = TestCa::new("evil.example");
    let leaf = evil.agent();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(stranger_server(&leaf, &[b"h2"]));
    // The hostile server is no part of the agent: nobody supervises it.
    #[allow(clippy::disallowed_methods)]
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(socket).await else { continue };
            let _ = tls.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            for _ in 0..MANY / 64 {
                if tls.write_all(&frame(PING, 0, 0, &[0; 8]).repeat(64)).await.is_err() {
                    break;
                }
            }
            let _ = tls.read_to_end(&mut vec![]).await;
        }
    });
    let stage = Stage::with(evil, leaf, Some(address)).await;
    eventually("the flood is counted and named", GENEROUS, || {
        let status = stage.status();
        status.floods >= 1 && status.last_error.is_some_and(|e| e.contains("PING"))
    })
    .await;
    honest_gets(&stage, "after-flood").await;
    serving.abort();
    stage.close().await;
}

/// Two honest agents with much to say stay far below every budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_peers_at_full_speed_are_never_taken_for_a_flood() {
    let stage = Stage::set(None).await;
    for round in 0..3 {
        let many: Vec<String> = (0..3_000).map(|i| format!("r{round}-s{i}")).collect();
        stage.bank.publish_to(&["shop"], &many);
        stage.shop.publish("bank", &many);
        eventually("both have all", GENEROUS, || {
            let of =
                |names: Vec<String>| names.iter().filter(|n| n.starts_with(&format!("r{round}-"))).count();
            of(stage.shop.imports()) == 3_000 && of(stage.bank.imports()) == 3_000
        })
        .await;
    }
    let floods =
        |agent: &common::agent::Agent| agent.links.load().values().map(|l| l.status().floods).sum::<u64>();
    assert_eq!((floods(&stage.bank), floods(&stage.shop)), (0, 0));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets_at_the_agents_port_cost_an_honest_peer_nothing() {
    let stage = Stage::set(None).await;
    let open = |socket: &TcpStream| {
        let mut byte = [0];
        matches!(socket.try_read(&mut byte), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    };
    // All have the same prefix, which may have 256 of them: the oldest give way. Those that are left
    // would be closed by their deadline; then the attempt says nothing and is made again.
    eventually_ok("served beside open silent sockets", GENEROUS, async || {
        let mut silent = vec![];
        for _ in 0..400 {
            silent.push(TcpStream::connect(stage.bank.address).await.map_err(|e| e.to_string())?);
        }
        let mut raw =
            RawHttp2::connect(stage.bank.address, &stage.leaf, 65_535).await.map_err(|e| e.to_string())?;
        raw.write(&subscribed(1)).await.map_err(|e| e.to_string())?;
        raw.until(|f| f.0 == DATA && f.2 == 1).await.ok_or("closed before it was served")?;
        let mut evicted = [0; 1];
        let first = silent[0].read(&mut evicted).await;
        let last_is_open = silent.last().is_some_and(open);
        match (first, last_is_open) {
            (Ok(0) | Err(_), true) => Ok(()),
            (first, last) => Err(format!("the first: {first:?}, the last open: {last}")),
        }
    })
    .await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_a_connection_are_those_in_force_when_it_comes() {
    let stage = Stage::set(None).await;
    let set = |limits: ConnectionLimits| stage.bank.limits.store(Arc::new(limits));
    let pings = |n: usize| frame(PING, 0, 0, &[0; 8]).repeat(n);
    let answered = async |raw: &mut RawHttp2, n: usize| {
        for _ in 0..n {
            raw.until(|f| f.0 == PING && f.1 == 1).await?;
        }
        Some(())
    };
    let usual = ConnectionLimits::default();
    set(ConnectionLimits { frames: FrameLimits { burst: 64, a_second: 1 }, ..usual });
    let mut strict = attacker(&stage, 65_535).await;
    strict.write(&pings(32)).await.unwrap();
    assert!(answered(&mut strict, 1).await.is_some(), "within the limit");
    set(usual);
    // Nothing changes for a connection that is there.
    for _ in 0..4 {
        let _ = strict.write(&pings(64)).await;
    }
    assert_eq!(strict.until(|_| false).await, None, "closed by its own limit");
    let mut lenient = attacker(&stage, 65_535).await;
    lenient.write(&pings(128)).await.unwrap();
    lenient.write(&subscribed(1)).await.unwrap();
    assert!(lenient.until(|f| f.0 == DATA && f.2 == 1).await.is_some(), "within the usual limit");
    drop(lenient);

    set(ConnectionLimits { streams_a_minute: 2, ..usual });
    let mut raw = attacker(&stage, 65_535).await;
    for stream in [1, 3, 5] {
        let _ = raw.write(&call_headers(stream, &[])).await;
    }
    assert_eq!(raw.until(|_| false).await, None, "the third stream closes it");
    drop(raw);

    set(ConnectionLimits { connections_per_peer: 1, ..usual });
    // Those before may not be gone yet; then the only place is free once they are.
    let mut only = None;
    eventually_ok("a first connection", GENEROUS, async || {
        let mut raw = attacker(&stage, 65_535).await;
        raw.write(&subscribed(1)).await.map_err(|e| e.to_string())?;
        raw.until(|f| f.0 == DATA && f.2 == 1).await.ok_or("closed")?;
        only = Some(raw);
        Ok::<_, String>(())
    })
    .await;
    let mut second = attacker(&stage, 65_535).await;
    assert_eq!(second.until(|_| false).await, None, "one more than one");
    drop((only, second));
    set(usual);
    stage.close().await;
}
