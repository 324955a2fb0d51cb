//! One question to one answer, bytes in and bytes out. Pure. *Hardened to untrusted peer.*
//!
//! It is not a resolver: nothing is asked of anybody. Invariants: no bytes make it panic; a reply to
//! a UDP request is at most [`config::AMPLIFICATION_MAX`] times as long as the request; the question
//! comes back byte for byte (0x20 case included); a reply is never answered (no loops).

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{HINFO, NS, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use super::config;
use super::translate::{Found, NameRecords, Zone};

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// As a message on a connection.
    Tcp,
}

/// What became of a request. Also the label of its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Records were given.
    Answered,
    /// Records were given, but not all fit: the client should ask again over TCP.
    Truncated,
    /// The name exists, without records of that type.
    NoData,
    /// The name does not exist, under an exclusive suffix.
    NoSuchName,
    /// Not ours to answer.
    Refused,
    /// Not a DNS query as the standards have it.
    Malformed,
    /// Another operation than a query.
    NotImplemented,
    /// An EDNS version that we don't know.
    BadVersion,
    /// No reply: too short to be answered, or itself a reply.
    Dropped,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 9] = [
        Outcome::Answered,
        Outcome::Truncated,
        Outcome::NoData,
        Outcome::NoSuchName,
        Outcome::Refused,
        Outcome::Malformed,
        Outcome::NotImplemented,
        Outcome::BadVersion,
        Outcome::Dropped,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Truncated => "truncated",
            Outcome::NoData => "no-data",
            Outcome::NoSuchName => "no-such-name",
            Outcome::Refused => "refused",
            Outcome::Malformed => "malformed",
            Outcome::NotImplemented => "not-implemented",
            Outcome::BadVersion => "bad-version",
            Outcome::Dropped => "dropped",
        }
    }
}

/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;
/// Bytes of type and class behind the name of a question.
const QUESTION_TAIL_BYTES: usize = 4;

/// A request that could be read.
struct Request {
    query: Query,
    edns: Option<RequestEdns>,
}

/// What a request's OPT record says (RFC 6891, 6.1.3).
#[derive(Clone, Copy)]
struct RequestEdns {
    version: u8,
    dnssec_ok: bool,
    payload: u16,
}

