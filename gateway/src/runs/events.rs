//! What happens in a run, as server-sent events.

use super::show;
use super::watchers::Place;
use crate::app::App;
use crate::body::Body;
use crate::error::ApiError;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::unfold;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tollkeeper_policies::{Event, RunView, What};
use tollkeeper_protocol::sse;

/// A comment after so long without an event, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often it is looked whether all is settled that a run had in flight when it ended.
const LOOK: Duration = Duration::from_millis(50);
/// After so long nobody waits for that any more.
const LONGEST_END: Duration = Duration::from_secs(60);

/// The frames of one watcher.
pub(crate) type EventStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

struct Watcher {
    app: Arc<App>,
    id: Arc<str>,
    events: Receiver<Arc<Event>>,
    due: VecDeque<Bytes>,
    /// When the run was seen to have ended; what it had in flight then settles after that.
    ended: Option<Instant>,
    /// Nothing was in flight when it was looked last, and nothing was told of since.
    settled: bool,
    over: bool,
    _place: Place,
}

/// The run as it is, then every event in it and below it, until it ends.
pub(super) fn respond(app: &Arc<App>, view: RunView) -> Result<Response<Body>, ApiError> {
    let place = app.watchers.enter(&view.run.agent).ok_or(ApiError::TooManyWatchers)?;
    // Listening begins before the state is read again, so that nothing falls between the two.
    let events = app.policies.listen();
    let view = app.policies.run(&view.run.id).unwrap_or(view);
    let first = frame("run", &json!(show(&view)));
    let watcher = Watcher {
        app: app.clone(),
        id: view.run.id.clone(),
        events,
        due: VecDeque::from([first]),
        ended: view.ended.map(|_| Instant::now()),
        settled: false,
        over: view.ended.is_some() && view.open == 0,
        _place: place,
    };
    let frames: EventStream = Box::pin(unfold(watcher, Watcher::next));
    let mut response = Response::new(Body::Events(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl Watcher {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(frame) = self.due.pop_front() {
                return Some((frame, self));
            }
            if self.over {
                return None;
            }
            let stop = self.app.stop.clone();
            let wait = if self.ended.is_some() { LOOK } else { KEEP_ALIVE };
            tokio::select! {
                () = stop.cancelled() => return None,
                event = self.events.recv() => match event {
                    Ok(event) => self.see(&event),
                    // What was missed is in the state.
                    Err(RecvError::Lagged(_)) => self.state(),
                    Err(RecvError::Closed) => return None,
                },
                () = tokio::time::sleep(wait) => match self.ended {
                    Some(at) => self.look(at),
                    None => self.due.push_back(Bytes::from_static(b": still here\n\n")),
                },
            }
        }
    }

    fn see(&mut self, event: &Event) {
        if !event.runs.contains(&self.id) {
            return;
        }
        self.settled = false;
        let (name, mut body) = told(&event.what);
        body["at"] = event.at.to_string().into();
        body["run"] = event.runs.first().map_or(Value::Null, |run| (**run).into());
        self.due.push_back(frame(name, &body));
        if matches!(event.what, What::RunEnded { .. }) && event.runs.first() == Some(&self.id) {
            self.ended = Some(Instant::now());
        }
    }

    /// The run has ended: whether all that it had in flight is settled. What settled last is told of right after, so it takes two looks.
    fn look(&mut self, ended: Instant) {
        let open = self.app.policies.run(&self.id).is_some_and(|view| view.open > 0);
        if (!open && self.settled) || ended.elapsed() > LONGEST_END {
            self.state();
            self.over = true;
        }
        self.settled = !open;
    }

    fn state(&mut self) {
        if let Some(view) = self.app.policies.run(&self.id) {
            if view.ended.is_some() {
                self.ended.get_or_insert_with(Instant::now);
            }
            self.due.push_back(frame("run", &json!(show(&view))));
        }
    }
}

/// An event's name and what it says.
fn told(what: &What) -> (&'static str, Value) {
    match what {
        What::Threshold { rule, percent, spent } => {
            let limit = rule.limit;
            let body = json!({
                "scope": rule.owner.scope.name(),
                "id": *rule.owner.id,
                "measure": limit.measure(),
                "percent": percent,
                "limit": limit.shown(limit.units()),
                "spent": limit.shown(*spent),
            });
            ("threshold", body)
        }
        What::Denied(blocked) => ("denied", json!({"message": blocked.to_string()})),
        What::Degraded { from, reason } => ("degraded", json!({"from": from.to_string(), "message": **reason})),
        What::Stopped(who, stop) => ("stopped", json!({"message": format!("{who} {stop}")})),
        What::Resumed(who) => ("resumed", json!({"message": format!("{who} may go on")})),
        What::Velocity(who, transition) => {
            let message = format!("{who}: {}", transition.reason);
            ("velocity", json!({"stage": transition.to.name(), "message": message}))
        }
        What::Overrun { backend, amount } => {
            ("overrun", json!({"backend": backend.to_string(), "usd": amount.to_string()}))
        }
        What::Charged { backend, usage, cost } => {
            let body = json!({
                "backend": backend.to_string(),
                "input_tokens": usage.input,
                "output_tokens": usage.output,
                "usd": cost.to_string(),
            });
            ("usage", body)
        }
        What::RunEnded { why } => ("ended", json!({"status": why})),
    }
}

fn frame(name: &str, body: &Value) -> Bytes {
    let mut out = BytesMut::from("event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\n");
    sse::write_data(body.to_string().as_bytes(), &mut out);
    out.freeze()
}
