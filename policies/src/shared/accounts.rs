//! The calls: what is asked of the shared counters, and what they answer.

use super::{Beat, Counter, Ended, Extend, Restore, SharedError, Take, Tally, Unknown, Want};
use crate::clock::Clock;
use crate::store::redis::{Reply, Script, Server};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tollkeeper_config::SharedStore;

/// Totals of this many windows are kept in mind for a store that forgets.
const MOST_SEEN: usize = 8192;
/// Leases that one call charges at most, so that others do not wait for it.
const REAPED_AT_ONCE: usize = 200;

/// Counters, leases and marks that gateways share; a cheap handle.
#[derive(Debug, Clone)]
pub struct SharedAccounts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    server: Server,
    age: Duration,
    seen: Mutex<Seen>,
}

/// The most that was seen settled in each calendar window, and when it ends.
type Seen = HashMap<Arc<str>, (i128, Option<i64>)>;

/// [`Unknown`] as it is sent: amounts as text, so that no digit is lost.
#[derive(serde::Deserialize)]
struct Listed {
    lease: String,
    gateway: String,
    admitted: String,
    memo: String,
    charged: Vec<(String, String)>,
}

impl Listed {
    fn unknown(self) -> Option<Unknown> {
        let charged = self.charged.into_iter().map(|(key, amount)| Some((key.into(), amount.parse().ok()?)));
        Some(Unknown {
            lease: self.lease.into(),
            gateway: self.gateway.into(),
            admitted: self.admitted.parse().ok()?,
            memo: self.memo.into(),
            charged: charged.collect::<Option<_>>()?,
        })
    }
}

/// The arguments of a script.
#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn add(&mut self, value: impl ToString) -> &mut Self {
        self.0.push(value.to_string());
        self
    }

    fn time(&mut self, value: Option<i64>) -> &mut Self {
        self.add(value.map_or_else(String::new, |value| value.to_string()))
    }

    fn rolls(&mut self, counter: &Counter) -> &mut Self {
        self.time(counter.rolls.map(|rolls| rolls.length)).time(counter.rolls.map(|rolls| rolls.slot))
    }

    fn want(&mut self, want: &Want, now: i64) -> &mut Self {
        let least = want.least.max(0);
        self.add(&want.counter.key).add(want.limit).add(least).add(want.most.max(least));
        self.time(want.counter.ends_ms(now))
    }
}

impl SharedAccounts {
    /// Connects when it is first asked something.
    ///
    /// # Errors
    /// [`SharedError::Unfit`]: the address cannot be read.
    pub fn new(settings: &SharedStore, clock: Clock) -> Result<Self, SharedError> {
        let server = Server::new(settings, clock)?;
        Ok(Self(Arc::new(Inner { server, age: settings.lease_age, seen: Mutex::default() })))
    }

    /// Opens a lease, in every counter or in none: at most what is wanted and what there is room for, at least the
    /// least. One round trip. Asked again for a lease that is open, it says what that holds.
    ///
    /// Whoever drops the future of this, or gets no answer, has to [`release`](Self::release) the lease.
    ///
    /// # Errors
    /// All but [`SharedError::Lost`] leave everything as it was; see there.
    pub async fn take(&self, take: &Take) -> Result<Vec<Tally>, SharedError> {
        let mut args = Args::default();
        args.add(&take.lease).add(take.now).add(&take.memo).add(take.marks.len());
        for mark in &take.marks {
            args.add(mark);
        }
        for want in &take.wants {
            args.want(want, take.now).rolls(&want.counter);
        }
        self.granted(Script::Take, args, &take.wants, take.now).await
    }

    /// Changes what a lease holds, in every counter or in none.
    ///
    /// # Errors
    /// See there; the lease then stays as it was, unless there was no answer.
    pub async fn extend(&self, extend: &Extend) -> Result<Vec<Tally>, SharedError> {
        let mut args = Args::default();
        args.add(&extend.lease).add(extend.step).add(extend.now);
        for want in &extend.wants {
            args.want(want, extend.now);
        }
        self.granted(Script::Extend, args, &extend.wants, extend.now).await
    }

