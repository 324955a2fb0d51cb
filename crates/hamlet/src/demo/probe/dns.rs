//! A resolver's question for an IPv4 address, and as much of the answer as the demo looks at (RFC
//! 1035, section 4). One datagram; not a resolver.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

use super::in_time;

/// Type A, class IN.
const A_IN: [u8; 4] = [0, 1, 0, 1];
const HEADER_BYTES: usize = 12;

/// The response codes that the demo expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) enum Code {
    /// There is an answer, perhaps an empty one.
    NoError,
    /// There is no such name.
    NxDomain,
    /// Not ours to say.
    Refused,
    /// Any other.
    Other(u8),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Answer {
    /// The response code.
    pub(in crate::demo) code: Code,
    /// The addresses.
    pub(in crate::demo) addresses: Vec<Ipv4Addr>,
}

/// Asks `server` for the addresses of `name`.
pub(in crate::demo) async fn ask(server: SocketAddr, name: &str) -> Result<Answer, String> {
    let id: [u8; 2] = rand::random();
    let question = question(id, name);
    let failed = |e: std::io::Error| format!("{server} doesn't answer: {e}");
    in_time(async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        socket.connect(server).await.map_err(failed)?;
        socket.send(&question).await.map_err(failed)?;
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).await.map_err(failed)?;
        parse(&reply[..length], id).ok_or_else(|| format!("{server} answered what is no DNS"))
    })
    .await
}

fn question(id: [u8; 2], name: &str) -> Vec<u8> {
    // Flags: a plain query. Counts: one question.
    let mut out = [&id[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(A_IN);
    out
}

fn parse(bytes: &[u8], id: [u8; 2]) -> Option<Answer> {
    let header = bytes.get(..HEADER_BYTES)?;
    if header[..2] != id || header[2] & 0x80 == 0 {
        return None;
    }
    let code = match header[3] & 0x0f {
        0 => Code::NoError,
        3 => Code::NxDomain,
        5 => Code::Refused,
        other => Code::Other(other),
    };
    let (questions, answers) = (header[5], header[7]);
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        at = after_name(bytes, at)? + A_IN.len();
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        let fixed = after_name(bytes, at)?;
        // Type, class, time to live, length, then the data.
        let record = bytes.get(fixed..fixed + 10)?;
        let end = fixed + 10 + usize::from(u16::from_be_bytes([record[8], record[9]]));
        let data = bytes.get(fixed + 10..end)?;
        if record[..4] == A_IN {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at = end;
    }
    Some(Answer { code, addresses })
}

/// The place after the name at `at`. A pointer ends a name.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_cut_one_is_none() {
        let id = [7, 9];
        let mut reply = question(id, "a.example");
        (reply[2], reply[7]) = (0x84, 1);
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 65, 0, 129]);
        let expected = Answer { code: Code::NoError, addresses: vec![Ipv4Addr::new(127, 65, 0, 129)] };
        assert_eq!(parse(&reply, id), Some(expected));
        assert_eq!(parse(&reply, [0, 0]), None, "the answer to another question");
        assert!((0..reply.len()).all(|cut| parse(&reply[..cut], id).is_none()));
        let mut refused = question(id, "b.example");
        (refused[2], refused[3]) = (0x80, 5);
        assert_eq!(parse(&refused, id), Some(Answer { code: Code::Refused, addresses: vec![] }));
    }
}
