//! Answers that may still be heard of: the last so many, found by their requests and by who asked what.

use super::Routed;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_router::learning::Outcome;

/// So many answers are remembered, some 300 bytes each; of an agent as many as the others leave.
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
    /// Those of each agent, the oldest first.
    order: HashMap<Arc<str>, VecDeque<Arc<str>>>,
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
        if self.answers.len() >= MOST_REMEMBERED {
            self.make_room(&answer.agent);
        }
        // Most of them are gone before their time comes where there are many.
        if self.fresh.len() >= 2 * MOST_REMEMBERED {
            self.fresh.retain(|(id, _)| self.answers.contains_key(id));
        }
        if let Some(asked) = &asked {
            self.asked.insert(asked.clone(), id.clone());
        }
        self.fresh.push_back((id.clone(), answer.at));
        self.order.entry(answer.agent.clone()).or_default().push_back(id.clone());
        self.answers.insert(id, (asked, answer));
    }

    /// Forgets the oldest answer of an agent with more than its share: who asks much does not make others' answers be forgotten.
    fn make_room(&mut self, agent: &Arc<str>) {
        let share = MOST_REMEMBERED / self.order.len().max(1);
        let much = self.order.get(agent).is_some_and(|own| own.len() > share).then_some(agent);
        let most = || self.order.iter().max_by_key(|(_, own)| own.len()).map(|(agent, _)| agent);
        let Some(most) = much.or_else(most).cloned() else { return };
        let Some(own) = self.order.get_mut(&most) else { return };
        let oldest = own.pop_front();
        if own.is_empty() {
            self.order.remove(&most);
        }
        if let Some(oldest) = oldest {
            self.remove(&oldest);
        }
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
        self.order.retain(|_, own| {
            own.retain(|id| self.answers.contains_key(id));
            !own.is_empty()
        });
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
        let routed = Routed { group, tier: 0, backend: "home".into(), choice };
        Remembered { agent: "scout".into(), routed, at, ended: true, told: None }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_ones_are_remembered_and_nothing_of_the_others_stays() {
        let mut memory = Memory::default();
        let most = MOST_REMEMBERED as u64;
        for number in 0..3 * most {
            let asked = Some(("scout".into(), number));
            memory.remember(format!("req_{number}").into(), asked, answer("code", Instant::now()));
            assert!(memory.fresh.len() <= 2 * MOST_REMEMBERED);
        }
        assert_eq!(
            (memory.len(), memory.order["scout"].len(), memory.asked.len()),
            (MOST_REMEMBERED, MOST_REMEMBERED, MOST_REMEMBERED)
        );
        let mut memory = Memory::default();
        for number in 0..most + 100 {
            let asked = Some(("scout".into(), number));
            memory.remember(format!("req_{number}").into(), asked, answer("code", Instant::now()));
        }
        assert!(memory.get("req_99").is_none() && memory.get("req_100").is_some());
        assert!(memory.asked(&("scout".into(), 99)).is_none());
        memory.forget(|routed| *routed.group.task == *"code");
        assert_eq!((memory.len(), memory.order.len(), memory.asked.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_much_makes_nobody_elses_answers_be_forgotten() {
        let mut memory = Memory::default();
        let of = |agent: &str| Remembered { agent: agent.into(), ..answer("code", Instant::now()) };
        let ask = |memory: &mut Memory, agent: &str, numbers: std::ops::Range<usize>| {
            numbers.for_each(|number| memory.remember(format!("{agent}_{number}").into(), None, of(agent)));
        };
        ask(&mut memory, "modest", 0..100);
        ask(&mut memory, "greedy", 0..2 * MOST_REMEMBERED);
        assert!((0..100).all(|number| memory.get(&format!("modest_{number}")).is_some()));
        ask(&mut memory, "late", 0..3000);
        ask(&mut memory, "greedy", 0..MOST_REMEMBERED);
        assert_eq!((memory.len(), memory.order["modest"].len()), (MOST_REMEMBERED, 100));
        assert_eq!((memory.order["late"].len(), memory.order["greedy"].len()), (3000, MOST_REMEMBERED - 3100));
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
