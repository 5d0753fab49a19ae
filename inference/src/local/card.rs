//! The graphics card that models share: what it has, who holds how much of it, and what may therefore be promised to models.
//!
//! Others may take memory of the card at any time: a desktop, a game, another server. What they hold is never promised to a model:
//! all models together get no more than what is free and what they hold already.

use super::vram::shown;
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::Gpu;

/// How often the card is looked at.
pub(crate) const PACE: Duration = Duration::from_secs(2);
/// What of the card is left to the driver and to a context or two, unless somebody says what models may take.
const RESERVE: u64 = 1 << 30;
/// Others that take or give back less are not worth a line in the log.
const WORTH_SAYING: u64 = 256 << 20;
/// Processes named in that line.
const NAMED: usize = 5;

/// What one look at a card saw.
#[derive(Debug, Clone, PartialEq)]
pub struct CardReading {
    /// Its UUID.
    pub card: Arc<str>,
    /// Bytes of memory it has.
    pub total: u64,
    /// Those that nobody has.
    pub free: u64,
    /// Those that processes hold; what is missing to `total` is the driver's.
    pub used: u64,
    /// Bytes by process id; `None` where that cannot be told.
    pub processes: Option<BTreeMap<u32, u64>>,
    /// The share of time in which it computed, 0 to 1.
    pub busy: Option<f64>,
    /// How hot it is, in degrees Celsius.
    pub celsius: Option<f64>,
    /// What it draws, in watts.
    pub watts: Option<f64>,
}

impl CardReading {
    /// Bytes that this process and its children hold, as far as can be told.
    pub(crate) fn ours(&self) -> u64 {
        let processes = self.processes.iter().flatten();
        processes.filter(|(pid, _)| is_ours(**pid)).map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that models may have: what is free, and what they hold of what was promised to them.
    pub(crate) fn within_reach(&self, held: u64, promised: u64) -> u64 {
        // What they hold beyond that is held all the same, and nobody else can have it.
        self.free.saturating_add(held.min(promised)).min(self.total)
    }
}

/// How a card is looked at; `None` when it does not answer.
pub(crate) type Look = Box<dyn Fn() -> Option<CardReading> + Send + Sync>;

/// A card, and what was seen last.
pub(crate) struct Card {
    look: Look,
    last: ArcSwap<CardReading>,
}

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Card").field(&self.last.load().card).finish()
    }
}

impl Card {
    /// The card that the configuration means; `None` where engines of this build use none, or there is none.
    pub(crate) fn find(gpu: &Gpu) -> Option<Arc<Self>> {
        let used = cfg!(any(feature = "cuda", feature = "vulkan"));
        Self::watched_by(used.then(|| super::nvml::open(gpu)).flatten()?)
    }

    /// A card that is looked at so; `None` if nothing is seen there.
    pub(crate) fn watched_by(look: Look) -> Option<Arc<Self>> {
        let first = look()?;
        tracing::info!(
            card = &*first.card,
            total = shown(first.total),
            free = shown(first.free),
            "models share a card"
        );
        Some(Arc::new(Self { look, last: ArcSwap::from_pointee(first) }))
    }

    /// Looks at it now. A card that does not answer is as it was.
    pub(crate) fn look(&self) -> Arc<CardReading> {
        if let Some(reading) = (self.look)() {
            self.last.store(Arc::new(reading));
        }
        self.last.load_full()
    }

    /// What was seen last.
    pub(crate) fn last(&self) -> Arc<CardReading> {
        self.last.load_full()
    }

    /// Bytes that a process holds, if that can be told.
    pub(crate) fn held_by(&self, pid: u32) -> Option<u64> {
        self.look().processes.as_ref()?.get(&pid).copied().filter(|bytes| *bytes > 0)
    }

    /// What models may take when nobody said how much.
    pub(crate) fn budget(&self) -> u64 {
        self.last().total.saturating_sub(RESERVE)
    }
}

/// Bytes that an engine holds: what the card says of its process, which is more than the engine knows of, else what that says itself.
pub(crate) fn held(card: Option<&Card>, process: Option<u32>, said: Option<u64>) -> Option<u64> {
    card.zip(process).and_then(|(card, process)| card.held_by(process)).max(said)
}

