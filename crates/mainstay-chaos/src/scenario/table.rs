//! A rule as it is written: one flat table, the same in TOML, in JSON and on the command line. This is the one place that
//! checks it.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::guess::meant;
use super::wrong::Wrong;
use super::{Rule, When};
use crate::fault::{Direction, Fault, text};
use crate::kind::{Kind, Strikes};

/// The fields that say when a fault strikes, for how long and how often.
const TIMES: [&str; 6] = ["at", "repeat", "after", "every", "for", "share"];

/// All fields, in the order in which people write them.
const FIELDS: [&str; 17] = [
    "kind",
    "direction",
    "at",
    "repeat",
    "after",
    "every",
    "for",
    "share",
    "latency",
    "jitter",
    "bytes-per-second",
    "bytes",
    "idle",
    "silent",
    "age",
    "code",
    "retry-after",
];

/// The shortest time that is not zero.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest delay of a byte.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

impl Rule {
    /// Reads a rule from a table with the fields of a scenario file.
    ///
    /// # Errors
    /// The field, its bound, and what to write.
    pub(super) fn read(table: &Map<String, Value>) -> Result<Self, Wrong> {
        let kind = kind(table)?;
        let table = Table { fields: table, kind };
        table.check_names()?;
        let fault = table.fault()?;
        let when = table.when()?;
        let lasts = table.lasts(when)?;
        Ok(Self { fault, when, lasts, share: table.share()? })
    }
}

/// Reads the kind, after the names of the fields: a misspelt `kind` is no missing one.
fn kind(table: &Map<String, Value>) -> Result<&'static Kind, Wrong> {
    if let Some(name) = table.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let what = match meant(name, &FIELDS) {
            Some(right) => format!("unknown field; write {right}"),
            None => format!("unknown field; a fault has {}", FIELDS.join(", ")),
        };
        return Err(Wrong::at(name, what));
    }
    let names = Fault::NAMES.join(", ");
    match table.get("kind") {
        None => Err(Wrong::at("kind", format!("is missing; write one of {names}"))),
        Some(Value::String(name)) => Kind::named(name).ok_or_else(|| {
            let fix = meant(name, &Fault::NAMES).map_or(format!("one of {names}"), str::to_owned);
            Wrong::at("kind", format!("{name:?} is no fault; write {fix}"))
        }),
        Some(other) => {
            Err(Wrong::at("kind", format!("must be a name in quotes, not {other}; write one of {names}")))
        }
    }
}

/// The table of one rule.
struct Table<'a> {
    fields: &'a Map<String, Value>,
    kind: &'static Kind,
}

