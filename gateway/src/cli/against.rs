//! Lays the counters of a running gateway beside the sums of its ledger.
//!
//! Within a window a counter only grows, and so does the ledger. So the counters are read, everything that they count is
//! put on record, the ledger is added up, and the counters are read again: the sum lies between the two readings, and is
//! equal to both when nothing ended meanwhile. A busy gateway can be proved as well as one at rest.

use super::table::{Column, rows, shown, table};
use super::talk::Gateway;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use tollkeeper_config::{Limit, Owner, Scope, Usd, Window};
use tollkeeper_policies::Place;
use tollkeeper_policies::report::{CounterQuery, CounterSum, counters};

/// A request that ended just as the counters were read may reach the ledger a moment later, and a window may end: then
/// all is read again. What is wrong stays wrong.
const READINGS: usize = 3;

/// A budget as the gateway told of it, read twice.
struct Reading {
    told: Value,
    owner: Owner,
    window: Window,
    since: Option<Timestamp>,
    measure: Limit,
    before: i128,
    /// Nothing when the budget, or its window, is gone.
    after: Option<i128>,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Equal,
    Differs,
    LeftOut(&'static str),
}

/// How budgets compare with the ledger.
pub(super) struct Comparison {
    /// One object for each budget.
    pub(super) budgets: Vec<Value>,
    /// Those that were compared.
    pub(super) compared: usize,
    /// Those of them whose counter is not what the ledger says.
    pub(super) differ: usize,
}

/// Compares the budgets of a gateway with its ledger.
///
/// # Errors
/// The gateway does not answer as it should, or the ledger cannot be read.
pub(super) fn compare(gateway: &Gateway, place: &Place) -> Result<Comparison, String> {
    for _ in 1..READINGS {
        let (comparison, is_settled) = compare_once(gateway, place)?;
        if is_settled {
            return Ok(comparison);
        }
    }
    Ok(compare_once(gateway, place)?.0)
}

/// The comparison, and whether another one could not come out better.
fn compare_once(gateway: &Gateway, place: &Place) -> Result<(Comparison, bool), String> {
    let read = || gateway.ask(&Method::GET, "/admin/v1/budgets", None);
    let before = read()?;
    let counted = rows(&before).iter().filter(|budget| budget["shadowed"] != true);
    let mut readings = counted.map(Reading::of).collect::<Result<Vec<_>, _>>()?;
    gateway.ask(&Method::POST, "/admin/v1/ledger/flush", None)?;
    let asked: Vec<CounterQuery> = readings.iter().map(Reading::query).collect();
    let sums = counters(place.clone(), &asked).map_err(|error| error.to_string())?;
    let after = read()?;
    for reading in &mut readings {
        reading.after = reading.again(rows(&after))?;
    }
    let verdicts: Vec<Verdict> = readings.iter().zip(&sums).map(|(reading, sum)| reading.verdict(*sum)).collect();
    let many = |wanted: Verdict| verdicts.iter().filter(|verdict| **verdict == wanted).count();
    let differ = many(Verdict::Differs);
    let all = readings.iter().zip(&sums).zip(&verdicts);
    let comparison = Comparison {
        budgets: all.map(|((reading, sum), verdict)| reading.shown(*sum, *verdict)).collect(),
        compared: many(Verdict::Equal) + differ,
        differ,
    };
    Ok((comparison, differ + many(MOVED) == 0))
}

const ROLLS: Verdict = Verdict::LeftOut("a rolling window forgets in slots");
const MOVED: Verdict = Verdict::LeftOut("it was gone, or its window over, before all was read");

impl Reading {
    fn of(told: &Value) -> Result<Self, String> {
        let odd = || format!("the gateway tells of a budget in a way that is not understood here: {told}");
        let text = |name: &str| told[name].as_str().ok_or_else(odd);
        let scope = Scope::ALL.into_iter().find(|scope| told["scope"] == scope.name()).ok_or_else(odd)?;
        let measures = [Limit::Usd(Usd::ZERO), Limit::Tokens(0), Limit::Requests(0)];
        let measure = measures.into_iter().find(|limit| told["measure"] == limit.measure()).ok_or_else(odd)?;
        let since = match &told["starts_at"] {
            Value::Null => None,
            _ => Some(text("starts_at")?.parse().map_err(|_| odd())?),
        };
        Ok(Self {
            owner: Owner::new(scope, text("owner")?),
            window: Window::parse(text("window")?).ok_or_else(odd)?,
            since,
            measure,
            before: units(measure, text("own_spent")?).ok_or_else(odd)?,
            after: None,
            told: told.clone(),
        })
    }

    fn query(&self) -> CounterQuery {
        CounterQuery { owner: self.owner.clone(), since: self.since }
    }

    /// The same counter, read again.
    fn again(&self, budgets: &[Value]) -> Result<Option<i128>, String> {
        const SAME: [&str; 6] = ["scope", "owner", "window", "time_zone", "measure", "starts_at"];
        let is_same =
            |budget: &&Value| budget["shadowed"] != true && SAME.iter().all(|name| budget[*name] == self.told[*name]);
        let found = budgets.iter().find(is_same).map(Self::of).transpose()?;
        Ok(found.map(|found| found.before))
    }