/// Whether a process is this one or a child of it.
fn is_ours(pid: u32) -> bool {
    let me = std::process::id();
    pid == me || parent(pid) == Some(me)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Says in the log when others take memory from the budget, and when they give it back.
#[derive(Debug, Default)]
pub(crate) struct Watchman {
    said: u64,
}

impl Watchman {
    /// Others hold so much of the budget now. Returns whether that was said.
    pub(crate) fn note(&mut self, reading: &CardReading, budget: u64, taken: u64) -> bool {
        if taken.abs_diff(self.said) < WORTH_SAYING && (taken > 0 || self.said == 0) {
            return false;
        }
        let (card, left) = (&*reading.card, shown(budget.saturating_sub(taken)));
        if taken > self.said {
            let mut others: Vec<(u64, u32)> = reading
                .processes
                .iter()
                .flatten()
                .filter(|(pid, _)| !is_ours(**pid))
                .map(|(pid, bytes)| (*bytes, *pid))
                .collect();
            others.sort_unstable_by(|one, other| other.cmp(one));
            let who: Vec<String> =
                others.iter().take(NAMED).map(|(bytes, pid)| format!("process {pid}: {}", shown(*bytes))).collect();
            tracing::warn!(
                card,
                taken = shown(taken),
                left,
                who = who.join(", "),
                "others hold memory of the card that was meant for local models"
            );
        } else {
            tracing::info!(card, taken = shown(taken), left, "others gave back memory of the card");
        }
        self.said = taken;
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::host::Home;
    use super::super::kv_store::{Budget, KvStore};
    use super::super::{LocalAction, LocalEngines, LocalMemory};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    const GIB: u64 = 1 << 30;
    /// No process has this number.
    const STRANGER: u32 = u32::MAX;

    /// A card of 24 GiB of which we and others hold so much.
    pub(crate) fn card_with(ours: u64, others: u64) -> CardReading {
        let used = ours + others;
        CardReading {
            card: "GPU-test".into(),
            total: 24 * GIB,
            free: 24 * GIB - used,
            used,
            processes: Some(BTreeMap::from([(std::process::id(), ours), (STRANGER, others)])),
            busy: None,
            celsius: None,
            watts: None,
        }
    }

    /// A card that shows what the test says.
    pub(crate) fn double(first: CardReading) -> (Arc<Card>, Arc<Mutex<Option<CardReading>>>) {
        let shows = Arc::new(Mutex::new(Some(first)));
        let seen = shows.clone();
        (Card::watched_by(Box::new(move || seen.lock().unwrap().clone())).unwrap(), shows)
    }

    #[test]
    fn what_others_hold_is_out_of_reach() {
        let seen = card_with(8 * GIB, 6 * GIB);
        assert_eq!(seen.ours(), 8 * GIB);
        assert_eq!(CardReading { processes: None, ..seen.clone() }.ours(), 0);
        let table = [((8, 8), 18), ((8, 20), 18), ((8, 7), 17), ((0, 8), 10), ((30, 30), 24)];
        for ((held, promised), reach) in table {
            assert_eq!(seen.within_reach(held * GIB, promised * GIB), reach * GIB, "{held} held, {promised} promised");
        }
    }

    #[test]
    fn children_are_ours_and_strangers_are_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(is_ours(std::process::id()) && is_ours(child.id()));
        assert!(!is_ours(1) && !is_ours(STRANGER));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_card_that_does_not_answer_is_as_it_was() {
        let (card, shows) = double(card_with(GIB, 2 * GIB));
        assert_eq!(card.budget(), 23 * GIB);
        assert_eq!(card.held_by(std::process::id()), Some(GIB));
        assert_eq!(card.held_by(7), None);
        let us = Some(std::process::id());
        assert_eq!(held(Some(&card), us, Some(7)), Some(GIB), "the card knows of the context too");
        assert_eq!(held(Some(&card), us, Some(2 * GIB)), Some(2 * GIB));
        assert_eq!(
            (held(Some(&card), None, Some(7)), held(None, us, Some(7)), held(None, us, None)),
            (Some(7), Some(7), None)
        );
        *shows.lock().unwrap() = None;
        assert_eq!(*card.look(), card_with(GIB, 2 * GIB));
        assert!(Card::watched_by(Box::new(|| None)).is_none());
    }

    #[tokio::test]
    async fn models_get_no_more_than_others_leave() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("script.json"), "{}").unwrap();
        let model = "name = 'm'\npath = 'script.json'\nengine = 'scripted'\nmemory = '8GiB'\npreload = false";
        let text = format!("[local]\nvram = '22GiB'\n[[local.models]]\n{model}\n");
        let config = tollkeeper_config::parse(&text, &folder.path().join("t.toml"), &|_| None).unwrap();
        let (card, shows) = double(card_with(0, 20 * GIB));
        let store = KvStore::new(Budget { memory: 0, disk: 0, folder: None });
        let home = Home { program: None, card: Some(card.clone()), store };
        let engines = LocalEngines::start_in(&config.local, home);
        let memory = |free, taken| LocalMemory { budget: 22 * GIB, free: free * GIB, taken: taken * GIB };
        assert_eq!(engines.memory(), memory(4, 18), "looked at before anything is loaded");
        assert!(engines.act("m", LocalAction::Load));
        assert_eq!(engines.statuses()[0].state, "absent");
        *shows.lock().unwrap() = Some(card_with(0, GIB));
        engines.manager.seen(&card.look());
        engines.ready().await;
        assert_eq!((engines.statuses()[0].state, engines.memory()), ("ready", memory(14, 0)));
        // What a model holds is not taken from it, whoever comes.
        *shows.lock().unwrap() = Some(card_with(8 * GIB, 10 * GIB));
        engines.manager.seen(&card.look());
        assert_eq!((engines.statuses()[0].state, engines.memory()), ("ready", memory(6, 8)));
        assert_eq!(engines.card().unwrap().used, 18 * GIB);
    }

    #[test]
    fn it_is_said_once_that_others_take_memory_and_once_that_they_gave_it_back() {
        let mut watchman = Watchman::default();
        let mut note = |taken| watchman.note(&card_with(0, taken), 24 * GIB, taken);
        let said: Vec<bool> =
            [0, 1 << 20, 2 * GIB, 2 * GIB + 1, 5 * GIB, 5 * GIB, GIB, 100 << 20, 0, 0].map(&mut note).into();
        assert_eq!(said, [false, false, true, false, true, false, true, true, true, false]);
    }

    proptest! {
        #[test]
        fn reach_and_others_never_overlap(ours in 0..12u64, others in 0..12u64, promised in 0..12u64, more in 0..12u64) {
            let seen = card_with(ours * GIB, others * GIB);
            let reach = seen.within_reach(seen.ours(), promised * GIB);
            prop_assert!(reach + others * GIB <= seen.total);
            // What may still be promised is free, and not what a load that goes on is still to take.
            let still = reach.saturating_sub(promised * GIB);
            prop_assert_eq!(still, seen.free.saturating_sub(promised.saturating_sub(ours) * GIB));
            prop_assert!(seen.within_reach(seen.ours(), (promised + more) * GIB) >= reach);
        }
    }
}
