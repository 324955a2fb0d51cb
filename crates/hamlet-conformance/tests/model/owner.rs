//! A model owner: its services are files, and it looks at them every few milliseconds.

use std::collections::BTreeMap;
use std::time::Duration;

use hamlet_conformance::wire::{Any, Status, field};
use hamlet_conformance::{Ask, Offer, Operation, Role, Said, Service, Version};

use super::plumbing::{Frames, Model, Out, Stop};
use super::{CONTEXT, Fault};

/// How often it looks at its services.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// gRPC status.
const UNAVAILABLE: i32 = 14;

#[derive(Default)]
struct State {
    subscribed: bool,
    /// What the consumer was offered last, by name: the bytes.
    offered: BTreeMap<String, Vec<u8>>,
    /// What waits for an answer: nonce and name.
    in_flight: Option<(String, String)>,
    /// Refused as unavailable: offered again.
    again: Vec<String>,
    count: u64,
    stopped: bool,
    said_initial: bool,
}

fn service(name: &str, revision: &str, version: Version) -> Vec<u8> {
    let fqdn = format!("{name}.model.example");
    Service {
        key: name.to_owned(),
        description: revision.to_owned(),
        sans: vec!["spiffe://model.example/gateway".to_owned()],
        protocols: vec!["HTTP".to_owned()],
        endpoints: vec![("192.0.2.20".to_owned(), 443)],
        fqdn,
        ..Service::default()
    }
    .encode(version)
}

impl State {
    fn context(model: &Model) -> String {
        let forgets = model.fault == Fault::ForgetsContext || model.version == Version::V1alpha1;
        if forgets { String::new() } else { CONTEXT.to_owned() }
    }

    fn look(&mut self, model: &Model, out: &Out) {
        if !self.subscribed || self.stopped {
            return;
        }
        if model.version == Version::V1alpha2 && !std::mem::replace(&mut self.said_initial, true) {
            initial(model, out);
        }
        loop {
            if self.in_flight.is_some() && model.fault != Fault::DoesNotWait {
                return;
            }
            let mut now = BTreeMap::new();
            for entry in std::fs::read_dir(&model.services).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let read = std::fs::read_to_string(entry.path());
                if let (false, Ok(revision)) = (name.starts_with('.'), read) {
                    now.insert(name.clone(), service(&name, revision.trim(), model.version));
                }
            }
            let gone = self.offered.keys().find(|name| !now.contains_key(*name)).cloned();
            let differs = |(name, value): &(&String, &Vec<u8>)| match self.offered.get(*name) {
                None => true,
                Some(old) => old != *value && model.fault != Fault::LosesUpdates,
            };
            let new = now.iter().find(differs).map(|(n, v)| (n.clone(), v.clone()));
            let again = self.again.pop().and_then(|n| now.get(&n).map(|v| (n, v.clone())));
            if let Some((name, value)) = again.or(new) {
                let known = self.offered.insert(name.clone(), value.clone()).is_some();
                self.offer(
                    model,
                    out,
                    &name,
                    if known { Operation::Update } else { Operation::Create },
                    value,
                );
            } else if let Some(name) = gone {
                let value = self.offered.remove(&name).unwrap_or_default();
                self.offer(model, out, &name, Operation::Delete, value);
            } else {
                return;
            }
        }
    }

    fn offer(&mut self, model: &Model, out: &Out, name: &str, operation: Operation, value: Vec<u8>) {
        self.count += 1;
        let nonce = if model.fault == Fault::EmptyNonce { String::new() } else { self.count.to_string() };
        let url = model.version.type_url();
        let type_url = if model.fault == Fault::OtherAnyType { "x/y".to_owned() } else { url.clone() };
        let bare = model.fault == Fault::NoResource
            || (model.fault == Fault::EmptyDelete && operation == Operation::Delete);
        let said = Said::offer(Offer {
            nonce: nonce.clone(),
            resource_url: url,
            resource_id: name.to_owned(),
            resource: (!bare).then_some(Any { type_url, value }),
            operation: model.version.operation(operation),
            context: State::context(model),
        });
        let mut bytes = said.encode(model.version);
        if model.fault == Fault::ExtendsToAnyone {
            bytes.extend(field(2, &field(1000, b"\x2a\x00")));
        }
        out.bytes(&bytes);
        self.in_flight = Some((nonce, name.to_owned()));
    }

    /// One request; `Err` ends the stream.
    fn ask(&mut self, model: &Model, ask: &Ask) -> Result<(), (i32, &'static str)> {
        if ask.nonce.is_empty() && ask.status.is_none() {
            if self.subscribed {
                return Ok(());
            }
            let context = model.version == Version::V1alpha1 || model.fault == Fault::AnyContext;
            if !context && !model.dialled && ask.context != CONTEXT {
                return Err((16, "context"));
            }
            if ask.resource_url != model.version.type_url() && model.fault != Fault::ServesAnyType {
                return Err((3, "resource_url"));
            }
            self.subscribed = true;
            return Ok(());
        }
        let Some((_, name)) = self.in_flight.take_if(|(n, _)| *n == ask.nonce || ask.nonce.is_empty()) else {
            let ends = model.fault == Fault::EndsOnOddAck;
            return if ends { Err((3, "unknown nonce")) } else { Ok(()) };
        };
        match &ask.status {
            None if model.fault == Fault::CrashesOnNoStatus => Err((13, "nil pointer")),
            Some(Status { code: 0, .. }) | None => Ok(()),
            Some(status) => {
                self.stopped = model.fault == Fault::StopsAfterNack;
                if status.code == UNAVAILABLE {
                    self.again.push(name);
                }
                Ok(())
            }
        }
    }
}

fn initial(model: &Model, out: &Out) {
    let ask =
        Ask { resource_url: model.version.type_url(), context: State::context(model), ..Ask::default() };
    out.bytes(&Said::ask(ask).encode(model.version));
}

/// One stream.
pub(crate) async fn session(model: Model, mut frames: Frames, out: Out) {
    let mut state = State { subscribed: model.fault == Fault::OffersUnasked, ..State::default() };
    if model.dialled {
        state.said_initial = true;
        initial(&model, &out);
    }
    loop {
        state.look(&model, &out);
        tokio::select! {
            heard = frames.next() => match heard {
                Ok(bytes) => match Said::decode(model.version, Role::Consumer, &bytes) {
                    Ok(said) => {
                        let Some(ask) = said.ask else { continue };
                        if let Err((code, text)) = state.ask(&model, &ask) {
                            return out.end(code, text);
                        }
                    }
                    Err(_) if model.fault == Fault::IgnoresNoMessage => {}
                    Err(_) => return out.end(3, "no message"),
                },
                Err(Stop::Gone) => return,
                Err(Stop::Bad(code, text)) => return out.end(code, text),
            },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
