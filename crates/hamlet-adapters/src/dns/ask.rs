//! One question to one DNS server, for those who check that names are answered. Not a resolver: no
//! retries, no caches, nobody else is asked.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

use hamlet_core::Fqdn;

use super::config::UDP_REPLY_MAX;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AskError {
    #[error("{server} can't be asked: {error}; see whether the DNS listener runs there")]
    Io { server: SocketAddr, error: std::io::Error },
    #[error("{server} answers {code}; see whether the service is still imported")]
    Code { server: SocketAddr, code: ResponseCode },
    #[error("{server} sends something else than an answer; see what listens there")]
    NotDns { server: SocketAddr },
}

/// Asks `server` over UDP for the IPv4 addresses of `name`. The caller sets the deadline.
///
/// # Errors
/// When it can't be asked, or its answer isn't one, or says anything but NOERROR.
pub async fn ask(server: SocketAddr, name: &Fqdn) -> Result<Vec<IpAddr>, AskError> {
    let io = |error| AskError::Io { server, error };
    let not_dns = || AskError::NotDns { server };
    let labels = name.as_str().split('.').map(str::as_bytes);
    let question = Name::from_labels(labels).map_err(|_| not_dns())?;
    // Nothing hangs on guessing it: the answer is only shown, and the socket is connected.
    let id = std::process::id() as u16;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(question.clone(), RecordType::A));
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(&message.to_vec().map_err(|_| not_dns())?).await.map_err(io)?;
    let mut bytes = vec![0; UDP_REPLY_MAX];
    let length = socket.recv(&mut bytes).await.map_err(io)?;
    let reply = Message::from_vec(&bytes[..length]).map_err(|_| not_dns())?;
    if reply.metadata.id != id || reply.metadata.message_type != MessageType::Response {
        return Err(not_dns());
    }
    match reply.metadata.response_code {
        ResponseCode::NoError => {}
        code => return Err(AskError::Code { server, code }),
    }
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        _ => None,
    };
    Ok(reply.answers.iter().filter_map(|record| address(&record.data)).collect())
}
