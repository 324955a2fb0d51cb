//! A model consumer: it answers, and keeps nothing.

use std::collections::VecDeque;
use std::net::IpAddr;

use hamlet_conformance::wire::Status;
use hamlet_conformance::{Ask, Offer, Operation, Role, Said, Service, Version};

use super::plumbing::{Frames, Model, Out, Stop};
use super::{CONTEXT, Fault};

/// gRPC status codes.
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const UNIMPLEMENTED: i32 = 12;

fn blank(model: &Model) -> Ask {
    let two = model.version == Version::V1alpha2 && model.fault != Fault::ForgetsContext;
    Ask { context: if two { CONTEXT.to_owned() } else { String::new() }, ..Ask::default() }
}

fn initial(model: &Model, out: &Out) {
    let ask = Ask { resource_url: model.version.type_url(), ..blank(model) };
    out.bytes(&Said::ask(ask).encode(model.version));
}

/// What is wrong with an offer.
fn judge(model: &Model, offer: &Offer) -> Result<(), (i32, &'static str)> {
    if model.fault == Fault::TakesAnything {
        return Ok(());
    }
    let (version, url) = (model.version, model.version.type_url());
    let bad = |text| Err((INVALID_ARGUMENT, text));
    let operations = [Operation::Create, Operation::Update, Operation::Delete];
    let Some(operation) = operations.into_iter().find(|o| version.operation(*o) == offer.operation) else {
        return Err((UNIMPLEMENTED, "operation"));
    };
    if offer.resource_url != url {
        return Err((UNIMPLEMENTED, "resource_url"));
    }
    if version == Version::V1alpha2 && offer.resource_id.is_empty() {
        return bad("resource_id");
    }
    if operation == Operation::Delete {
        let bare = offer.resource.is_none() && model.fault == Fault::NeedsResourceInDelete;
        return if bare { bad("resource") } else { Ok(()) };
    }
    if model.fault == Fault::TwoIsDelete && offer.operation == 2 {
        return bad("nothing to delete");
    }
    let Some(any) = offer.resource.as_ref().filter(|any| any.type_url == url) else { return bad("resource") };
    let Ok(service) = Service::decode(version, &any.value) else { return bad("resource") };
    if !service.lacks().is_empty() {
        return bad("a required field");
    }
    let special = |(address, _): &(String, u32)| {
        address.parse().is_ok_and(|ip: IpAddr| ip.is_multicast() || address.starts_with("169.254."))
    };
    if !service.fqdn.ends_with(".kit.example") || service.endpoints.iter().any(special) {
        return Err((PERMISSION_DENIED, "policy"));
    }
    Ok(())
}

fn answer(model: &Model, offer: &Offer, out: &Out) -> bool {
    let verdict = judge(model, offer);
    let status = match verdict {
        Ok(()) => Status::default(),
        Err((code, text)) => {
            let message = if model.fault == Fault::SilentNack { String::new() } else { text.to_owned() };
            Status { code, message, details: vec![] }
        }
    };
    if model.fault == Fault::EndsOnBad && verdict.is_err() {
        return false;
    }
    let ask = Ask {
        resource_url: model.version.type_url(),
        nonce: offer.nonce.clone(),
        status: (model.fault != Fault::NoStatus).then_some(status),
        ..blank(model)
    };
    let bytes = Said::ask(ask).encode(model.version);
    for _ in 0..if model.fault == Fault::AnswersTwice { 2 } else { 1 } {
        out.bytes(&bytes);
    }
    true
}

/// One stream.
pub(crate) async fn session(model: Model, mut frames: Frames, out: Out) {
    let mut asked = false;
    if model.dialled {
        asked = true;
        initial(&model, &out);
    }
    let mut shown = model.dialled || model.version == Version::V1alpha1;
    let mut waiting: VecDeque<Offer> = VecDeque::new();
    loop {
        let said = match frames.next().await {
            Ok(bytes) => match Said::decode(model.version, Role::Owner, &bytes) {
                Ok(said) => said,
                Err(_) if model.fault == Fault::IgnoresNoMessage => continue,
                Err(_) => return out.end(INVALID_ARGUMENT, "no message"),
            },
            Err(Stop::Gone) => return,
            Err(Stop::Bad(code, text)) => return out.end(code, text),
        };
        let context = [said.ask.as_ref().map(|a| &a.context), said.offer.as_ref().map(|o| &o.context)];
        if !shown && model.fault != Fault::AnyContext {
            if !context.into_iter().flatten().any(|c| c == CONTEXT) {
                return out.end(16, "context");
            }
            shown = true;
        }
        if said.ask.as_ref().is_some_and(Ask::is_initial) && !asked {
            asked = true;
            initial(&model, &out);
        }
        let Some(offer) = said.offer else { continue };
        match model.fault {
            Fault::Silent => continue,
            Fault::AsksTwice => initial(&model, &out),
            // Answers go out in pairs, the later one first.
            Fault::Backwards => {
                waiting.push_front(offer);
                if waiting.len() == 2 {
                    for offer in waiting.drain(..) {
                        answer(&model, &offer, &out);
                    }
                }
                continue;
            }
            _ => {}
        }
        if !answer(&model, &offer, &out) {
            return out.end(INVALID_ARGUMENT, "a bad offer");
        }
    }
}
