//! The task of one webhook: takes what is due, sends it, and decides what becomes of it.

use super::counts::Fate;
use super::hook::Hook;
use super::post::{self, Answer};
use super::queue::{Next, Parcel, pause};
use super::{Shared, body};
use serde_json::json;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::Webhook;

/// Works until the webhook is removed or the gateway stops.
pub(super) async fn work(hook: Arc<Hook>, shared: Arc<Shared>) {
    while let Some(next) = hook.next(&shared) {
        match next {
            Next::Try(parcel) => deliver(&hook, &shared, parcel).await,
            Next::Bury(parcel) => bury(&hook, &shared, vec![parcel], "the gateway stopped in quiet hours").await,
            Next::Wait(time) => {
                tokio::select! {
                    () = hook.rung() => {}
                    _ = hook.cut_off() => {}
                    () = tokio::time::sleep(time) => {}
                }
            }
            Next::Empty => {
                tokio::select! {
                    () = hook.rung() => {}
                    _ = hook.cut_off() => {}
                }
            }
        }
    }
    let rest = hook.bury();
    if !rest.is_empty() {
        let why = hook.cut_off().await;
        bury(&hook, &shared, rest, why).await;
    }
}

async fn deliver(hook: &Hook, shared: &Shared, mut parcel: Parcel) {
    let settings = hook.settings();
    let body = body::of(settings.format, &parcel);
    let answer = tokio::select! {
        biased;
        answer = post::post(&shared.client, &settings, &parcel, body, shared.clock.now()) => answer,
        why = hook.cut_off() => Answer::Never(why.to_owned()),
    };
    match answer {
        Answer::Taken => count(hook, &parcel, Fate::Delivered),
        Answer::Never(why) => bury(hook, shared, vec![parcel], &why).await,
        Answer::Again { why, asked } => {
            parcel.tries += 1;
            if parcel.tries > settings.retries {
                return bury(hook, shared, vec![parcel], &why).await;
            }
            retry(hook, shared, &settings, parcel, &why, asked).await;
        }
    }
}

/// Puts a parcel back for another try, after what the receiver asked for, or else a random pause.
async fn retry(hook: &Hook, shared: &Shared, settings: &Webhook, parcel: Parcel, why: &str, asked: Option<Duration>) {
    let pause = pause(settings.retry_pause, settings.longest_pause, parcel.tries, random_share());
    let pause = asked.unwrap_or_default().max(pause);
    let (id, tries) = (parcel.id.clone(), parcel.tries);
    let kinds: Vec<_> = parcel.entries.iter().map(|entry| entry.notice.kind).collect();
    match hook.again(parcel, shared.now().up + pause, asked.is_some()) {
        Ok(()) => {
            for kind in kinds {
                hook.counts.add(kind, Fate::Retried);
            }
            tracing::debug!(webhook = %hook.name, %id, tries, ?pause, why, "a notice was not taken and will be sent again");
        }
        Err(parcel) => bury(hook, shared, vec![parcel], &format!("{why}; then the gateway stopped")).await,
    }
}

/// Writes parcels to the dead-letter file.
async fn bury(hook: &Hook, shared: &Shared, parcels: Vec<Parcel>, why: &str) {
    let mut lines = String::new();
    for parcel in &parcels {
        for entry in &parcel.entries {
            let line = json!({
                "buried_at": shared.clock.now().to_string(),
                "webhook": &*hook.name,
                "id": &*parcel.id,
                "why": why,
                "tries": parcel.tries,
                "notice": body::object(entry),
            });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        count(hook, parcel, Fate::Dead);
        tracing::warn!(
            webhook = %hook.name,
            id = %parcel.id,
            event = body::event(parcel),
            tries = parcel.tries,
            why,
            "a notice could not be delivered"
        );
    }
    let settings = shared.settings.load_full();
    if let Err(error) = shared.dead_letters.append(settings, lines).await {
        tracing::error!(webhook = %hook.name, notices = parcels.len(), %error, "the dead-letter file cannot be written");
    }
}

fn count(hook: &Hook, parcel: &Parcel, fate: Fate) {
    for entry in &parcel.entries {
        hook.counts.add(entry.notice.kind, fate);
    }
}

/// Between 0 and 1; the standard library's hash keys are random enough for pauses.
fn random_share() -> f64 {
    f64::from(u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}
