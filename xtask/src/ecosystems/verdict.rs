//! Compares what the legs of a row saw.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::Result;

/// Seconds that a subscription may take longer through Mainstay than directly, after a restart of its server: one second,
/// and the longest wait between two attempts of a client, because its server may be back just before an attempt on one
/// leg, and just after it on the other.
const SLACK: f64 = 2.0;

/// The fewest restarts for which a median counts.
const ENOUGH: usize = 3;

/// Orders that may be missing: a client that waits long for a server drops what waits with it, on one leg and not on the
/// other.
const CHANCE: u64 = 1;

pub(super) const LEGS: [&str; 4] = ["direct", "nginx", "mainstay", "profile"];
const DIRECT: &str = "direct";
const NGINX: &str = "nginx";

/// How the play ends a server: at once, or in order.
pub(super) const SIGNALS: [&str; 2] = ["SIGKILL", "SIGTERM"];

/// One row: a server, a client, and what each leg saw.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) title: String,
    /// The row's `--profile`, if it has one.
    pub(super) profile: Option<String>,
    /// Packages with their versions.
    pub(super) uses: Vec<String>,
    legs: BTreeMap<String, Leg>,
}

#[derive(Debug, Default)]
struct Leg {
    checks: Vec<Check>,
    restarts: Vec<Restart>,
    orders: Option<Orders>,
    /// The client came to its end.
    is_done: bool,
    broken: String,
}

#[derive(Debug)]
struct Check {
    name: String,
    ok: bool,
    saw: Value,
}

#[derive(Debug)]
struct Restart {
    signal: String,
    /// Seconds from the server's end until the subscription flowed again, and for how many of them its successor was
    /// running; `None` if it did not flow again.
    waited: Option<Wait>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wait {
    pub(super) seconds: f64,
    since_back: f64,
}

/// Orders that were under way when their server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orders {
    arrived: u64,
    twice: u64,
}

/// What a leg does worse than allowed, or why the comparison is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) row: String,
    pub(super) leg: &'static str,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.row, self.leg, self.what)
    }
}

impl Row {
    /// All rows of the lines that `run.mjs` writes, in the order in which they were begun.
    pub(super) fn read(lines: &str) -> Result<Vec<Self>> {
        let mut rows: Vec<Self> = Vec::new();
        for line in lines.lines() {
            let value: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
            let name = value["row"].as_str().ok_or_else(|| format!("{line}: of no row"))?;
            let place = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                rows.push(Self { name: name.to_owned(), ..Self::default() });
                rows.len() - 1
            });
            rows[place].add(&value);
        }
        Ok(rows)
    }

    fn add(&mut self, line: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Some(leg) = line["leg"].as_str() else {
            self.title = text(&line["title"]);
            self.profile = line["profile"].as_str().map(str::to_owned);
            self.uses = line["uses"].as_array().into_iter().flatten().map(text).collect();
            return;
        };
        let leg = self.legs.entry(leg.to_owned()).or_default();
        if line["check"].is_string() {
            let ok = line["ok"] == true;
            leg.checks.push(Check { name: text(&line["check"]), ok, saw: line["saw"].clone() });
        } else if line["restart"].is_string() {
            let times = line["seconds"].as_f64().zip(line["back"].as_f64());
            let waited = times.map(|(seconds, back)| Wait { seconds, since_back: seconds - back });
            leg.restarts.push(Restart { signal: text(&line["restart"]), waited });
        } else if let (Some(arrived), Some(twice)) = (line["arrived"].as_u64(), line["twice"].as_u64()) {
            leg.orders = Some(Orders { arrived, twice });
        } else if line["broken"].is_string() {
            leg.broken = text(&line["broken"]);
        } else {
            leg.is_done |= line["done"] == true;
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for leg in LEGS.into_iter().filter(|leg| *leg != "profile" || self.profile.is_some()) {
            let findings_of = match self.legs.get(leg) {
                Some(seen) if seen.is_done => self.worse(leg, seen),
                Some(seen) => vec![format!("did not come to its end: {}", seen.broken)],
                None => vec!["was not played".to_owned()],
            };
            findings.extend(findings_of.into_iter().map(|what| Finding {
                row: self.name.clone(),
                leg,
                what,
            }));
        }
        findings
    }

    fn worse(&self, name: &str, leg: &Leg) -> Vec<String> {
        let (Some(direct), Some(nginx)) = (self.legs.get(DIRECT), self.legs.get(NGINX)) else {
            return Vec::new();
        };
        match name {
            DIRECT => leg.void().collect(),
            NGINX => Vec::new(), // the measure, not what is judged
            _ => leg
                .lacking(direct, nginx)
                .chain(leg.late(direct))
                .chain(leg.orders.zip(direct.orders).and_then(|(ours, theirs)| ours.worse(theirs)))
                .collect(),
        }
    }

    /// How many checks hold on a leg as they do directly, and of how many; `None` for a leg that was not played.
    pub(super) fn held(&self, leg: &str) -> Option<(usize, usize)> {
        let (direct, seen) = (self.legs.get(DIRECT)?, self.legs.get(leg)?);
        let held = direct.checks.iter().filter(|check| check.ok && seen.holds(check)).count();
        Some((held, direct.checks.len()))
    }

    /// The medians of the waits until the subscription flows again; `None` if half of them never did.
    pub(super) fn flows_again(&self, leg: &str, signal: &str) -> Option<Wait> {
        median(&self.legs.get(leg)?.waits(signal))
    }

    /// How many of the orders arrived twice.
    pub(super) fn twice(&self, leg: &str) -> Option<u64> {
        Some(self.legs.get(leg)?.orders?.twice)
    }
}

