//! What a workload of a mesh does: it asks names and calls services. No curl, no dig: those have
//! their own test.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::mesh::{Mesh, Two};
use crate::wait::until;

/// No answer on loopback takes so long.
const ANSWER: Duration = Duration::from_secs(10);

/// A DNS answer: the code (0 NOERROR, 3 NXDOMAIN, 5 REFUSED) and the A records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) code: u8,
    pub(crate) addresses: Vec<Ipv4Addr>,
}

/// Asks a mesh's DNS for the A records of a name, over UDP.
pub(crate) fn resolve(mesh: &Mesh, name: &str) -> Names {
    let mut query = vec![0xbe, 0xef, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(ANSWER)).unwrap();
    socket.send_to(&query, mesh.at.dns).unwrap();
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer).expect("DNS answers");
    let answer = &buffer[..length];
    assert_eq!(answer[..2], query[..2], "another query's answer");
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    let mut at = query.len();
    let mut addresses = vec![];
    for _ in 0..count {
        // A name: labels, or at once a pointer.
        while answer[at] != 0 && answer[at] < 0xc0 {
            at += 1 + usize::from(answer[at]);
        }
        at += if answer[at] == 0 { 1 } else { 2 };
        let (kind, length) = (answer[at + 1], usize::from(answer[at + 9]));
        let data = &answer[at + 10..at + 10 + length];
        if kind == 1 {
            addresses.push(Ipv4Addr::new(data[0], data[1], data[2], data[3]));
        }
        at += 10 + length;
    }
    Names { code: answer[3] & 0xf, addresses }
}

/// The one egress address of a name.
pub(crate) fn address(mesh: &Mesh, name: &str) -> Result<Ipv4Addr, String> {
    let answer = resolve(mesh, name);
    match answer.addresses[..] {
        [one] if answer.code == 0 && mesh.block.in_pool(one) => Ok(one),
        _ => Err(format!("{name}: {answer:?}")),
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
}

/// One GET on a connection of its own. `host` may be followed by further header lines.
pub(crate) fn get(to: SocketAddr, host: &str, path: &str) -> Result<Answer, String> {
    let failed = |what: &'static str| move |e: std::io::Error| format!("{what} {to}: {e}");
    let mut stream = TcpStream::connect_timeout(&to, ANSWER).map_err(failed("connecting to"))?;
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed("asking"))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed("reading from"))?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok(Answer { status: status.ok_or_else(|| format!("no HTTP answer: {text:?}"))?, text })
}

/// A raw connection that must answer soon.
pub(crate) fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a line to an echo and reads it back.
pub(crate) fn echo(stream: &mut TcpStream, line: &str) -> std::io::Result<()> {
    let line = format!("{line}\n");
    stream.write_all(line.as_bytes())?;
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back)?;
    if back == line.as_bytes() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("{:?} came back", String::from_utf8_lossy(&back))))
    }
}

/// Reads a line.
pub(crate) fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = vec![];
    let mut byte = [0];
    while line.len() < 1024 {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Waits for the connection's end, which must come by itself; what arrives before is thrown away.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Result<(), String> {
    let mut rest = [0; 1024];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err("the connection is still open".to_owned());
            }
            Err(_) => return Ok(()),
        }
    }
}

impl Two {
    /// Where globex's workloads find a service of acme.
    pub(crate) fn egress(&self, service: &str) -> Result<SocketAddr, String> {
        let address = address(&self.globex, &self.acme.fqdn(service))?;
        Ok((address, self.port).into())
    }

    /// A call from globex to an HTTP service of acme as a workload makes it: name, address, call.
    pub(crate) fn call(&self, service: &str, path: &str) -> Result<Answer, String> {
        let host = format!("{}:{}", self.acme.fqdn(service), self.port);
        get(self.egress(service)?, &host, path)
    }

    /// Waits until such a call is answered with 200.
    #[track_caller]
    pub(crate) fn until_answers(&self, service: &str) -> Answer {
        until(&format!("{service} answers through both gateways"), || match self.call(service, "/") {
            Ok(answer) if answer.status == 200 => Ok(answer),
            other => Err(format!("{other:?}")),
        })
    }

    /// Waits until globex knows nothing of a service: neither its name, nor a listener, nor state.
    #[track_caller]
    pub(crate) fn until_gone(&self, service: &str, was_at: SocketAddr) {
        let fqdn = self.acme.fqdn(service);
        until(&format!("{service} is gone everywhere"), || {
            let names = resolve(&self.globex, &fqdn);
            if names.code == 0 {
                return Err(format!("in DNS: {names:?}"));
            }
            if connect(was_at).is_ok_and(|mut s| read_to_end(&mut s).is_err()) {
                return Err("its egress listener serves".to_owned());
            }
            match self.globex.service(&fqdn) {
                Some(service) => Err(format!("in the state: {service}")),
                None => Ok(()),
            }
        });
    }
}
