//! The physical limits: a bare ping-pong over the agents' TLS, and the disk's fdatasync. Nothing of
//! the protocol is in it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, bail};
use hamlet_core::PeerName;
use hamlet_identity::{agent_client_config, agent_server_config, agent_server_name};
use hamlet_protocol::transport;
use hamlet_runtime::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Commands, EndOptions, Ready, tell};
use crate::bench::agent::{CONSUMER, Identities, OWNER};
use crate::bench::machine::Cost;

/// Bytes of a ping, and of a pong.
const PING_BYTES: usize = 500;
/// Bytes of a record.
const RECORD_BYTES: usize = 600;
/// Bytes of the file that they are written into.
const FILE_BYTES: usize = 16 << 20;
/// Pings before it counts.
const WARM_UP: usize = 500;

/// How often something was done, and what it cost.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Counted {
    /// How often.
    pub(in crate::bench) count: u64,
    /// In how many seconds.
    pub(in crate::bench) seconds: f64,
    /// Processor time of this end over it, in microseconds.
    pub(in crate::bench) cpu_us: u64,
}

/// Answers the pings of one client.
pub(super) async fn pong(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let Identities { identity, trust } = Identities::read(&options.folder, OWNER, &[CONSUMER.to_owned()])?;
    let listener = TcpListener::bind(options.listen).await?;
    tell(&Ready { address: listener.local_addr()?, service_bytes: PING_BYTES })?;
    let before = Cost::now();
    let (tcp, _) = listener.accept().await?;
    transport::tune(&tcp)?;
    let mut tls = TlsAcceptor::from(agent_server_config(&identity, &trust)).accept(tcp).await?;
    let mut message = [0; PING_BYTES];
    let mut count = 0;
    // The client's end is the end.
    while tls.read_exact(&mut message).await.is_ok() {
        tls.write_all(&message).await?;
        tls.flush().await?;
        count += 1;
    }
    let _ = commands.next().await;
    tell(&Counted { count, seconds: 0.0, cpu_us: Cost::now().cpu_us - before.cpu_us })
}

/// Pings for `--millis`; with 0 it only shakes hands and says goodbye.
pub(super) async fn ping(options: &EndOptions) -> anyhow::Result<()> {
    let Identities { identity, trust } = Identities::read(&options.folder, CONSUMER, &[OWNER.to_owned()])?;
    let tcp = TcpStream::connect(options.peer_address()?).await?;
    transport::tune(&tcp)?;
    let peer = PeerName::parse(OWNER)?;
    let name = agent_server_name(&trust.peer(&peer).context("a peer without trust")?.trust_domain);
    let config = agent_client_config(&identity, &trust, &peer);
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    let clock = SystemClock::new();
    let mut message = [7; PING_BYTES];
    let (mut count, mut started, mut before) = (0, Duration::ZERO, Cost::default());
    let warm_up = if options.delay_us > 0 { 1 } else { WARM_UP };
    if options.millis > 0 {
        for round in 0.. {
            if round == warm_up {
                (started, before) = (clock.now(), Cost::now());
            }
            tls.write_all(&message).await?;
            tls.flush().await?;
            tls.read_exact(&mut message).await?;
            count += u64::from(round >= warm_up);
            if round > warm_up && (clock.now() - started).as_millis() as u64 >= options.millis {
                break;
            }
        }
    }
    let seconds = (clock.now() - started).as_secs_f64();
    tell(&Counted { count, seconds, cpu_us: Cost::now().cpu_us.saturating_sub(before.cpu_us) })?;
    let _ = tls.shutdown().await;
    Ok(())
}

/// Writes one record after the other into a file that has its size already, and makes each durable:
/// the least that durability costs, because the file system has nothing of its own to note.
pub(super) fn disk(options: &EndOptions) -> anyhow::Result<Counted> {
    let path = options.folder.join("records");
    let mut file = File::create(&path)?;
    file.write_all(&vec![0; FILE_BYTES])?;
    file.sync_all()?;
    let clock = SystemClock::new();
    let before = Cost::now();
    let mut count = 0;
    while (clock.now().as_millis() as u64) < options.millis {
        let at = count as usize % (FILE_BYTES / RECORD_BYTES) * RECORD_BYTES;
        file.write_all_at(&[7; RECORD_BYTES], at as u64)?;
        file.sync_data()?;
        count += 1;
    }
    let seconds = clock.now().as_secs_f64();
    std::fs::remove_file(&path)?;
    if count == 0 {
        bail!("the disk did nothing");
    }
    Ok(Counted { count, seconds, cpu_us: Cost::now().cpu_us - before.cpu_us })
}
