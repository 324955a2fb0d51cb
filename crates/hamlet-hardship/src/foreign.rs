//! A model of the Go implementation of v1alpha2 (protocol text, section 4): one loop that sends
//! and receives, offers back to back, drops what it imported when the stream ends, and crashes
//! where the real one does. A crash is a broken invariant of ours.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::protobuf::Any;
use hamlet_protocol::wire::google::rpc;
use prost::Message;

use crate::model::{Read, Shared};
use crate::pipe::Pipe;
use crate::truth::{Key, MeshId};
use crate::wire::Conn;
use crate::world::{CONTEXT, Sim};

/// The foreign mesh.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    catalogue: BTreeMap<Key, Bytes>,
    imported: BTreeMap<Key, Bytes>,
    events: VecDeque<(Key, Option<Bytes>)>,
    connected: u64,
    nonces: u64,
    /// It neither reads nor writes.
    pub(crate) stalled: bool,
}

impl Foreign {
    /// From now on it offers exactly this; what doesn't change is not said again.
    pub(crate) fn publish(&mut self, all: BTreeMap<Key, Bytes>) {
        for (key, value) in &all {
            if self.catalogue.get(key) != Some(value) {
                self.events.push_back((key.clone(), Some(value.clone())));
            }
        }
        for key in self.catalogue.keys().filter(|k| !all.contains_key(*k)) {
            self.events.push_back((key.clone(), None));
        }
        self.catalogue = all;
    }

    pub(crate) fn imported(&self) -> &BTreeMap<Key, Bytes> {
        &self.imported
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected > 0
    }

    fn begin(&mut self) {
        self.imported.clear();
        self.connected += 1;
        self.events = self.catalogue.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    }

    fn offer(&mut self) -> Option<(Key, Option<Bytes>, pb::StreamResponse)> {
        let (key, value) = self.events.pop_front()?;
        self.nonces += 1;
        // A deletion carries the last resource, whose bytes nobody needs.
        let resource = Any { type_url: TYPE_URL.to_owned(), value: value.clone().unwrap_or_default() };
        let operation = if value.is_some() { 1 } else { 2 };
        let response = pb::StreamResponse {
            nonce: format!("go-{:019}", self.nonces),
            resource_url: TYPE_URL.to_owned(),
            resource_id: key.to_string(),
            resource: Some(resource),
            operation,
            context: CONTEXT.to_owned(),
            ..pb::StreamResponse::default()
        };
        Some((key, value, response))
    }
}

fn request(url: &str, nonce: &str, status: Option<rpc::Status>) -> pb::BidirectionalStream {
    let request = pb::StreamRequest {
        resource_url: url.to_owned(),
        response_nonce: nonce.to_owned(),
        status,
        context: CONTEXT.to_owned(),
        ..pb::StreamRequest::default()
    };
    pb::BidirectionalStream { request: Some(request), response: None }
}

struct Session {
    sim: Sim,
    conn: Arc<Conn>,
    me: MeshId,
    peer: MeshId,
    foreign: Shared<Foreign>,
    subscribed: bool,
}

impl Session {
    fn crash(&self, what: &str) {
        let model = self.sim.lock().model.clone();
        model.lock().complain("crash", format!("the foreign peer {} crashes on {what}", self.me));
    }

    /// What it does with one message; the answer it gives.
    fn handle(&mut self, message: pb::BidirectionalStream) -> Option<pb::BidirectionalStream> {
        if let Some(request) = message.request {
            self.request(&request);
        }
        let response = message.response?;
        let key: Key = response.resource_id.as_str().into();
        let value = match (response.operation, response.resource) {
            (1, None) => {
                self.crash("an UPSERT without a resource");
                return None;
            }
            (1, Some(resource)) => Some(resource.value),
            _ => None,
        };
        let way = (self.peer, self.me);
        {
            let model = self.sim.lock().model.clone();
            let read = Read { nonce: response.nonce.clone(), key: key.clone(), value: value.clone() };
            let mut stream = self.conn.stream(self.peer).lock();
            model.lock().offer_read(way, &mut stream, read);
        }
        let mut foreign = self.foreign.lock();
        match value {
            Some(value) => foreign.imported.insert(key, value),
            None => foreign.imported.remove(&key),
        };
        drop(foreign);
        self.sim.lock().observe(self.me);
        // Its acknowledgement has a status and no resource_url.
        Some(request("", &response.nonce, Some(rpc::Status::default())))
    }

    fn request(&mut self, request: &pb::StreamRequest) {
        if !self.subscribed {
            self.subscribed = true;
            return;
        }
        if request.control.is_some() {
            self.crash("an extension message");
        }
        let Some(status) = &request.status else {
            if !request.response_nonce.is_empty() || request.control.is_none() {
                self.crash("an answer without a status");
            }
            return;
        };
        if status.code == 14 {
            let model = self.sim.lock().model.clone();
            let what = format!(
                "the foreign owner {} is refused something as UNAVAILABLE; it won't say it again",
                self.me
            );
            model.lock().complain("I8", what);
        }
    }
}

/// Serves one connection that was dialled to it.
pub(crate) async fn serve(
    sim: Sim,
    foreign: Shared<Foreign>,
    conn: Arc<Conn>,
    reading: Arc<Pipe>,
    writing: Arc<Pipe>,
    (me, peer): (MeshId, MeshId),
) {
    {
        let world = sim.lock();
        let mut model = world.model.lock();
        model.begin_stream((peer, me), conn.number);
        model.foreign_dropped((peer, me));
    }
    let mut session = Session {
        sim: sim.clone(),
        conn: conn.clone(),
        me,
        peer,
        foreign: foreign.clone(),
        subscribed: false,
    };
    let mut answers: VecDeque<pb::BidirectionalStream> = VecDeque::new();
    foreign.lock().begin();
    let number = foreign.lock().connected;
    let mut greeted = false;
    'talking: loop {
        while foreign.lock().stalled {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        if foreign.lock().connected != number {
            break 'talking;
        }
        // Sends what it has to say first: it doesn't read while it can't write.
        let out = if session.subscribed && !greeted {
            greeted = true;
            Some(request(TYPE_URL, "", None))
        } else if let Some(answer) = answers.pop_front() {
            Some(answer)
        } else if greeted {
            offer(&session)
        } else {
            None
        };
        if let Some(out) = out {
            if !writing.room().await {
                break 'talking;
            }
            writing.put(out.encode_to_vec());
            continue 'talking;
        }
        let wait = Duration::from_millis(200);
        match tokio::time::timeout(wait, reading.take()).await {
            Err(_) => {}
            Ok(Ok(Some(bytes))) => match pb::BidirectionalStream::decode(&bytes[..]) {
                Ok(message) => answers.extend(session.handle(message)),
                Err(_) => session.crash("bytes that are no message"),
            },
            Ok(Ok(None) | Err(_)) => break 'talking,
        }
    }
    reading.leave();
    writing.finish(None);
    let mut its = foreign.lock();
    if its.connected == number {
        // It drops at once what it imported from us.
        its.imported.clear();
        its.connected = 0;
    }
    drop(its);
    let world = sim.lock();
    let mut model = world.model.lock();
    model.foreign_dropped((peer, me));
}

fn offer(session: &Session) -> Option<pb::BidirectionalStream> {
    let (key, value, response) = session.foreign.lock().offer()?;
    let model = session.sim.lock().model.clone();
    let mut stream = session.conn.stream(session.me).lock();
    let way = (session.me, session.peer);
    model.lock().offer_written(way, &mut stream, &key, value.as_deref(), None);
    Some(pb::BidirectionalStream { request: None, response: Some(response) })
}
