//! Workloads: small real servers in the test's process, each a thread a connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A server; stops taking connections when it is dropped.
pub(crate) struct Workload {
    /// Where it listens.
    pub(crate) at: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Workload {
    fn start(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Workload {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (stopped, serve) = (stop.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !stopped.load(Ordering::SeqCst)) {
                let serve = serve.clone();
                std::thread::spawn(move || drop(serve(stream)));
            }
        });
        Workload { at, stop }
    }

    /// Sends back whatever comes.
    pub(crate) fn echo() -> Workload {
        Workload::start(|mut stream| {
            let mut reader = stream.try_clone()?;
            std::io::copy(&mut reader, &mut stream).map(drop)
        })
    }

    /// Says its name in a line, then sends back whatever comes.
    pub(crate) fn named_echo(name: &'static str) -> Workload {
        Workload::start(move |mut stream| {
            writeln!(stream, "{name}")?;
            let mut reader = stream.try_clone()?;
            std::io::copy(&mut reader, &mut stream).map(drop)
        })
    }

    /// Reads a PROXY v2 header, answers with one line on what it says, then sends back what comes.
    pub(crate) fn proxied_echo() -> Workload {
        Workload::start(|mut stream| {
            let told = read_proxy_v2(&mut stream)?;
            writeln!(stream, "{told}")?;
            let mut reader = stream.try_clone()?;
            std::io::copy(&mut reader, &mut stream).map(drop)
        })
    }

    /// Answers one HTTP request a connection with its name and the request's head, header names in
    /// lower case.
    pub(crate) fn http(name: &'static str) -> Workload {
        Workload::start(move |mut stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            let (mut body, mut line) = (format!("I am {name}\n"), String::new());
            while reader.read_line(&mut line)? > 2 {
                let (key, value) = line.trim_end().split_once(": ").unwrap_or((line.trim_end(), ""));
                let key = if value.is_empty() { key.to_owned() } else { key.to_lowercase() + ": " };
                body += &format!("{key}{value}\n");
                line.clear();
            }
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close");
            write!(stream, "{head}\r\n\r\n{body}")
        })
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, which then looks.
        let _ = TcpStream::connect(self.at);
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The version and command byte, the family byte, and the TLV 0xE0 of a PROXY v2 header.
fn read_proxy_v2(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    if &head[..12] != SIGNATURE {
        return Ok(format!("no PROXY v2 header but {head:?}"));
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest)?;
    // IPv4: two addresses and two ports, then TLVs.
    let mut tlvs = rest.get(12..).unwrap_or_default();
    let mut caller = "nobody".to_owned();
    while let [kind, high, low, more @ ..] = tlvs {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, after) = more.split_at(length.min(more.len()));
        if *kind == 0xe0 {
            caller = String::from_utf8_lossy(value).into_owned();
        }
        tlvs = after;
    }
    Ok(format!("{:#04x} {:#04x} {caller}", head[12], head[13]))
}
