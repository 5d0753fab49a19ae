//! What is worth telling somebody: events of the policies, backends and the ledger that go down or come back, as notices.

use crate::app::App;
use crate::notify::Notice;
use jiff::Timestamp;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tollkeeper_config::NoticeKind;
use tollkeeper_inference::BackendHealth;
use tollkeeper_policies::velocity::{Level, Transition};
use tollkeeper_policies::{Event, What};

/// Tells of every event, those of a drain included, until nothing more can happen.
pub(crate) async fn events(app: Arc<App>, over: CancellationToken) {
    let mut events = app.policies.listen();
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = over.cancelled() => return,
        };
        match event {
            Ok(event) => notice(&event).into_iter().for_each(|notice| app.notifier.send(notice)),
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events came faster than they could be told"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn notice(event: &Event) -> Option<Notice> {
    let new = |kind, subject: String, text: String| Notice::new(kind, event.at, subject, text);
    let agent = || event.agent.as_ref().map_or_else(|| "the gateway".to_owned(), |agent| format!("agent `{agent}`"));
    let notice = match &event.what {
        What::Threshold { rule, percent, spent } => {
            let (limit, measure) = (rule.limit, rule.limit.measure());
            let (most, spent) = (limit.shown(limit.units()), limit.shown(*spent));
            let text =
                format!("{} has used {percent} % of its budget of {most} {measure} per {}", rule.owner, rule.window);
            new(NoticeKind::Threshold, rule.owner.to_string(), text)
                .key(format!("{} {measure} {percent}", rule.window))
                .field("percent", *percent)
                .field("window", rule.window.to_string())
                .field(&format!("limit_{measure}"), most)
                .field(&format!("spent_{measure}"), spent)
        }
        What::Denied(blocked) => new(NoticeKind::Denied, agent(), blocked.to_string())
            .key(format!("{} {}", blocked.owner, blocked.window))
            .field("scope", blocked.owner.scope.name())
            .field("id", &*blocked.owner.id)
            .field("window", blocked.window.to_string()),
        What::Degraded { from, reason } => {
            let text = format!("{} is answered by a cheaper model than {from}: {reason}", agent());
            new(NoticeKind::Degraded, agent(), text).field("from", from.to_string())
        }
        What::Stopped(who, stop) => new(NoticeKind::Paused, who.to_string(), format!("{who} {stop}")),
        What::Resumed(who) => new(NoticeKind::Resumed, who.to_string(), format!("{who} may go on")),
        What::Velocity(who, transition) => velocity(event.at, &who.to_string(), transition)?,
        What::Overrun { backend, amount } => {
            let text = format!("{backend} charged {amount} USD more than was leased for a request of {}", agent());
            new(NoticeKind::Overrun, agent(), text)
                .field("backend", backend.to_string())
                .field("usd", amount.to_string())
        }
        What::RunEnded { why } => {
            let run = event.runs.first().map_or("", |run| &**run);
            new(NoticeKind::RunEnded, format!("run `{run}`"), format!("the run `{run}` has ended: {why}"))
        }
        // Every request is charged; that is nothing to be told of.
        What::Charged { .. } => return None,
    };
    Some(match &event.agent {
        Some(agent) => notice.field("agent", &**agent),
        None => notice,
    })
}

fn velocity(at: Timestamp, who: &str, transition: &Transition) -> Option<Notice> {
    let (kind, text) = match (transition.from, transition.to) {
        (_, Level::Notify) => (NoticeKind::Threshold, "spends faster than is normal for it"),
        (_, Level::Throttle) => (NoticeKind::Throttled, "spends so fast that its requests are slowed down"),
        (_, Level::Local) => (NoticeKind::Degraded, "spends so fast that only local models answer it"),
        (_, Level::Paused) => (NoticeKind::Paused, "spends so fast that it was paused"),
        (_, Level::Killed) => (NoticeKind::Killed, "spends so fast that it was stopped"),
        (Level::Normal | Level::Notify, Level::Normal) => return None,
        (_, Level::Normal) => (NoticeKind::Resumed, "is served as always again"),
    };
    let text = format!("{who} {text} ({})", transition.reason);
    let notice = Notice::new(kind, at, who, text).key(if kind == NoticeKind::Threshold { "velocity" } else { "" });
    Some(notice.field("stage", transition.to.name()).field("reason", transition.reason.to_string()))
}

/// Who was down when it was looked at last.
#[derive(Debug, Default)]
pub(crate) struct Health {
    down: HashSet<Arc<str>>,
    store_down: bool,
    shared_down: bool,
}

impl Health {
    /// Tells what has gone down or come back since it was looked at last.
    pub(crate) fn look(&mut self, app: &App) {
        let at = app.clock.now();
        for (name, state) in app.fleet.states() {
            let why = match state.health {
                BackendHealth::Unavailable(why) => Some(why),
                BackendHealth::Cooling { .. } => Some("it failed several times and is left alone for a while".into()),
                BackendHealth::Ready | BackendHealth::Absent { .. } => None,
            };
            match why {
                Some(why) if self.down.insert(name.clone()) => {
                    let text = format!("`{name}` cannot be used: {why}");
                    app.notifier.send(Notice::new(NoticeKind::BackendDown, at, format!("backend `{name}`"), text));
                }
                None if self.down.remove(&name) => {
                    let text = format!("`{name}` can be used again");
                    app.notifier.send(Notice::new(NoticeKind::BackendUp, at, format!("backend `{name}`"), text));
                }
                _ => {}
            }
        }
        let store_down = !app.policies.store_up();
        if store_down != std::mem::replace(&mut self.store_down, store_down) {
            let (kind, text) = if store_down {
                (NoticeKind::StoreDown, "the ledger cannot be written; nothing that costs money is served")
            } else {
                (NoticeKind::StoreUp, "the ledger can be written again")
            };
            app.notifier.send(Notice::new(kind, at, "ledger", text));
        }
        let trouble = app.policies.shared().and_then(|shared| shared.trouble);
        if trouble.is_some() != std::mem::replace(&mut self.shared_down, trouble.is_some()) {
            let (kind, text) = match trouble {
                Some(why) => (NoticeKind::StoreDown, format!("budgets cannot be shared with other gateways: {why}")),
                None => (NoticeKind::StoreUp, "budgets are shared with other gateways again".to_owned()),
            };
            app.notifier.send(Notice::new(kind, at, "shared store", text));
        }
    }
}