    fn verdict(&self, sum: CounterSum) -> Verdict {
        match (self.window, self.after) {
            (Window::Rolling(_), _) => ROLLS,
            (_, None) => MOVED,
            (_, Some(after)) if (self.before..=after).contains(&sum.of(self.measure)) => Verdict::Equal,
            _ => Verdict::Differs,
        }
    }

    fn shown(&self, sum: CounterSum, verdict: Verdict) -> Value {
        let sum = sum.of(self.measure);
        let after = self.after.unwrap_or(self.before);
        // From the reading that it lies beside.
        let difference = sum - sum.clamp(self.before.min(after), after.max(self.before));
        let told = |units| self.measure.shown(units);
        let (verdict, why) = match verdict {
            Verdict::Equal => ("equal", None),
            Verdict::Differs => ("differs", None),
            Verdict::LeftOut(why) => ("left out", Some(why)),
        };
        let is_left_out = why.is_some();
        let mut shown = json!({
            "counter_before": told(self.before),
            "counter_after": self.after.map(told),
            "ledger": (!is_left_out).then(|| told(sum)),
            "difference": (!is_left_out).then(|| told(difference)),
            "verdict": verdict,
            "why": why,
        });
        for name in ["scope", "owner", "window", "time_zone", "measure", "starts_at"] {
            shown[name] = self.told[name].clone();
        }
        shown
    }
}

/// An amount as the gateway shows it.
fn units(measure: Limit, text: &str) -> Option<i128> {
    match measure {
        Limit::Usd(_) => Usd::parse_decimal(text).ok().map(|usd| usd.0.into()),
        Limit::Tokens(_) | Limit::Requests(_) => text.parse().ok(),
    }
}

/// For people.
pub(super) fn print(budgets: &[Value]) {
    let columns = [
        Column("scope", |budget| shown(&budget["scope"])),
        Column("owner", |budget| if budget["scope"] == "everything" { String::new() } else { shown(&budget["owner"]) }),
        Column("window", |budget| shown(&budget["window"])),
        Column("measure", |budget| shown(&budget["measure"])),
        Column("counter", |budget| {
            let (before, after) = (shown(&budget["counter_before"]), shown(&budget["counter_after"]));
            if after.is_empty() || before == after { before } else { format!("{before} to {after}") }
        }),
        Column("ledger", |budget| shown(&budget["ledger"])),
        Column("difference", |budget| shown(&budget["difference"])),
        Column("verdict", |budget| match budget["why"].as_str() {
            Some(why) => format!("{}: {why}", shown(&budget["verdict"])),
            None => shown(&budget["verdict"]),
        }),
    ];
    table(&columns, budgets);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(window: &str, before: &str, after: Option<&str>) -> Reading {
        let budget = |spent: &str| {
            json!({"scope": "agent", "owner": "scout", "window": window, "time_zone": "UTC", "measure": "usd",
                "starts_at": null, "own_spent": spent, "shadowed": false})
        };
        let mut reading = Reading::of(&budget(before)).unwrap();
        reading.after = after.and_then(|after| reading.again(&[budget(after)]).unwrap());
        reading
    }

    #[test]
    fn a_sum_must_lie_between_two_readings() {
        let cases = [
            ("total", "0.000000010", Some("0.000000010"), 10, "equal", "0"),
            ("total", "0.000000010", Some("0.000000010"), 9, "differs", "-0.000000001"),
            ("total", "0.000000010", Some("0.000000010"), 12, "differs", "0.000000002"),
            ("day", "0.000000010", Some("0.000000020"), 15, "equal", "0"),
            ("day", "0.000000010", Some("0.000000020"), 21, "differs", "0.000000001"),
            ("day", "0.000000010", Some("0.000000020"), 7, "differs", "-0.000000003"),
        ];
        for (window, before, after, nano, verdict, difference) in cases {
            let (reading, sum) = (reading(window, before, after), CounterSum { nano, ..CounterSum::default() });
            let shown = reading.shown(sum, reading.verdict(sum));
            assert_eq!((&shown["verdict"], &shown["difference"]), (&json!(verdict), &json!(difference)), "{shown}");
        }
    }

    #[test]
    fn what_cannot_be_compared_is_left_out_and_says_why() {
        let sum = CounterSum::default();
        assert_eq!(reading("rolling 24h", "1", Some("1")).verdict(sum), ROLLS);
        assert_eq!(reading("day", "1", None).verdict(sum), MOVED);
        let other_day = json!({"scope": "agent", "owner": "scout", "window": "day", "time_zone": "UTC", "measure": "usd",
            "starts_at": "2026-11-21T00:00:00Z", "own_spent": "1"});
        assert_eq!(reading("day", "1", None).again(&[other_day]).unwrap(), None, "another window is another counter");
        assert!(Reading::of(&json!({"scope": "agent"})).is_err(), "an older gateway does not tell what is needed");
    }
}