impl Leg {
    /// Faults of the measurement itself.
    fn void(&self) -> impl Iterator<Item = String> {
        let checks = self.checks.iter().filter(|check| !check.ok);
        let signals = SIGNALS.into_iter().filter(|signal| self.was_sent(signal));
        checks.map(|check| format!("{}: {}", check.name, check.saw)).chain(
            signals
                .filter(|signal| self.waits(signal).contains(&None))
                .map(|signal| format!("does not flow again after {signal}")),
        )
    }

    /// Checks that hold directly and through nginx, but not here.
    fn lacking(&self, direct: &Leg, nginx: &Leg) -> impl Iterator<Item = String> {
        let demanded = direct.checks.iter().filter(|check| check.ok && nginx.holds(check));
        demanded.filter(|check| !self.holds(check)).map(|check| {
            let ours = self.checks.iter().find(|ours| ours.name == check.name);
            let saw = ours.map_or_else(|| "nothing".to_owned(), |ours| ours.saw.to_string());
            format!("{}: {saw} instead of {}", check.name, check.saw)
        })
    }

    /// Subscriptions that never flow again, or that wait longer than allowed.
    fn late(&self, direct: &Leg) -> impl Iterator<Item = String> {
        SIGNALS.into_iter().filter(|signal| direct.was_sent(signal)).filter_map(|signal| {
            let (ours, theirs) = (self.waits(signal), direct.waits(signal));
            let lost = |waits: &[Option<Wait>]| waits.iter().filter(|wait| wait.is_none()).count();
            if ours.len() < theirs.len() || lost(&ours) > lost(&theirs) {
                return Some(format!("does not flow again after {signal}"));
            }
            if ours.len() < ENOUGH {
                return None; // one wait is chance
            }
            let (ours, theirs) = (median(&ours)?, median(&theirs)?);
            // Late by both measures: if the server itself was back later than on the other leg, Mainstay is not at fault.
            let is_late =
                ours.seconds > theirs.seconds + SLACK && ours.since_back > theirs.since_back + SLACK;
            let (ours, theirs) = (ours.seconds, theirs.seconds);
            is_late.then(|| format!("flows again {ours:.1} s after {signal}, directly after {theirs:.1} s"))
        })
    }

    fn holds(&self, reference: &Check) -> bool {
        self.checks
            .iter()
            .any(|check| check.name == reference.name && check.ok && is_as_good(&reference.saw, &check.saw))
    }

    fn was_sent(&self, signal: &str) -> bool {
        self.restarts.iter().any(|restart| restart.signal == signal)
    }

    fn waits(&self, signal: &str) -> Vec<Option<Wait>> {
        let sent = self.restarts.iter().filter(|restart| restart.signal == signal);
        sent.map(|restart| restart.waited).collect()
    }
}

/// The median of each figure; `None` if half of the subscriptions did not flow again.
fn median(waits: &[Option<Wait>]) -> Option<Wait> {
    let middle = |figure: fn(Wait) -> f64| {
        let mut figures: Vec<f64> = waits.iter().map(|wait| wait.map_or(f64::INFINITY, figure)).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().filter(|seconds| seconds.is_finite())
    };
    Some(Wait { seconds: middle(|wait| wait.seconds)?, since_back: middle(|wait| wait.since_back)? })
}

impl Orders {
    fn worse(self, direct: Self) -> Option<String> {
        // If some arrive twice on the direct leg, the client itself sends them again.
        if direct.twice == 0 && self.twice > 0 {
            return Some(format!("{} orders arrive twice, directly none", self.twice));
        }
        let missing = direct.arrived.checked_sub(self.arrived).filter(|missing| *missing > CHANCE)?;
        Some(format!("{missing} orders do not arrive that do directly"))
    }
}