/// What to reply, before it is known what fits.
struct Reply {
    code: ResponseCode,
    outcome: Outcome,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Reply {
    fn bare(code: ResponseCode, outcome: Outcome) -> Reply {
        Reply { code, outcome, answers: Vec::new(), authorities: Vec::new() }
    }

    fn authoritative(&self) -> bool {
        matches!(self.outcome, Outcome::Answered | Outcome::NoData | Outcome::NoSuchName)
    }
}

/// Answers the DNS message `request` from `zone` into `out`, which is cleared first and stays empty
/// if there is nothing to reply ([`Outcome::Dropped`]).
///
/// A request shorter than a header is dropped: without its flags it can't be told from a reply, and
/// answering replies makes loops.
pub fn answer(zone: &Zone, request: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
    out.clear();
    let mut decoder = BinDecoder::new(request);
    let Ok(header) = Header::read(&mut decoder) else { return Outcome::Dropped };
    if header.metadata.message_type == MessageType::Response {
        return Outcome::Dropped;
    }
    let mut metadata = Metadata::response_from_request(&header.metadata);
    metadata.checking_disabled = false;
    let written = if header.metadata.op_code != OpCode::Query {
        header_only(metadata, ResponseCode::NotImp, out).map(|()| Outcome::NotImplemented)
    } else if let Some(read) = read_request(&header.counts, request, decoder) {
        let reply = decide(zone, &read, metadata.id);
        write_reply(metadata, &read, reply, reply_limit(&read, request.len(), transport), out)
    } else {
        header_only(metadata, ResponseCode::FormErr, out).map(|()| Outcome::Malformed)
    };
    // Writing fails only past 64 KiB, which the limits on records exclude.
    written.unwrap_or_else(|_| {
        out.clear();
        Outcome::Dropped
    })
}

/// Reads what follows the header; `None` is a format error. `decoder` stands behind the header.
fn read_request(counts: &HeaderCounts, bytes: &[u8], mut decoder: BinDecoder<'_>) -> Option<Request> {
    let plausible = bytes.len() <= config::REQUEST_MAX
        && counts.queries == 1
        && counts.answers == 0
        && counts.authorities <= config::REQUEST_AUTHORITIES_MAX
        && counts.additionals <= config::REQUEST_ADDITIONALS_MAX;
    if !plausible {
        return None;
    }
    let start = decoder.index();
    let query = Query::read(&mut decoder).ok()?;
    // A compressed question can only point into the header: it would not come back as it was sent.
    let labels: usize = query.name.iter().map(|label| label.len() + 1).sum();
    if decoder.index() - start != labels + 1 + QUESTION_TAIL_BYTES {
        return None;
    }
    for _ in 0..counts.authorities {
        let record = Record::read(&mut decoder).ok()?;
        if record.record_type() == RecordType::OPT {
            return None;
        }
    }
    let mut edns = None;
    for _ in 0..counts.additionals {
        let record = Record::read(&mut decoder).ok()?;
        if record.record_type() == RecordType::OPT && edns.replace(request_edns(&record)).is_some() {
            return None;
        }
    }
    Some(Request { query, edns })
}

/// Reads the fields that an OPT record keeps in the place of its class and time to live. Its options
/// are ignored: there is none that we support.
fn request_edns(record: &Record) -> RequestEdns {
    let [_, version, flags, _] = record.ttl.to_be_bytes();
    RequestEdns { version, dnssec_ok: flags & 0x80 != 0, payload: record.dns_class.into() }
}

/// How long the reply may be, in bytes.
fn reply_limit(request: &Request, request_bytes: usize, transport: Transport) -> usize {
    match transport {
        Transport::Tcp => config::TCP_REPLY_MAX,
        Transport::Udp => {
            let asked = request.edns.map_or(0, |edns| usize::from(edns.payload));
            let size = asked.clamp(config::UDP_PLAIN_MAX, config::UDP_REPLY_MAX);
            size.min(request_bytes.saturating_mul(config::AMPLIFICATION_MAX))
        }
    }
}

/// The meaning of the answer: codes and records. `turn` varies from question to question and turns
/// the order of records, so that each comes first in its time.
fn decide(zone: &Zone, request: &Request, turn: u16) -> Reply {
    if request.edns.is_some_and(|edns| edns.version > 0) {
        return Reply::bare(ResponseCode::BADVERS, Outcome::BadVersion);
    }
    let refused = Reply::bare(ResponseCode::Refused, Outcome::Refused);
    let query = &request.query;
    if query.query_class != DNSClass::IN || is_meta(query.query_type) {
        return refused;
    }
    let Some(name) = canonical(&query.name) else { return refused };
    let (code, outcome, cut) = match zone.find(&name) {
        Found::Foreign => return refused,
        Found::Missing { cut } => (ResponseCode::NXDomain, Outcome::NoSuchName, cut),
        Found::Existing { records, cut, apex } => {
            let answers = answers(zone, query, records, apex, usize::from(turn));
            if !answers.is_empty() {
                let code = ResponseCode::NoError;
                return Reply { code, outcome: Outcome::Answered, answers, authorities: Vec::new() };
            }
            (ResponseCode::NoError, Outcome::NoData, cut)
        }
    };
    let authorities = vec![start_of_authority(zone, query.name.trim_to(cut))];
    Reply { code, outcome, answers: Vec::new(), authorities }
}

/// Types that only make sense in questions or as signatures (RFC 6895, 3.1), but for ANY. Among
/// them zone transfers: what we import is nobody's to list.
fn is_meta(kind: RecordType) -> bool {
    matches!(u16::from(kind), 41 | 128..=254)
}

/// The name as canonical text, or `None` if it holds bytes that no name of ours has. Bytes are
/// checked label by label: a dot inside a label must not pass for a label boundary.
fn canonical(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte.to_ascii_lowercase() {
                b @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => text.push(char::from(b)),
                _ => return None,
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

fn answers(zone: &Zone, query: &Query, records: &NameRecords, apex: bool, turn: usize) -> Vec<Record> {
    let record = |data| Record::from_rdata(query.name.clone(), zone.ttl(), data);
    match query.query_type {
        RecordType::A => turned(&records.v4, config::ADDRESSES_MAX, turn)
            .map(|ip| record(RData::A((*ip).into())))
            .collect(),
        RecordType::AAAA => turned(&records.v6, config::ADDRESSES_MAX, turn)
            .map(|ip| record(RData::AAAA((*ip).into())))
            .collect(),
        RecordType::SRV => turned(&records.services, config::SERVICES_MAX, turn)
            .map(|srv| record(RData::SRV(srv.clone())))
            .collect(),
        RecordType::SOA if apex => vec![start_of_authority(zone, query.name.clone())],
        RecordType::NS if apex => vec![record(RData::NS(NS(query.name.clone())))],
        // RFC 8482, 4.2: one small record instead of all.
        RecordType::ANY if apex || !records.is_empty() => {
            vec![record(RData::HINFO(HINFO::from_bytes((*b"RFC8482").into(), [].into())))]
        }
        _ => Vec::new(),
    }
}

/// At most `max` of `all`, starting at another one each turn.
fn turned<T>(all: &[T], max: usize, turn: usize) -> impl Iterator<Item = &T> {
    let start = turn.checked_rem(all.len()).unwrap_or(0);
    all.iter().cycle().skip(start).take(all.len().min(max))
}

/// The SOA record of a zone cut, which also says how long its absence may be cached (RFC 2308).
/// Like in the locally served zones of RFC 6303 (section 3) the cut names itself as its server: we
/// can't know under which name or address clients reach us.
fn start_of_authority(zone: &Zone, cut: Name) -> Record {
    let (refresh, retry, expire) = (3600, 1200, 604_800);
    let soa =
        SOA::new(cut.clone(), Name::root(), zone.serial(), refresh, retry, expire, config::NEGATIVE_TTL);
    Record::from_rdata(cut, config::NEGATIVE_TTL, RData::SOA(soa))
}

fn header_only(mut metadata: Metadata, code: ResponseCode, out: &mut Vec<u8>) -> Result<(), ProtoError> {
    metadata.response_code = code;
    Header { metadata, counts: HeaderCounts::default() }.emit(&mut BinEncoder::new(out))
}

fn write_reply(
    mut metadata: Metadata,
    request: &Request,
    reply: Reply,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<Outcome, ProtoError> {
    let room = limit - request.edns.map_or(0, |_| OPT_BYTES);
    let mut encoder = BinEncoder::new(out);
    let place = encoder.place::<Header>()?;
    request.query.emit(&mut encoder)?;
    let answers = emit_fitting(&mut encoder, &reply.answers, room)?;
    let authorities = emit_fitting(&mut encoder, &reply.authorities, room)?;
    if let Some(asked) = request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(config::UDP_REPLY_MAX as u16);
        edns.set_dnssec_ok(asked.dnssec_ok);
        edns.set_rcode_high(reply.code.high());
        edns.emit(&mut encoder)?;
    }
    let all_fit = answers == reply.answers.len() && authorities == reply.authorities.len();
    metadata.authoritative = reply.authoritative();
    metadata.truncation = !all_fit;
    metadata.response_code = reply.code;
    let counts = HeaderCounts {
        queries: 1,
        answers: answers as u16,
        authorities: authorities as u16,
        additionals: u16::from(request.edns.is_some()),
    };
    place.replace(&mut encoder, Header { metadata, counts })?;
    Ok(if all_fit { reply.outcome } else { Outcome::Truncated })
}

/// Writes as many of `records` as end before `room`; says how many. (The encoder's own limit is of
/// no use: it also counts the name that compression then removes.)
fn emit_fitting(encoder: &mut BinEncoder<'_>, records: &[Record], room: usize) -> Result<usize, ProtoError> {
    for (written, record) in records.iter().enumerate() {
        let before = encoder.offset();
        record.emit(encoder)?;
        if encoder.offset() > room {
            encoder.set_offset(before);
            encoder.trim();
            return Ok(written);
        }
    }
    Ok(records.len())
}