impl Table<'_> {
    /// Refuses fields that this kind does not have.
    fn check_names(&self) -> Result<(), Wrong> {
        let Kind { name, parameters, required, .. } = self.kind;
        let has = |field: &str| field == "kind" || TIMES.contains(&field) || parameters.contains(&field);
        if let Some(field) = self.fields.keys().find(|field| !has(field)) {
            let its = if parameters.is_empty() { "no parameter".to_owned() } else { parameters.join(", ") };
            return Err(Wrong::at(field, format!("{name} has no {field}; remove it ({name} has {its})")));
        }
        match required.iter().find(|field| !self.fields.contains_key(**field)) {
            Some(field) => {
                Err(Wrong::at(field, format!("is missing; {name} needs it, for example {}", example(field))))
            }
            None => Ok(()),
        }
    }

    fn fault(&self) -> Result<Fault, Wrong> {
        let direction = self.direction()?;
        let time =
            |field, shortest, longest| Ok(self.duration(field, shortest, longest)?.unwrap_or_default());
        Ok(match self.kind.name {
            "reset" => Fault::Reset,
            "fin" => Fault::Fin,
            "black-hole" => Fault::BlackHole(direction),
            "stall" => Fault::Stall(direction),
            "jam" => Fault::Jam(direction),
            "delay" => {
                let latency = time("latency", Duration::ZERO, LONGEST_DELAY)?;
                Fault::Delay { direction, latency, jitter: time("jitter", Duration::ZERO, LONGEST_DELAY)? }
            }
            "bandwidth" => {
                let bytes_per_second = self.size("bytes-per-second", 1 << 40)?.unwrap_or(1);
                Fault::Bandwidth { direction, bytes_per_second }
            }
            "trickle" => {
                let bytes = self.size("bytes", 64 << 10)?.unwrap_or(1);
                Fault::Trickle { direction, bytes: usize::try_from(bytes).unwrap_or(1) }
            }
            "corrupt" => Fault::Corrupt(direction),
            "cut-in-frame" => Fault::CutInFrame(direction),
            "cut-after" => Fault::CutAfter { direction, bytes: self.size("bytes", 1 << 50)?.unwrap_or(1) },
            "refuse" => Fault::Refuse,
            "mute" => Fault::Mute,
            "swallow-close" => Fault::SwallowClose(direction),
            "drop-pings" => Fault::DropPings(direction),
            "drop-pongs" => Fault::DropPongs(direction),
            "idle-cut" => {
                Fault::IdleCut { direction, after: time("idle", SHORTEST, LONGEST)?, silent: self.silent()? }
            }
            "lifetime-cut" => Fault::LifetimeCut { after: time("age", SHORTEST, LONGEST)? },
            "status" => Fault::Status {
                code: self.number("code", 300, 599)?.unwrap_or(503),
                retry_after: self.number("retry-after", 0, 86_400)?,
            },
            "ghost" => Fault::Ghost,
            other => return Err(Wrong::at("kind", format!("{other} cannot be written"))),
        })
    }

    fn when(&self) -> Result<When, Wrong> {
        let name = self.kind.name;
        let at = self.duration("at", Duration::ZERO, LONGEST)?;
        let repeat = self.duration("repeat", SHORTEST, LONGEST)?;
        let after = self.duration("after", Duration::ZERO, LONGEST)?;
        let every = self.duration("every", SHORTEST, LONGEST)?;
        let given = [("at", at), ("after", after), ("every", every)];
        let mut given = given.iter().filter(|(_, time)| time.is_some());
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            let what = format!("contradicts {first}; keep one of at, after and every");
            return Err(Wrong::at(second, what));
        }
        if repeat.is_some() && at.is_none() {
            return Err(Wrong::at(
                "repeat",
                "needs at, the time of the first strike; add for example at = \"10s\"",
            ));
        }
        let of_connection = match self.kind.strikes {
            Strikes::Once | Strikes::Lasting => None,
            Strikes::Listener => after.map(|_| "after"),
            Strikes::Opening => after.map(|_| "after").or(every.map(|_| "every")),
        };
        if let Some(field) = of_connection {
            let what = format!(
                "counts from the opening of a connection, and {name} strikes connections as they open; write at, the time \
                 since the start"
            );
            return Err(Wrong::at(field, what));
        }
        Ok(match (at, after, every) {
            (Some(at), ..) => When::At { at, repeat },
            (_, Some(after), _) => When::After(after),
            (.., Some(every)) => When::Every(every),
            _ => When::Always,
        })
    }

    fn lasts(&self, when: When) -> Result<Option<Duration>, Wrong> {
        let Some(lasts) = self.duration("for", SHORTEST, LONGEST)? else {
            let repeats = matches!(when, When::At { repeat: Some(_), .. });
            if repeats && self.kind.strikes != Strikes::Once {
                let what = format!("needs for: {} has no end without it, and strikes once", self.kind.name);
                return Err(Wrong::at("repeat", format!("{what}; add for example for = \"8s\"")));
            }
            return Ok(None);
        };
        if self.kind.strikes == Strikes::Once {
            let what = format!("{} happens in one moment and has no end; remove for", self.kind.name);
            return Err(Wrong::at("for", what));
        }
        match when {
            When::At { repeat: Some(repeat), .. } if lasts >= repeat => {
                let repeat = humantime::format_duration(repeat);
                Err(Wrong::at("for", format!("must be shorter than repeat, which is {repeat}")))
            }
            _ => Ok(Some(lasts)),
        }
    }

    fn share(&self) -> Result<f64, Wrong> {
        let Some(value) = self.fields.get("share") else { return Ok(1.0) };
        if self.kind.name == "refuse" {
            let what =
                "refuse closes the port for all new connections; remove share, or write mute or status";
            return Err(Wrong::at("share", what));
        }
        let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
        share.ok_or_else(|| {
            Wrong::at("share", format!("must be above 0 and at most 1, not {value}; write for example 0.5"))
        })
    }

    fn direction(&self) -> Result<Direction, Wrong> {
        let given = self.fields.get("direction");
        match given.map(|value| value.as_str().unwrap_or_default()) {
            None | Some("both") => Ok(Direction::Both),
            Some("up") => Ok(Direction::Up),
            Some("down") => Ok(Direction::Down),
            Some(_) => {
                let what = format!(
                    "must be up (client to upstream), down or both, not {}",
                    given.unwrap_or(&Value::Null)
                );
                Err(Wrong::at("direction", what))
            }
        }
    }

    fn silent(&self) -> Result<bool, Wrong> {
        match self.fields.get("silent") {
            None => Ok(false),
            Some(Value::Bool(silent)) => Ok(*silent),
            Some(other) => Err(Wrong::at("silent", format!("must be true or false, not {other}"))),
        }
    }

    fn duration(
        &self,
        field: &str,
        shortest: Duration,
        longest: Duration,
    ) -> Result<Option<Duration>, Wrong> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        let wrong = |what: String| Err(Wrong::at(field, what));
        let Value::String(given) = value else {
            let meant = value.as_u64().filter(|seconds| *seconds <= longest.as_secs()).unwrap_or(8);
            return wrong(format!(
                "must be a time with a unit, not {value}; write for example \"{meant}s\" or \"{meant}ms\""
            ));
        };
        match humantime::parse_duration(given) {
            Ok(time) if time >= shortest && time <= longest => Ok(Some(time)),
            Ok(_) => {
                let (shortest, longest) = (text(shortest), text(longest));
                wrong(format!("must be from {shortest} to {longest}, not {given}"))
            }
            Err(_) => wrong(format!(
                "must be a time with a unit, not {given:?}; write for example \"8s\", \"500ms\" or \"2m\""
            )),
        }
    }

    /// Reads a number of bytes from 1 on.
    fn size(&self, field: &str, largest: u64) -> Result<Option<u64>, Wrong> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        let size = match value {
            Value::String(text) => bytes(text),
            value => value.as_u64(),
        };
        match size {
            Some(size) if (1..=largest).contains(&size) => Ok(Some(size)),
            Some(_) => {
                Err(Wrong::at(field, format!("must be from 1 to {}, not {value}", written_size(largest))))
            }
            None => {
                let what =
                    format!("must be a number of bytes, not {value}; write for example \"64KiB\" or 4096");
                Err(Wrong::at(field, what))
            }
        }
    }

    fn number<T: TryFrom<u64>>(&self, field: &str, from: u64, to: u64) -> Result<Option<T>, Wrong> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (from..=to).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| {
            let unit = if field == "retry-after" { "seconds, a number" } else { "a number" };
            Wrong::at(
                field,
                format!("must be {unit} from {from} to {to}, not {value}; write {}", example(field)),
            )
        })
    }
}