    async fn granted(&self, script: Script, args: Args, wants: &[Want], now: i64) -> Result<Vec<Tally>, SharedError> {
        let reply = self.0.server.call(script, args.0).await?;
        match reply.code.as_str() {
            "ok" => {
                let tallies = tallies(&reply, 0)?;
                self.see(wants, &tallies, now);
                Ok(tallies)
            }
            "refused" => {
                let tallies = tallies(&reply, 0)?;
                self.see(wants, &tallies, now);
                let lacks = |(want, tally): (&Want, &Tally)| {
                    let room = (want.limit - tally.settled - tally.leased).max(0);
                    room + tally.held < want.least.max(0).into()
                };
                let all = wants.iter().zip(&tallies).enumerate();
                let short = all.filter_map(|(place, pair)| lacks(pair).then_some(place)).collect();
                Err(SharedError::Refused { short, tallies })
            }
            "stopped" => Err(SharedError::Stopped { mark: reply.text(0)?, reason: reply.text(1)? }),
            _ => Err(SharedError::Gone),
        }
    }

    /// Ends a lease and counts what it cost, in the order of its counters, however much it held. Asked again, it counts
    /// nothing and answers [`SharedError::Gone`].
    ///
    /// # Errors
    /// [`SharedError::Gone`] is as good as done; after any other it is to be asked again.
    pub async fn settle(&self, lease: &str, now: i64, costs: &[i64]) -> Result<Ended, SharedError> {
        let mut args = Args::default();
        args.add(lease).add(now);
        for cost in costs {
            args.add(cost);
        }
        let reply = self.0.server.call(Script::Settle, args.0).await?;
        if reply.code != "ok" {
            return Err(SharedError::Gone);
        }
        let by = reply.text(0)?;
        Ok(Ended { charged_by: (!by.is_empty()).then_some(by), tallies: tallies(&reply, 1)? })
    }

    /// Ends a lease that cost nothing.
    ///
    /// # Errors
    /// As [`settle`](Self::settle).
    pub async fn release(&self, lease: &str, now: i64) -> Result<Ended, SharedError> {
        self.settle(lease, now, &[]).await
    }

    /// Says that this gateway lives, and what others know by now.
    ///
    /// # Errors
    /// See there.
    pub async fn beat(&self) -> Result<Beat, SharedError> {
        let reply = self.0.server.call(Script::Beat, vec![self.0.age.as_micros().to_string()]).await?;
        let live = &*reply.text(0)? == "live";
        let gateways: Vec<Arc<str>> = reply.rest(1).map(Arc::from).collect();
        self.0.server.know(&gateways, live);
        Ok(Beat { live, marks: reply.marks, gateways })
    }

    /// Charges what gateways hold that have died, a part of it at each call. Returns how many leases that were. Who has
    /// died was found late by two calls, a quarter of the lease age apart.
    ///
    /// # Errors
    /// See there.
    pub async fn reap(&self) -> Result<usize, SharedError> {
        let grace = self.0.age.as_micros() / 4;
        let args = vec![grace.to_string(), REAPED_AT_ONCE.to_string()];
        let reply = self.0.server.call(Script::Reap, args).await?;
        reply.text(0)?.parse().map_err(|_| Reply::odd())
    }

    /// What this gateway has charged for others and has not yet recorded, a part of it when it is much. `recorded`: what
    /// it has recorded since it was asked last.
    ///
    /// # Errors
    /// See there.
    pub async fn unknown(&self, recorded: &[Arc<str>]) -> Result<Vec<Unknown>, SharedError> {
        let args = recorded.iter().map(|lease| lease.to_string()).collect();
        let reply = self.0.server.call(Script::Unknown, args).await?;
        let list: Vec<Listed> = serde_json::from_str(&reply.text(0)?).map_err(|_| Reply::odd())?;
        list.into_iter().map(Listed::unknown).collect::<Option<_>>().ok_or_else(Reply::odd)
    }