/// The same; or an end with 1012 where the direct connection ends without a Close (1006): a client that reconnects after
/// a loss also does so after 1012, and learns more.
fn is_as_good(reference: &Value, seen: &Value) -> bool {
    let is_named_loss =
        reference["code"] == 1006 && seen["code"] == 1012 && reference["before"] == seen["before"];
    reference == seen || is_named_loss
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of three legs that saw the same, followed by `more`.
    fn row(more: &[&str]) -> Row {
        let mut lines = vec![r#"{"row":"x","title":"a server","uses":[]}"#.to_owned()];
        for leg in ["direct", "nginx", "mainstay"] {
            for result in [
                r#""check":"echo","ok":true,"saw":null"#,
                r#""restart":"SIGKILL","seconds":2.0,"back":1.5"#,
                r#""arrived":3,"twice":0"#,
                r#""done":true"#,
            ] {
                lines.push(format!(r#"{{"row":"x","leg":"{leg}",{result}}}"#));
            }
        }
        lines.extend(more.iter().map(|line| format!(r#"{{"row":"x",{line}}}"#)));
        Row::read(&lines.join("\n")).unwrap().remove(0)
    }

    fn findings_of(row: &Row) -> Vec<String> {
        row.findings().iter().map(Finding::to_string).collect()
    }

    fn on_all(check: &str) -> Vec<String> {
        ["direct", "nginx", "mainstay"].map(|leg| format!(r#""leg":"{leg}",{check}"#)).to_vec()
    }

    #[test]
    fn legs_that_saw_the_same_give_no_finding() {
        assert!(row(&[]).findings().is_empty());
        let close = on_all(r#""check":"close","ok":true,"saw":{"code":1008}"#);
        assert!(row(&close.iter().map(String::as_str).collect::<Vec<_>>()).findings().is_empty());
    }

    #[test]
    fn a_check_that_holds_directly_and_through_nginx_has_to_hold_through_mainstay() {
        let direct = r#""leg":"direct","check":"close","ok":true,"saw":1"#;
        let nginx = r#""leg":"nginx","check":"close","ok":true,"saw":1"#;
        for ours in [
            r#""leg":"mainstay","check":"close","ok":false,"saw":1"#,
            r#""leg":"mainstay","check":"close","ok":true,"saw":2"#,
            r#""leg":"mainstay","check":"another","ok":true,"saw":1"#,
        ] {
            assert_eq!(row(&[direct, nginx, ours]).findings().len(), 1, "{ours}");
        }
        assert!(row(&[direct]).findings().is_empty(), "nginx does not hold it either");
    }

    #[test]
    fn a_check_that_fails_directly_makes_the_row_void() {
        let void = row(&[r#""leg":"direct","check":"close","ok":false,"saw":"no""#]);
        assert_eq!(findings_of(&void), ["x, direct: close: \"no\""]);
    }

    #[test]
    fn an_end_with_1012_is_as_good_as_one_without_a_close_and_no_other() {
        let saw = |code: u64| serde_json::json!({ "code": code, "reason": "", "before": ["hello"] });
        assert!(is_as_good(&saw(1006), &saw(1012)));
        assert!(!is_as_good(&saw(1006), &saw(1000)));
        assert!(!is_as_good(&saw(1000), &saw(1012)));
    }

    #[test]
    fn the_median_of_three_waits_may_be_two_seconds_longer() {
        let restart = |seconds: &str, back: &str| {
            let line = format!(r#""leg":"mainstay","restart":"SIGKILL","seconds":{seconds},"back":{back}"#);
            findings_of(&row(&[&line, &line]))
        };
        assert!(restart("3.9", "1.5").is_empty());
        assert!(restart("4.1", "2.0").is_empty(), "its server was back later");
        assert_eq!(
            restart("4.1", "1.5"),
            ["x, mainstay: flows again 4.1 s after SIGKILL, directly after 2.0 s"]
        );
        assert_eq!(restart("null", "null"), ["x, mainstay: does not flow again after SIGKILL"]);
    }

    #[test]
    fn one_subscription_that_is_lost_for_good_is_a_finding_and_one_long_wait_is_not() {
        let stop = |leg: &str, seconds: &str| {
            format!(r#""leg":"{leg}","restart":"SIGTERM","seconds":{seconds},"back":1.5"#)
        };
        assert!(row(&[&stop("direct", "2.0"), &stop("mainstay", "9.0")]).findings().is_empty());
        let lost = row(&[&stop("direct", "2.0"), &stop("mainstay", "null")]);
        assert_eq!(findings_of(&lost), ["x, mainstay: does not flow again after SIGTERM"]);
    }

    #[test]
    fn an_order_that_arrives_twice_or_never_is_a_finding() {
        for (orders, count) in [
            (r#""arrived":3,"twice":1"#, 1),
            (r#""arrived":1,"twice":0"#, 1),
            (r#""arrived":2,"twice":0"#, 0),
        ] {
            let findings = row(&[&format!(r#""leg":"mainstay",{orders}"#)]).findings();
            assert_eq!(findings.len(), count, "{findings:?}");
        }
        let both = on_all(r#""arrived":1,"twice":1"#);
        assert!(row(&both.iter().map(String::as_str).collect::<Vec<_>>()).findings().is_empty());
    }

    #[test]
    fn a_leg_that_broke_or_was_not_played_is_a_finding() {
        let profiled =
            row(&[r#""title":"t","profile":"mqtt","uses":[]"#, r#""leg":"profile","broken":"no such flag""#]);
        assert_eq!(findings_of(&profiled), ["x, profile: did not come to its end: no such flag"]);
        let absent = row(&[r#""title":"t","profile":"mqtt","uses":[]"#]);
        assert_eq!(findings_of(&absent), ["x, profile: was not played"]);
    }
}
