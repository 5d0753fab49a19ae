//! What a worker shows to other threads: counts and rates, written by one thread and read by any.

use super::batch::{SIZES, Speeds};
use std::array::from_fn;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The state of a worker, always a little old.
#[derive(Debug, Default)]
pub(crate) struct Board {
    running: AtomicU32,
    queue_tokens: AtomicU64,
    unread: AtomicU64,
    ttft_micros: AtomicU64,
    kv_permille: AtomicU32,
    overall: AtomicU32,
    prefill: AtomicU32,
    decode: [AtomicU32; SIZES],
    guessed: AtomicU64,
    right: AtomicU64,
}

/// What the worker writes after each turn.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Reading {
    /// Sequences in a slot.
    pub(crate) running: u32,
    /// Tokens still to be read and written, estimated.
    pub(crate) queue_tokens: u64,
    /// Of these, those of prompts.
    pub(crate) unread: u64,
    /// Smoothed time to the first token.
    pub(crate) ttft: Option<Duration>,
    /// Share of the KV cache in use, 0 to 1.
    pub(crate) kv_usage: f32,
    /// How fast it is, or was when it last ran.
    pub(crate) rates: Speeds,
}

impl Board {
    pub(crate) fn write(&self, reading: Reading) {
        self.running.store(reading.running, Ordering::Relaxed);
        self.queue_tokens.store(reading.queue_tokens, Ordering::Relaxed);
        self.unread.store(reading.unread, Ordering::Relaxed);
        let micros = reading.ttft.map_or(0, |ttft| u64::try_from(ttft.as_micros()).unwrap_or(u64::MAX).max(1));
        self.ttft_micros.store(micros, Ordering::Relaxed);
        self.kv_permille.store((reading.kv_usage * 1000.0) as u32, Ordering::Relaxed);
        self.overall.store(reading.rates.overall as u32, Ordering::Relaxed);
        self.prefill.store(reading.rates.prefill as u32, Ordering::Relaxed);
        for (place, rate) in self.decode.iter().zip(reading.rates.decode) {
            place.store(rate as u32, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Reading {
        let micros = self.ttft_micros.load(Ordering::Relaxed);
        let of = |rate: &AtomicU32| f64::from(rate.load(Ordering::Relaxed));
        Reading {
            running: self.running.load(Ordering::Relaxed),
            queue_tokens: self.queue_tokens.load(Ordering::Relaxed),
            unread: self.unread.load(Ordering::Relaxed),
            ttft: (micros > 0).then(|| Duration::from_micros(micros)),
            kv_usage: self.kv_permille.load(Ordering::Relaxed) as f32 / 1000.0,
            rates: Speeds {
                overall: of(&self.overall),
                prefill: of(&self.prefill),
                decode: from_fn(|at| of(&self.decode[at])),
            },
        }
    }

    /// Counts guesses that were checked: slot, tokens, and how many of them were right.
    pub(crate) fn guessed(&self, checked: &[(usize, usize, usize)]) {
        for (_, guessed, right) in checked {
            self.guessed.fetch_add(*guessed as u64, Ordering::Relaxed);
            self.right.fetch_add(*right as u64, Ordering::Relaxed);
        }
    }

    /// Tokens guessed so far, and how many of them were right.
    pub(crate) fn guesses(&self) -> (u64, u64) {
        (self.guessed.load(Ordering::Relaxed), self.right.load(Ordering::Relaxed))
    }

    /// How long until one of `admitted` sequences has ended and another fits, by the rate measured so far: whole seconds, 1 to 300.
    pub(crate) fn wait_for_room(&self, admitted: u32) -> Duration {
        let reading = self.read();
        if reading.rates.overall < 1.0 || admitted == 0 {
            return Duration::from_secs(1);
        }
        let tokens_each = reading.queue_tokens as f64 / f64::from(admitted);
        Duration::from_secs((tokens_each / reading.rates.overall).ceil().clamp(1.0, 300.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_work_of_one_sequence_at_the_measured_rate() {
        let board = Board::default();
        assert_eq!(board.wait_for_room(4), Duration::from_secs(1));
        let at = |overall| Speeds { overall, ..Speeds::default() };
        board.write(Reading { queue_tokens: 8000, rates: at(100.0), ..Reading::default() });
        assert_eq!(board.wait_for_room(4), Duration::from_secs(20));
        board.write(Reading { queue_tokens: u64::MAX, rates: at(1.0), ..Reading::default() });
        assert_eq!(board.wait_for_room(1), Duration::from_secs(300));
    }
}
