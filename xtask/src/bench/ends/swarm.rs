//! A swarm of lean consumers in one process: each with a connection, a certificate and a stream of
//! its own. They count, acknowledge, and know how late each change was.
//!
//! Commands: `expect KEY VERSION` says what is coming, and `arrived` waits until every consumer has
//! it; `latest VERSION MILLIS` waits until every consumer has at least that version of every
//! service, or nothing has come for so long; `take` tells what was seen since the last time.

mod board;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::TestLeaf;
use hamlet_testkit::tls::stranger_client;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Commands, EndOptions, numbers, tell};
use crate::bench::agent::{CONSUMER, member};
use crate::bench::lean::{Call, Speech, connect};
use crate::bench::machine::Cost;
use board::Board;
pub(in crate::bench) use board::{Arrived, Latest, Seen};

/// Most consumers that connect at once.
const CONNECTING_MAX: usize = 32;
/// Longest wait for something that should come at once.
const LATE: Duration = Duration::from_secs(10);
/// Longest that it may take until all have joined and have everything.
const JOINING: Duration = Duration::from_secs(30);
/// A hostile consumer's pause before it comes back.
const HOSTILE_PAUSE: Duration = Duration::from_millis(10);
/// Calls that it opens and resets on one connection.
const HOSTILE_CALLS: usize = 64;

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::bench) enum System {
    /// Ours.
    Hamlet,
    /// The Go reference's.
    Go,
    /// etcd.
    Etcd,
}

impl System {
    fn speech(self) -> Speech {
        match self {
            System::Hamlet => Speech::V2,
            System::Go => Speech::V1,
            System::Etcd => Speech::Etcd,
        }
    }
}

/// How the consumers behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::bench) enum Behaviour {
    /// They acknowledge everything.
    Good,
    /// They subscribe and never read again.
    Stalled,
    /// They open calls and reset them, and send garbage, again and again.
    Hostile,
}

/// All consumers are there.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Joined {
    /// How many.
    pub(in crate::bench) members: usize,
    /// How long it took.
    pub(in crate::bench) seconds: f64,
}

#[derive(Clone)]
struct Member {
    number: usize,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    speech: Speech,
    board: Arc<Board>,
    connecting: Arc<Semaphore>,
}

/// Runs it.
pub(super) async fn run(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    let server = options.peer_address()?;
    let board = Board::new(options.members, options.services);
    let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
    let clock = SystemClock::new();
    for number in 0..options.members {
        let leaf = match options.system {
            System::Hamlet => member(options.first + number),
            System::Go | System::Etcd => CONSUMER.to_owned(),
        };
        let one = Member {
            number,
            server,
            tls: stranger_client(Some(&TestLeaf::read(&options.folder, &leaf)), &[b"h2"]),
            speech: options.system.speech(),
            board: board.clone(),
            connecting: connecting.clone(),
        };
        let behave = options.behave;
        spawner.spawn("member", async move {
            let board = one.board.clone();
            let ended = match behave {
                Behaviour::Good => one.follow().await,
                Behaviour::Stalled => one.stall().await,
                Behaviour::Hostile => one.molest().await,
            };
            let Err(error) = ended;
            board.broke(&format!("{error:#}"));
        });
    }
    let joined = board.until_joined(options.behave == Behaviour::Good, JOINING);
    if let Some(problem) = joined.await {
        bail!("not all of the swarm joined: {problem}");
    }
    tell(&Joined { members: options.members, seconds: clock.now().as_secs_f64() })?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("expect") => {
                let [key, version] = numbers(&command)?;
                tell(&board.expect(key as usize, version))?;
            }
            Some("arrived") => tell(&board.arrived(LATE).await)?,
            Some("latest") => {
                let [version, millis] = numbers(&command)?;
                tell(&board.latest(version, Duration::from_millis(millis)).await)?;
            }
            Some("take") => tell(&board.take())?,
            Some("cost") => tell(&Cost::now())?,
            _ => bail!("a swarm was told {command:?}"),
        }
    }
    Ok(())
}

impl Member {
    /// Subscribes and acknowledges until something ends.
    async fn follow(self) -> anyhow::Result<Infallible> {
        let permit = self.connecting.clone().acquire_owned().await?;
        let (sender, connection) = connect(self.server, self.tls.clone()).await?;
        drop(permit);
        let drive = async {
            connection.await?;
            bail!("the connection ended")
        };
        let talk = async {
            let mut sender = sender.ready().await?;
            let mut call = Call::open(&mut sender, self.speech.path(), &self.speech.subscribe(), false)?;
            while let Some(message) = call.next().await? {
                let took = |delivery| self.board.took(self.number, delivery);
                if let Some(answer) = self.speech.hear(&message, took) {
                    call.send(&answer, false)?;
                }
            }
            bail!("the server ended the stream")
        };
        let (never, _): (Infallible, Infallible) = tokio::try_join!(drive, talk)?;
        Ok(never)
    }

    /// Subscribes, hears the first message, and never reads again.
    async fn stall(self) -> anyhow::Result<Infallible> {
        let (sender, connection) = connect(self.server, self.tls.clone()).await?;
        let mut sender = sender.ready().await?;
        let mut call = Call::open(&mut sender, self.speech.path(), &self.speech.subscribe(), false)?;
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => bail!("the connection ended"),
            first = call.next() => drop(first?.context("no first message")?),
        }
        self.board.joined();
        // Neither the call nor the connection is polled any more, and both stay open.
        std::future::pending::<()>().await;
        drop(call);
        bail!("it ended")
    }

    /// Comes again and again: calls that are reset at once, then a connection of garbage.
    async fn molest(self) -> anyhow::Result<Infallible> {
        let mut counted = false;
        'molesting: loop {
            // Being thrown out is the point.
            let _ = self.reset_calls().await;
            let _ = self.garbage().await;
            if !counted {
                self.board.joined();
                counted = true;
            }
            tokio::time::sleep(HOSTILE_PAUSE).await;
            continue 'molesting;
        }
    }

    async fn reset_calls(&self) -> anyhow::Result<()> {
        let (sender, connection) = connect(self.server, self.tls.clone()).await?;
        let opening = async {
            let mut sender = sender;
            for _ in 0..HOSTILE_CALLS {
                sender = sender.ready().await?;
                // Dropped at once: RST_STREAM.
                drop(Call::open(&mut sender, self.speech.path(), &self.speech.subscribe(), false)?);
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = connection => Ok(ended?),
            opened = opening => opened,
        }
    }

    async fn garbage(&self) -> anyhow::Result<()> {
        let tcp = TcpStream::connect(self.server).await?;
        let name = ServerName::try_from("localhost")?;
        let mut stream = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        stream.write_all(&[0xa5; 4096]).await?;
        stream.shutdown().await?;
        Ok(())
    }
}