    /// Counts what this gateway's ledger knows, where the store does not have it yet; to do it twice changes nothing.
    /// Call it after [`SharedError::Lost`], and when a budget is new, before anything is taken from that. Returns whether
    /// leases can be taken.
    ///
    /// The open leases are those that were asked for and have not been ended, from before [`take`](Self::take) is called:
    /// one that is named here and then refused has to be released.
    ///
    /// # Errors
    /// See there.
    pub async fn restore(&self, restore: &Restore) -> Result<bool, SharedError> {
        let mut args = Args::default();
        args.add(restore.now).add(restore.shares.len()).add(restore.leases.len()).add(restore.marks.len());
        let spent = restore.shares.iter().any(|share| share.settled != 0) || !restore.leases.is_empty();
        args.add(u8::from(spent && self.0.server.knows_nobody()));
        for share in &restore.shares {
            let counter = &share.counter;
            let seen = self.seen().get(&counter.key).map_or_else(String::new, |(seen, _)| seen.to_string());
            args.add(&counter.key).add(share.settled).add(seen).time(counter.ends_ms(restore.now));
            args.rolls(counter).add(share.admitted);
        }
        for lease in &restore.leases {
            args.add(&lease.lease).add(lease.admitted).add(&lease.memo).add(lease.step).add(lease.held.len());
            for (counter, held) in &lease.held {
                args.add(&counter.key).add(held).time(counter.ends_ms(restore.now)).rolls(counter);
            }
        }
        for (mark, reason) in &restore.marks {
            args.add(mark).add(reason);
        }
        let reply = self.0.server.call(Script::Restore, args.0).await?;
        Ok(&*reply.text(0)? == "live")
    }

    /// Sets a mark that stops leases: a pause, a cancelled run. Returns whether that is news.
    ///
    /// # Errors
    /// See there.
    pub async fn mark(&self, mark: &str, reason: &str) -> Result<bool, SharedError> {
        // An empty reason would remove it.
        let reason = if reason.is_empty() { " " } else { reason };
        self.change_mark(mark, reason).await
    }

    /// Removes a mark. Returns whether there was one.
    ///
    /// # Errors
    /// See there.
    pub async fn unmark(&self, mark: &str) -> Result<bool, SharedError> {
        self.change_mark(mark, "").await
    }

    async fn change_mark(&self, mark: &str, reason: &str) -> Result<bool, SharedError> {
        let reply = self.0.server.call(Script::Mark, vec![mark.to_owned(), reason.to_owned()]).await?;
        Ok(&*reply.text(0)? == "1")
    }

    /// All marks and their reasons, in order. [`Beat::marks`] says when they have changed, and so does every other
    /// answer: [`marks_changed`](Self::marks_changed).
    ///
    /// # Errors
    /// See there.
    pub async fn marks(&self) -> Result<Vec<(Arc<str>, Arc<str>)>, SharedError> {
        let reply = self.0.server.call(Script::Marks, Vec::new()).await?;
        let flat: Vec<String> = serde_json::from_str(&reply.text(0)?).map_err(|_| Reply::odd())?;
        let mut marks: Vec<_> =
            flat.chunks_exact(2).map(|pair| (pair[0].as_str().into(), pair[1].as_str().into())).collect();
        marks.sort();
        Ok(marks)
    }

    /// How often marks had changed at the last answer of any kind.
    pub fn marks_changed(&self) -> u64 {
        self.0.server.marks()
    }

    /// How counters stand at `now` (microseconds since 1970).
    ///
    /// # Errors
    /// See there.
    pub async fn standing(&self, counters: &[Counter], now: i64) -> Result<Vec<Tally>, SharedError> {
        let mut args = Args::default();
        args.add(now);
        for counter in counters {
            args.add(&counter.key).rolls(counter);
        }
        let found = self.0.server.call(Script::Standing, args.0).await?.numbers(0)?;
        Ok(found.chunks_exact(2).map(|pair| Tally { held: 0, settled: pair[0], leased: pair[1] }).collect())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, wants: &[Want], tallies: &[Tally], now: i64) {
        let mut seen = self.seen();
        if seen.len() >= MOST_SEEN {
            seen.retain(|_, (_, ends)| ends.is_none_or(|ends| ends > now));
        }
        for (want, tally) in wants.iter().zip(tallies).filter(|(want, _)| want.counter.rolls.is_none()) {
            if let Some((settled, _)) = seen.get_mut(&want.counter.key) {
                *settled = tally.settled.max(*settled);
            } else if seen.len() < 2 * MOST_SEEN {
                seen.insert(want.counter.key.clone(), (tally.settled, want.counter.ends));
            }
        }
    }
}

fn tallies(reply: &Reply, from: usize) -> Result<Vec<Tally>, SharedError> {
    let found = reply.numbers(from)?;
    Ok(found.chunks_exact(3).map(|each| Tally { held: each[0], settled: each[1], leased: each[2] }).collect())
}
