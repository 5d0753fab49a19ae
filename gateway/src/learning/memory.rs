//! Answers that may still be heard of: the last so many, found by their requests and by who asked what.

use super::Routed;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_router::learning::Outcome;

/// So many answers are remembered, some 300 bytes each.
pub(crate) const MOST_REMEMBERED: usize = 16_384;

/// Older ones are not heard of any more.
pub(crate) const OLDEST: Duration = Duration::from_secs(86_400);

/// An agent and a hash of what it asked.
pub(super) type Asked = (Arc<str>, u64);

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Remembered {
    /// Whose.
    pub(super) agent: Arc<str>,
    pub(super) routed: Routed,
    pub(super) backend: Arc<str>,
    /// When it began.
    pub(super) at: Instant,
    /// Whether it came to its end.
    pub(super) ended: bool,
    /// What is counted of it.
    pub(super) told: Option<Outcome>,
}

/// The answers, by their requests' ids.
#[derive(Debug, Default)]
pub(super) struct Memory {
    answers: HashMap<Arc<str>, (Option<Asked>, Remembered)>,
    /// The oldest first.
    order: VecDeque<Arc<str>>,
    /// The last answer to each question.
    asked: HashMap<Asked, Arc<str>>,
    /// Of which it is not known yet whether they will be asked again; the oldest first.
    fresh: VecDeque<(Arc<str>, Instant)>,
}

impl Memory {
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    pub(super) fn get(&mut self, id: &str) -> Option<&mut Remembered> {
        self.answers.get_mut(id).map(|(_, answer)| answer)
    }

    /// The last answer to this question, and when it began.
    pub(super) fn asked(&self, asked: &Asked) -> Option<(Arc<str>, Instant)> {
        let id = self.asked.get(asked)?;
        self.answers.get(id).map(|(_, answer)| (id.clone(), answer.at))
    }

    pub(super) fn remember(&mut self, id: Arc<str>, asked: Option<Asked>, answer: Remembered) {
        while self.order.len() >= MOST_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remove(&oldest);
        }
        if let Some(asked) = &asked {
            self.asked.insert(asked.clone(), id.clone());
        }
        self.fresh.push_back((id.clone(), answer.at));
        self.order.push_back(id.clone());
        self.answers.insert(id, (asked, answer));
    }

    /// The answers that nobody asked for again for so long, each once. One that has not come to its end by then is nobody's example.
    pub(super) fn quiet(&mut self, now: Instant, long: Duration) -> Vec<Arc<str>> {
        let mut quiet = Vec::new();
        while self.fresh.front().is_some_and(|(_, at)| now.duration_since(*at) > long)
            && let Some((id, _)) = self.fresh.pop_front()
        {
            if self.get(&id).is_some_and(|answer| answer.ended) {
                quiet.push(id);
            }
        }
        quiet
    }

    /// Forgets these answers.
    pub(super) fn forget(&mut self, which: impl Fn(&Routed) -> bool) {
        let gone: Vec<Arc<str>> =
            self.answers.iter().filter(|(_, (_, answer))| which(&answer.routed)).map(|(id, _)| id.clone()).collect();
        for id in &gone {
            self.remove(id);
        }
        self.order.retain(|id| self.answers.contains_key(id));
    }

    /// Forgets what was said of these answers.
    pub(super) fn unsay(&mut self, which: impl Fn(&Routed) -> bool) {
        for (_, answer) in self.answers.values_mut().filter(|(_, answer)| which(&answer.routed)) {
            answer.told = None;
        }
    }

    fn remove(&mut self, id: &Arc<str>) {
        if let Some((Some(asked), _)) = self.answers.remove(id)
            && self.asked.get(&asked) == Some(id)
        {
            self.asked.remove(&asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Group;
    use super::*;
    use tollkeeper_router::learning::Choice;

    fn answer(task: &str, at: Instant) -> Remembered {
        let group = Arc::new(Group { alias: "smart".into(), task: task.into(), said: 0 });
        let choice = Choice { tier: 0, moved: false, explored: false };
        let routed = Routed { group, tier: 0, choice };
        Remembered { agent: "scout".into(), routed, backend: "home".into(), at, ended: true, told: None }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_ones_are_remembered_and_nothing_of_the_others_stays() {
        let mut memory = Memory::default();
        for number in 0..MOST_REMEMBERED as u64 + 100 {
            let asked = Some(("scout".into(), number));
            memory.remember(format!("req_{number}").into(), asked, answer("code", Instant::now()));
        }
        assert_eq!(
            (memory.len(), memory.order.len(), memory.asked.len()),
            (MOST_REMEMBERED, MOST_REMEMBERED, MOST_REMEMBERED)
        );
        assert!(memory.get("req_99").is_none() && memory.get("req_100").is_some());
        assert!(memory.asked(&("scout".into(), 99)).is_none());
        memory.forget(|routed| *routed.group.task == *"code");
        assert_eq!((memory.len(), memory.order.len(), memory.asked.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_quiet_once_when_it_has_ended_and_time_has_passed() {
        let mut memory = Memory::default();
        let long = Duration::from_secs(10);
        memory.remember("a".into(), None, answer("code", Instant::now()));
        memory.remember("b".into(), None, Remembered { ended: false, ..answer("code", Instant::now()) });
        let mut quiet = |after: Duration| {
            memory.quiet(Instant::now() + after, long).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(quiet(long).is_empty());
        assert_eq!(quiet(long * 2), ["a"]);
        assert!(quiet(long * 3).is_empty());
    }
}
