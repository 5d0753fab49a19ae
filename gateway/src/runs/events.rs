//! What happens in a run, as server-sent events.

use super::show;
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
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tollkeeper_policies::{Event, RunView, What};
use tollkeeper_protocol::sse;

/// A comment after so long without an event, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The frames of one watcher.
pub(crate) type EventStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

struct Watcher {
    app: Arc<App>,
    id: Arc<str>,
    events: Receiver<Arc<Event>>,
    due: VecDeque<Bytes>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// The run as it is, then every event in it and below it, until it ends.
pub(super) fn respond(app: &Arc<App>, view: RunView) -> Result<Response<Body>, ApiError> {
    let place = app.watchers.clone().try_acquire_owned().map_err(|_| ApiError::TooManyWatchers)?;
    // Listening begins before the state is read again, so that nothing falls between the two.
    let events = app.policies.listen();
    let view = app.policies.run(&view.run.id).unwrap_or(view);
    let first = frame("run", &json!(show(&view)));
    let watcher = Watcher {
        app: app.clone(),
        id: view.run.id.clone(),
        events,
        due: VecDeque::from([first]),
        over: view.ended.is_some(),
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
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(KEEP_ALIVE) => self.due.push_back(Bytes::from_static(b": still here\n\n")),
                event = self.events.recv() => match event {
                    Ok(event) => self.see(&event),
                    // What was missed is in the state.
                    Err(RecvError::Lagged(_)) => self.state(),
                    Err(RecvError::Closed) => return None,
                },
            }
        }
    }

    fn see(&mut self, event: &Event) {
        if !event.runs.contains(&self.id) {
            return;
        }
        let (name, mut body) = told(&event.what);
        body["at"] = event.at.to_string().into();
        body["run"] = event.runs.first().map_or(Value::Null, |run| (**run).into());
        self.due.push_back(frame(name, &body));
        let ended = matches!(event.what, What::RunEnded { .. }) && event.runs.first() == Some(&self.id);
        if ended {
            self.state();
            self.over = true;
        }
    }

    fn state(&mut self) {
        if let Some(view) = self.app.policies.run(&self.id) {
            self.over |= view.ended.is_some();
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