/// Returns how a parameter is written, in TOML.
fn example(field: &str) -> &'static str {
    match field {
        "latency" => "latency = \"100ms\"",
        "bytes-per-second" => "bytes-per-second = \"64KiB\"",
        "bytes" => "bytes = \"1MiB\"",
        "idle" => "idle = \"60s\"",
        "age" => "age = \"60m\"",
        "code" => "code = 503",
        _ => "retry-after = 5",
    }
}

/// The units of sizes, the largest first.
const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Parses a size such as `64KiB` or `4096`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).filter(|unit| !unit.is_empty()).unwrap_or("B");
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
    digits.trim_end().parse::<u64>().ok()?.checked_mul(*unit)
}

fn written_size(size: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| size >= *unit && size.is_multiple_of(*unit));
    unit.map_or_else(|| size.to_string(), |(name, unit)| format!("{}{name}", size / unit))
}

/// Reads the fields of a rule from one line: `kind=black-hole,at=10s,for=8s`. `kind=` may be left out.
pub(super) fn fields_of_line(line: &str) -> Result<Map<String, Value>, Wrong> {
    let mut fields = Map::new();
    for (index, part) in line.split(',').map(str::trim).enumerate() {
        let (name, text) = match part.split_once('=') {
            Some((name, text)) => (name.trim(), text.trim()),
            None if index == 0 && !part.is_empty() => ("kind", part),
            None => {
                let what = format!("{part:?} is no field; write for example black-hole,at=10s,for=8s");
                return Err(Wrong::whole(what));
            }
        };
        if fields.insert(name.to_owned(), value_of_text(text)).is_some() {
            return Err(Wrong::at(name, "is written twice; write it once"));
        }
    }
    Ok(fields)
}

/// Reads a text without quotes as a number or as `true` or `false`, if it is one.
fn value_of_text(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => match (text.parse::<u64>(), text.parse::<f64>()) {
            (Ok(number), _) => number.into(),
            (_, Ok(number)) if number.is_finite() => number.into(),
            _ => text.into(),
        },
    }
}

impl Rule {
    /// Returns the fields of a scenario file, with their values.
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = vec![("kind", self.fault.name().into())];
        fields.extend(self.fault.parameters());
        let (times, repeat) = match self.when {
            When::Always => (None, None),
            When::At { at, repeat } => (Some(("at", at)), repeat),
            When::After(after) => (Some(("after", after)), None),
            When::Every(every) => (Some(("every", every)), None),
        };
        let repeat = repeat.map(|repeat| ("repeat", repeat));
        let lasts = self.lasts.map(|lasts| ("for", lasts));
        let times = times.into_iter().chain(repeat).chain(lasts);
        fields.extend(times.map(|(name, time)| (name, Value::from(text(time)))));
        if self.share < 1.0 {
            fields.push(("share", self.share.into()));
        }
        fields
    }
}

impl Serialize for Rule {
    /// Writes the fields of a scenario file.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.fields())
    }
}

impl fmt::Display for Rule {
    /// Writes one line, as [`FromStr`](std::str::FromStr) reads it: `black-hole,direction=both,after=10s`.
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.fields().into_iter().enumerate() {
            match &value {
                Value::String(kind) if number == 0 => to.write_str(kind)?,
                Value::String(text) => write!(to, ",{name}={text}")?,
                value => write!(to, ",{name}={value}")?,
            }
        }
        Ok(())
    }
}
