//! The paths. What each answers is in [`crate::api`]; there is no logic beyond choosing it.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use hamlet_runtime::Shutdown;
use http::{StatusCode, header};

use crate::api::{
    ApiError, BundleSetError, Confirmed, ErrorBody, ErrorCode, Found, ImportStatus, Kind, List, Listed,
    Origin, PeerStatus, PublicationStatus, ServiceStatus, StatusReport, find,
};
use crate::limits;
use crate::source::{Caller, StateSource};

#[derive(Clone)]
struct App {
    source: Arc<dyn StateSource>,
    stop: Shutdown,
}

/// The whole API, for the unix socket. Watches end when `stop` begins.
pub fn admin_router(source: Arc<dyn StateSource>, stop: Shutdown) -> Router {
    let app = App { source, stop };
    Router::new()
        .route("/v1/agent", get(agent))
        .route("/v1/status", get(status))
        .route("/v1/{kind}", get(list))
        .route("/v1/{kind}/{name}", get(one))
        .route("/v1/watch/{kind}", get(watch))
        .route("/v1/transcript/{peer}", get(transcript))
        .route("/v1/bundle", get(own_bundle))
        .route("/v1/bundle/{peer}", post(set_bundle))
        .route("/v1/peering", post(peering))
        .route("/v1/reload", post(reload))
        .route("/v1/reload/confirm-withdrawals", post(confirm_withdrawals))
        .merge(health_routes())
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .with_state(app)
}

/// Health and metrics alone, for TCP.
pub fn health_router(source: Arc<dyn StateSource>) -> Router {
    let app = App { source, stop: Shutdown::new() };
    health_routes().fallback(no_path).method_not_allowed_fallback(no_method).with_state(app)
}

fn health_routes() -> Router<App> {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/readyz/{check}", get(readyz_check))
        .route("/metrics", get(metrics))
}

fn error(status: StatusCode, error: ApiError) -> Response {
    (status, Json(ErrorBody { error })).into_response()
}

fn not_found(message: String) -> Response {
    let body = ApiError { code: ErrorCode::NotFound, message, candidates: vec![], problems: None };
    error(StatusCode::NOT_FOUND, body)
}

async fn no_path(uri: http::Uri) -> Response {
    let path = hamlet_core::rejection::one_line(uri.path(), 256);
    not_found(format!("there is nothing at {path}"))
}

async fn no_method(method: http::Method) -> Response {
    let message = format!("this path doesn't take {method}");
    let body = ApiError { code: ErrorCode::Method, message, candidates: vec![], problems: None };
    error(StatusCode::METHOD_NOT_ALLOWED, body)
}

async fn agent(State(app): State<App>) -> Response {
    Json(app.source.agent()).into_response()
}

async fn status(State(app): State<App>) -> Response {
    let services = app.source.services();
    let local = services.iter().filter(|s| s.origin == Origin::Local).count() as u64;
    let imported = services.len() as u64 - local;
    let (agent, peers, ready) = (app.source.agent(), app.source.peers(), app.source.readiness());
    Json(StatusReport::of(agent, &peers, local, imported, &ready)).into_response()
}

/// Runs `$body` with `$items` as the sorted items of `$kind`.
macro_rules! with_items {
    ($app:expr, $kind:expr, |$items:ident| $body:expr) => {
        match $kind {
            Kind::Peers => {
                let $items: Vec<PeerStatus> = $app.source.peers();
                $body
            }
            Kind::Services => {
                let $items: Vec<ServiceStatus> = $app.source.services();
                $body
            }
            Kind::Publications => {
                let $items: Vec<PublicationStatus> = $app.source.publications();
                $body
            }
            Kind::Imports => {
                let $items: Vec<ImportStatus> = $app.source.imports();
                $body
            }
        }
    };
}

fn kind_of(text: &str) -> Result<Kind, Box<Response>> {
    let known = Kind::ALL.into_iter().find(|k| k.plural() == text);
    known.ok_or_else(|| {
        let text = hamlet_core::rejection::one_line(text, 64);
        Box::new(not_found(format!("{text} is no kind: there are peers, services, publications and imports")))
    })
}

async fn list(State(app): State<App>, Path(kind): Path<String>) -> Response {
    match kind_of(&kind) {
        Ok(kind) => with_items!(app, kind, |items| Json(List::of(items)).into_response()),
        Err(response) => *response,
    }
}

async fn one(State(app): State<App>, Path((kind, name)): Path<(String, String)>) -> Response {
    match kind_of(&kind) {
        Ok(kind) => with_items!(app, kind, |items| answer_one(items, &name)),
        Err(response) => *response,
    }
}

fn answer_one<T: Listed>(items: Vec<T>, name: &str) -> Response {
    let shown = hamlet_core::rejection::one_line(name, 256);
    let kind = T::KIND.singular();
    match find(items, name) {
        Found::One(item) => Json(item).into_response(),
        Found::None => not_found(format!(
            "there is no {kind} named {shown}: `hamlet get {}` lists them",
            T::KIND.plural()
        )),
        Found::Several(candidates) => {
            let message = format!("{shown} is ambiguous: choose one of {}", candidates.join(", "));
            let body = ApiError { code: ErrorCode::Ambiguous, message, candidates, problems: None };
            error(StatusCode::CONFLICT, body)
        }
    }
}

/// One list now and one after every change, each a line of JSON; an empty line is a sign of life.
async fn watch(State(app): State<App>, Path(kind): Path<String>) -> Response {
    let kind = match kind_of(&kind) {
        Ok(kind) => kind,
        Err(response) => return *response,
    };
    let changed = app.source.changed();
    let lines = futures::stream::unfold((app, changed, true), move |(app, mut changed, first)| async move {
        let line = if first {
            changed.borrow_and_update();
            list_line(&app, kind)
        } else {
            next_line(&app, kind, &mut changed).await?
        };
        Some((Ok::<_, Infallible>(line), (app, changed, false)))
    });
    let body = axum::body::Body::from_stream(lines);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// The next list, or an empty line after a silence; `None` once we stop.
async fn next_line(app: &App, kind: Kind, changed: &mut tokio::sync::watch::Receiver<u64>) -> Option<Bytes> {
    let beat = Bytes::from_static(b"\n");
    match app.stop.or_begun(tokio::time::timeout(limits::WATCH_BEAT, changed.changed())).await? {
        Err(_silence) => Some(beat),
        Ok(Err(_gone)) => None,
        Ok(Ok(())) => {
            app.stop.or_begun(tokio::time::sleep(limits::WATCH_GAP)).await?;
            changed.borrow_and_update();
            Some(list_line(app, kind))
        }
    }
}

fn list_line(app: &App, kind: Kind) -> Bytes {
    let json = with_items!(app, kind, |items| serde_json::to_vec(&List::of(items)));
    // Our own types always serialise; if one should not, a beat is better than a broken stream.
    let mut line = json.unwrap_or_else(|error| {
        tracing::error!(%error, "can't serialise a list");
        Vec::new()
    });
    line.push(b'\n');
    line.into()
}

async fn reload(State(app): State<App>, extensions: http::Extensions) -> Response {
    match app.source.reload(caller(&extensions)).await {
        Ok(report) => Json(report).into_response(),
        Err(problems) => {
            let count = problems.problems.len();
            let message =
                format!("{count} problem(s) in the configuration; the last good one stays in force");
            let problems = Some(problems);
            let body = ApiError { code: ErrorCode::Configuration, message, candidates: vec![], problems };
            error(StatusCode::UNPROCESSABLE_ENTITY, body)
        }
    }
}

/// Who is on the connection, as its acceptor noted.
fn caller(extensions: &http::Extensions) -> Caller {
    extensions.get::<Caller>().copied().unwrap_or_default()
}

async fn confirm_withdrawals(State(app): State<App>, extensions: http::Extensions) -> Response {
    Json(Confirmed { released: app.source.confirm_withdrawals(caller(&extensions)) }).into_response()
}

async fn peering(State(app): State<App>, extensions: http::Extensions, body: Bytes) -> Response {
    let parsed = (body.len() <= limits::BODY_BYTES).then(|| serde_json::from_slice(&body).ok()).flatten();
    let Some(request) = parsed else {
        // What the body says isn't quoted: a token may be in it.
        let message =
            "the body is no peering request; do the command and the agent have one version?".to_owned();
        let body = ApiError { code: ErrorCode::Request, message, candidates: vec![], problems: None };
        return error(StatusCode::BAD_REQUEST, body);
    };
    match app.source.peering(caller(&extensions), request).await {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => {
            let status = match refused.code {
                ErrorCode::NotFound => StatusCode::NOT_FOUND,
                ErrorCode::Configuration => StatusCode::UNPROCESSABLE_ENTITY,
                ErrorCode::Ambiguous => StatusCode::CONFLICT,
                ErrorCode::Method | ErrorCode::Request => StatusCode::BAD_REQUEST,
            };
            error(status, refused)
        }
    }
}

/// `?after=SEQ`: only what came later than that entry.
async fn transcript(State(app): State<App>, Path(peer): Path<String>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
    let Ok(after) = after.unwrap_or("0").parse() else {
        let message = "after is the number of an entry".to_owned();
        let body = ApiError { code: ErrorCode::Request, message, candidates: vec![], problems: None };
        return error(StatusCode::BAD_REQUEST, body);
    };
    match app.source.transcript(&peer, after) {
        Some(page) => Json(page).into_response(),
        None => {
            let shown = hamlet_core::rejection::one_line(&peer, 256);
            not_found(format!("there is no peer named {shown}: `hamlet get peers` lists them"))
        }
    }
}

async fn own_bundle(State(app): State<App>) -> Response {
    match app.source.own_bundle() {
        Ok(bundle) => Json(bundle).into_response(),
        Err(why) => not_found(why),
    }
}

/// The body is the bundle; axum bounds its size.
async fn set_bundle(
    State(app): State<App>,
    Path(peer): Path<String>,
    extensions: http::Extensions,
    body: Bytes,
) -> Response {
    match app.source.set_bundle(caller(&extensions), &peer, body).await {
        Ok(set) => Json(set).into_response(),
        Err(BundleSetError::NoPeer) => {
            let shown = hamlet_core::rejection::one_line(&peer, 256);
            not_found(format!("there is no peer named {shown}: `hamlet get peers` lists them"))
        }
        Err(BundleSetError::Refused(message)) => {
            let body = ApiError { code: ErrorCode::Request, message, candidates: vec![], problems: None };
            error(StatusCode::UNPROCESSABLE_ENTITY, body)
        }
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

/// As Kubernetes does it: `ok`, or the list of checks when asked for or when one has failed.
async fn readyz(State(app): State<App>, RawQuery(query): RawQuery) -> Response {
    let checks = app.source.readiness();
    let ready = checks.iter().all(|c| c.ok);
    let verbose =
        query.is_some_and(|q| q.split('&').any(|p| matches!(p, "verbose" | "verbose=true" | "verbose=1")));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if ready && !verbose {
        return (status, "ok\n").into_response();
    }
    let mut text = String::new();
    for check in &checks {
        if check.ok {
            text += &format!("[+]{} ok\n", check.name);
        } else {
            text += &format!("[-]{} failed: {}\n", check.name, check.message);
        }
    }
    text += if ready { "readyz check passed\n" } else { "readyz check failed\n" };
    (status, text).into_response()
}

async fn readyz_check(State(app): State<App>, Path(name): Path<String>) -> Response {
    match app.source.readiness().into_iter().find(|c| c.name == name) {
        None => not_found("there is no such check: /readyz?verbose lists them".into()),
        Some(check) if check.ok => "ok\n".into_response(),
        Some(check) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {}\n", check.message)).into_response()
        }
    }
}

async fn metrics(State(app): State<App>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], app.source.metrics_text())
        .into_response()
}
