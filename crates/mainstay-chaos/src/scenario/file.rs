//! Scenario files, in TOML or in JSON.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::guess::meant;
use super::profile::Profile;
use super::table::fields_of_line;
use super::wrong::{ScenarioError, Step, Wrong};
use super::{MAX_RULES, Rule, Scenario};

/// The tables at the top of a file.
const AT_THE_TOP: [&str; 4] = ["seed", "use", "fault", "profile"];
/// The greatest seed: programs in JavaScript read it from JSON, too.
const MAX_SEED: u64 = (1 << 53) - 1;

/// What a scenario file holds.
///
/// ```
/// let file = mainstay_chaos::ScenarioFile::parse_toml(r#"
///     seed = 7
///
///     [[fault]]
///     kind = "black-hole"
///     direction = "up"
///     after = "10s"
///     for = "8s"
/// "#)?;
/// assert_eq!((file.seed, file.scenario.rules.len()), (Some(7), 1));
/// # Ok::<(), mainstay_chaos::ScenarioError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScenarioFile {
    /// The seed of the run, where the file fixes one.
    pub seed: Option<u64>,
    /// The rules of the profiles that `use` names, and then those of `[[fault]]`.
    pub scenario: Scenario,
    /// The rules of `[[profile.NAME.fault]]`, by name.
    pub profiles: BTreeMap<String, Scenario>,
}

impl ScenarioFile {
    /// Reads a file in TOML.
    ///
    /// # Errors
    /// The first mistake: the line, the field, its bound, and what to write.
    pub fn parse_toml(text: &str) -> Result<Self, ScenarioError> {
        let invalid = |error: &toml::de::Error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let why = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            ScenarioError(format!("line {line}: no valid TOML: {why}"))
        };
        let table = DeTable::parse(text).map_err(|error| invalid(&error))?;
        let root: toml::Table = toml::from_str(text).map_err(|error| invalid(&error))?;
        read_file(&root.into_iter().map(|(name, value)| (name, json(value))).collect()).map_err(|wrong| {
            let place = place_of(&DeValue::Table(table.into_inner()), &wrong.path, 0);
            ScenarioError(format!("line {}: {wrong}", line_of(text, place)))
        })
    }

    /// Reads the same in JSON.
    ///
    /// # Errors
    /// As [`ScenarioFile::parse_toml`], without the line.
    pub fn parse_json(text: &str) -> Result<Self, ScenarioError> {
        Ok(read_file(&object(text)?)?)
    }

    /// Returns a profile of this file, or a built-in one.
    ///
    /// # Errors
    /// Neither has this name; the error lists the names.
    pub fn profile(&self, name: &str) -> Result<Scenario, ScenarioError> {
        match self.profiles.get(name) {
            Some(scenario) => Ok(scenario.clone()),
            None => built_in(name, self.profiles.keys()),
        }
    }
}

impl Scenario {
    /// Reads the rules of a scenario file in TOML. [`ScenarioFile`] also has its seed and its profiles.
    ///
    /// # Errors
    /// The first mistake: the line, the field, its bound, and what to write.
    pub fn parse_toml(text: &str) -> Result<Self, ScenarioError> {
        ScenarioFile::parse_toml(text).map(|file| file.scenario)
    }

    /// Reads the rules of a scenario file in JSON.
    ///
    /// # Errors
    /// As [`Scenario::parse_toml`], without the line.
    pub fn parse_json(text: &str) -> Result<Self, ScenarioError> {
        ScenarioFile::parse_json(text).map(|file| file.scenario)
    }
}

impl Scenario {
    /// Returns a built-in profile, such as `elevator`. [`Profile::ALL`] lists them.
    ///
    /// # Errors
    /// There is no profile of this name; the error says which one was probably meant, or lists all.
    pub fn profile(name: &str) -> Result<Self, ScenarioError> {
        built_in(name, std::iter::empty())
    }
}

/// Returns the built-in profile of this name. The error names those of the file, too.
fn built_in<'a>(name: &str, of_file: impl Iterator<Item = &'a String>) -> Result<Scenario, ScenarioError> {
    if let Some(profile) = Profile::named(name) {
        return Scenario::parse_toml(profile.text);
    }
    let names = Profile::ALL.map(|profile| profile.name);
    let names: Vec<&str> = of_file.map(String::as_str).chain(names).collect();
    let fix = match meant(name, &names) {
        Some(near) => near.to_owned(),
        None => format!("one of {}", names.join(", ")),
    };
    Err(ScenarioError(format!("{name:?} is no profile; write {fix}")))
}

impl Rule {
    /// Reads a rule as an object of JSON, with the fields of a scenario file.
    ///
    /// # Errors
    /// The first mistake: the field, its bound, and what to write.
    pub fn from_json(text: &str) -> Result<Self, ScenarioError> {
        Self::from_fields(&object(text)?)
    }

    /// Reads a rule from the fields of a scenario file.
    ///
    /// # Errors
    /// As [`Rule::from_json`].
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Self, ScenarioError> {
        Ok(Self::read(fields)?)
    }
}

impl FromStr for Rule {
    type Err = ScenarioError;

    /// Reads one line: `kind=black-hole,at=10s,for=8s`, or `black-hole,at=10s,for=8s`.
    fn from_str(line: &str) -> Result<Self, ScenarioError> {
        Ok(Self::read(&fields_of_line(line)?)?)
    }
}

fn object(text: &str) -> Result<Map<String, Value>, ScenarioError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => {
            Err(ScenarioError("must be an object of JSON, for example {\"kind\": \"reset\"}".to_owned()))
        }
        Err(error) => Err(ScenarioError(format!("no valid JSON: {error}"))),
    }
}

fn read_file(root: &Map<String, Value>) -> Result<ScenarioFile, Wrong> {
    if let Some(name) = root.keys().find(|name| !AT_THE_TOP.contains(&name.as_str())) {
        let what = match meant(name, &AT_THE_TOP) {
            Some(right) => format!("unknown field; write {right}"),
            None => "unknown field here; a file has seed, [[fault]] tables with the fields of a fault, and \
                     [[profile.NAME.fault]] tables"
                .to_owned(),
        };
        return Err(Wrong::at(name, what));
    }
    let seed = match root.get("seed") {
        None => None,
        Some(seed) => Some(seed.as_u64().filter(|seed| *seed <= MAX_SEED).ok_or_else(|| {
            let what =
                format!("must be a whole number from 0 to {MAX_SEED}, not {seed}; write for example 7");
            Wrong::at("seed", what)
        })?),
    };
    let own = read_rules(root)?;
    let mut profiles = BTreeMap::new();
    if let Some(named) = root.get("profile") {
        let within = |wrong: Wrong| wrong.within(Step::Name("profile".to_owned()));
        let named = named.as_object().ok_or_else(|| Wrong::at("profile", "write [[profile.NAME.fault]]"))?;
        for (name, profile) in named {
            let scenario = read_profile(name, profile)
                .map_err(|wrong| within(wrong.within(Step::Name(name.clone()))))?;
            profiles.insert(name.clone(), scenario);
        }
    }
    let mut file = ScenarioFile { seed, scenario: Scenario::default(), profiles };
    file.scenario = used(root, &file)?;
    file.scenario.rules.extend(own.rules);
    match file.scenario.rules.len() {
        ..=MAX_RULES => Ok(file),
        count => {
            let what = format!(
                "the profiles and [[fault]] have {count} rules together; at most {MAX_RULES} are allowed"
            );
            Err(Wrong::at("use", what))
        }
    }
}

/// Reads the rules of the profiles that `use` names.
fn used(root: &Map<String, Value>, file: &ScenarioFile) -> Result<Scenario, Wrong> {
    let mut used = Scenario::default();
    let names = match root.get("use") {
        None => return Ok(used),
        Some(Value::Array(names)) if names.len() <= MAX_RULES => names,
        Some(_) => {
            return Err(Wrong::at("use", "must be a list of profiles; write for example [\"mobile\"]"));
        }
    };
    for (index, name) in names.iter().enumerate() {
        let wrong =
            |what: String| Wrong::whole(what).within(Step::Index(index)).within(Step::Name("use".to_owned()));
        let name = name.as_str().ok_or_else(|| wrong(format!("must be a name in quotes, not {name}")))?;
        let ScenarioError(line) = match file.profile(name) {
            Ok(scenario) => {
                used.rules.extend(scenario.rules);
                continue;
            }
            Err(error) => error,
        };
        return Err(wrong(line));
    }
    Ok(used)
}

fn read_profile(name: &str, profile: &Value) -> Result<Scenario, Wrong> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(Wrong::whole("a profile's name has 1 to 64 letters, digits, -, _ and ."));
    }
    if Profile::named(name).is_some() {
        return Err(Wrong::whole("is the name of a built-in profile; choose another name"));
    }
    let Some(profile) = profile.as_object() else {
        return Err(Wrong::whole(format!(
            "write [[profile.{name}.fault]] and the fields of a fault below it"
        )));
    };
    match profile.keys().find(|field| *field != "fault") {
        Some(field) => {
            let what = format!("unknown field; a profile has only [[profile.{name}.fault]] tables");
            Err(Wrong::at(field, what))
        }
        None => read_rules(profile),
    }
}

/// Reads the `[[fault]]` tables of a file or of a profile.
fn read_rules(table: &Map<String, Value>) -> Result<Scenario, Wrong> {
    let list = match table.get("fault") {
        None => return Ok(Scenario::default()),
        Some(Value::Array(list)) => list,
        Some(_) => {
            return Err(Wrong::at(
                "fault",
                "must be a list: write [[fault]] with two brackets, in JSON [{...}]",
            ));
        }
    };
    if list.len() > MAX_RULES {
        return Err(Wrong::at("fault", format!("has {} rules; at most {MAX_RULES} are allowed", list.len())));
    }
    let read = |(index, item): (usize, &Value)| {
        let read = match item.as_object() {
            Some(fields) => Rule::read(fields),
            None => Err(Wrong::whole("must be a table with the fields of a fault")),
        };
        read.map_err(|wrong| wrong.within(Step::Index(index)).within(Step::Name("fault".to_owned())))
    };
    let rules = list.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(Scenario { rules })
}

/// Returns a value of TOML as one of JSON. JSON has no dates and no infinite numbers, and no field takes one: they become their text,
/// which the mistake quotes.
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) if number.is_finite() => number.into(),
        toml::Value::Boolean(is) => is.into(),
        toml::Value::Array(items) => items.into_iter().map(json).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(name, value)| (name, json(value))).collect(),
        toml::Value::Float(number) => number.to_string().into(),
        toml::Value::Datetime(time) => time.to_string().into(),
    }
}

/// Returns where the deepest part of a path begins that the file has.
fn place_of(value: &DeValue<'_>, path: &[Step], around: usize) -> usize {
    let Some((step, rest)) = path.split_first() else { return around };
    match (step, value) {
        (Step::Name(name), DeValue::Table(table)) => match table.get_key_value(name.as_str()) {
            // The key of a list of tables is that of its first table.
            Some((_, list)) if matches!(list.get_ref(), DeValue::Array(_)) => {
                place_of(list.get_ref(), rest, list.span().start)
            }
            Some((key, value)) => place_of(value.get_ref(), rest, key.span().start),
            None => around,
        },
        (Step::Index(index), DeValue::Array(items)) => match items.get(*index) {
            Some(item) => place_of(item.get_ref(), rest, item.span().start),
            None => around,
        },
        _ => around,
    }
}

/// Returns the number of the line that this byte is in.
fn line_of(text: &str, place: usize) -> usize {
    text.bytes().take(place).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Direction, Fault, Kind, When};

    fn wrong(text: &str) -> String {
        ScenarioFile::parse_toml(text).unwrap_err().to_string()
    }

    fn rule(fields: &str) -> Result<Rule, String> {
        fields.parse().map_err(|error: ScenarioError| error.to_string())
    }

    #[test]
    fn a_file_has_a_seed_rules_and_profiles() {
        let file = ScenarioFile::parse_toml(
            "seed = 7\n[[fault]]\nkind = \"black-hole\"\ndirection = \"up\"\nat = \"10s\"\nrepeat = \"1m\"\nfor = \"8s\"\nshare = 0.5\n\
             [[profile.my-train.fault]]\nkind = \"reset\"\nevery = \"30s\"\n",
        )
        .unwrap();
        let when = When::At { at: Duration::from_secs(10), repeat: Some(Duration::from_secs(60)) };
        let fault = Fault::BlackHole(Direction::Up);
        let first = Rule { fault, when, lasts: Some(Duration::from_secs(8)), share: 0.5 };
        assert_eq!((file.seed, &file.scenario.rules[..]), (Some(7), &[first][..]));
        let train = file.profile("my-train").unwrap();
        assert_eq!(train.rules[0].when, When::Every(Duration::from_secs(30)));
        assert_eq!(file.profile("alb").unwrap(), Scenario::profile("alb").unwrap());
        let unknown = file.profile("my-trian").unwrap_err().to_string();
        assert!(unknown.contains("write my-train"), "{unknown}");
    }

    #[test]
    fn a_file_builds_on_profiles_and_adds_its_own_rules() {
        let text = "use = [\"mine\", \"alb\"]\n[[fault]]\nkind = \"fin\"\n[[profile.mine.fault]]\nkind = \"reset\"\n";
        let rules = ScenarioFile::parse_toml(text).unwrap().scenario.rules;
        assert_eq!(
            rules.iter().map(|rule| rule.fault.name()).collect::<Vec<_>>(),
            ["reset", "idle-cut", "fin"]
        );
    }

    #[test]
    fn toml_json_and_one_line_are_the_same_table() {
        let toml = Scenario::parse_toml(
            "[[fault]]\nkind = \"status\"\ncode = 502\nretry-after = 3\nat = \"1s\"\nfor = \"2s\"\n",
        );
        let json = r#"{"kind": "status", "code": 502, "retry-after": 3, "at": "1s", "for": "2s"}"#;
        let line = "status, code=502, retry-after=3, at=1s, for=2s";
        let rule: Rule = line.parse().unwrap();
        assert_eq!(toml.unwrap().rules, std::slice::from_ref(&rule));
        assert_eq!(Rule::from_json(json).unwrap(), rule);
        let whole = format!("{{\"fault\": [{json}]}}");
        assert_eq!(Scenario::parse_json(&whole).unwrap().rules, [rule]);
    }

    #[test]
    fn every_rule_is_read_back_as_it_is_written() {
        let parameters = |kind: &Kind| {
            let value = |name: &str| match name {
                "direction" => "direction=down",
                "latency" => "latency=1m30s",
                "jitter" => "jitter=7ms",
                "bytes-per-second" => "bytes-per-second=64KiB",
                "bytes" => "bytes=1025",
                "idle" => "idle=55s",
                "silent" => "silent=true",
                "age" => "age=1h",
                "code" => "code=429",
                _ => "retry-after=5",
            };
            kind.parameters.iter().map(|name| format!(",{}", value(name))).collect::<String>()
        };
        for kind in Kind::ALL {
            let (ends, share) = match kind.strikes {
                crate::Strikes::Once => (",at=10s,repeat=20s", ",share=0.25"),
                _ if kind.name == "refuse" => (",at=10s,repeat=20s,for=5s", ""),
                _ => (",at=10s,repeat=20s,for=5s", ",share=0.25"),
            };
            for when in ["", ",at=0s", ends, share] {
                let line = format!("{}{}{when}", kind.name, parameters(&kind));
                let rule: Rule = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
                assert_eq!(rule.fault.name(), kind.name);
                assert_eq!(rule.fault.is_of_a_moment(), kind.strikes == crate::Strikes::Once, "{line}");
                let json = serde_json::to_string(&rule).unwrap();
                assert_eq!(Rule::from_json(&json).unwrap(), rule, "{line} {json}");
                assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule, "{line} {rule}");
            }
        }
    }

    #[test]
    fn a_mistake_names_the_line_the_field_the_bound_and_what_to_write() {
        let fault = |fields: &str| {
            wrong(&format!("seed = 7\n\n[[fault]]\nkind = \"reset\"\n\n[[fault]]\n{fields}\n"))
        };
        for (fields, expected) in [
            ("kind = \"blackhole\"", "line 7: fault[1].kind: \"blackhole\" is no fault; write black-hole"),
            (
                "kind = \"x\"",
                "line 7: fault[1].kind: \"x\" is no fault; write one of reset, fin, black-hole,",
            ),
            ("kind = 5", "line 7: fault[1].kind: must be a name in quotes, not 5"),
            ("for = \"1s\"", "line 6: fault[1].kind: is missing; write one of reset, fin"),
            ("knd = \"reset\"", "line 7: fault[1].knd: unknown field; write kind"),
            ("kind = \"stall\"\nduration = \"1s\"", "line 8: fault[1].duration: unknown field; write for"),
            (
                "kind = \"stall\"\nxyzzyx = 1",
                "line 8: fault[1].xyzzyx: unknown field; a fault has kind, direction",
            ),
            (
                "kind = \"stall\"\nfor = 8",
                "line 8: fault[1].for: must be a time with a unit, not 8; write for example \"8s\"",
            ),
            (
                "kind = \"stall\"\nfor = \"soon\"",
                "line 8: fault[1].for: must be a time with a unit, not \"soon\"; write for example \"8s\"",
            ),
            ("kind = \"stall\"\nfor = \"0s\"", "fault[1].for: must be from 1ms to 7days, not 0s"),
            ("kind = \"stall\"\nfor = \"8days\"", "fault[1].for: must be from 1ms to 7days, not 8days"),
            (
                "kind = \"reset\"\nfor = \"1s\"",
                "fault[1].for: reset happens in one moment and has no end; remove for",
            ),
            (
                "kind = \"stall\"\ndirection = \"left\"",
                "fault[1].direction: must be up (client to upstream), down or both, not \"left\"",
            ),
            (
                "kind = \"reset\"\ndirection = \"up\"",
                "fault[1].direction: reset has no direction; remove it (reset has no parameter)",
            ),
            (
                "kind = \"stall\"\nlatency = \"1s\"",
                "fault[1].latency: stall has no latency; remove it (stall has direction)",
            ),
            (
                "kind = \"delay\"",
                "line 6: fault[1].latency: is missing; delay needs it, for example latency = \"100ms\"",
            ),
            ("kind = \"delay\"\nlatency = \"2h\"", "fault[1].latency: must be from 0s to 1h, not 2h"),
            (
                "kind = \"status\"\ncode = 200",
                "fault[1].code: must be a number from 300 to 599, not 200; write code = 503",
            ),
            (
                "kind = \"status\"\ncode = 503\nretry-after = \"5s\"",
                "fault[1].retry-after: must be seconds, a number from 0 to 86400",
            ),
            (
                "kind = \"bandwidth\"\nbytes-per-second = \"64KB\"",
                "fault[1].bytes-per-second: must be a number of bytes, not \"64KB\"; write for example \"64KiB\"",
            ),
            (
                "kind = \"bandwidth\"\nbytes-per-second = 0",
                "fault[1].bytes-per-second: must be from 1 to 1TiB, not 0",
            ),
            (
                "kind = \"idle-cut\"\nidle = \"1s\"\nsilent = \"yes\"",
                "line 9: fault[1].silent: must be true or false, not \"yes\"",
            ),
            (
                "kind = \"reset\"\nshare = 1.5",
                "fault[1].share: must be above 0 and at most 1, not 1.5; write for example 0.5",
            ),
            ("kind = \"reset\"\nshare = nan", "fault[1].share: must be above 0 and at most 1, not \"NaN\""),
            ("kind = \"stall\"\nfor = -8", "must be a time with a unit, not -8; write for example \"8s\""),
            (
                "kind = \"stall\"\nfor = 07:32:00",
                "must be a time with a unit, not \"07:32:00\"; write for example",
            ),
            (
                "kind = \"reset\"\nat = \"1s\"\nevery = \"1s\"",
                "fault[1].every: contradicts at; keep one of at, after and every",
            ),
            ("kind = \"reset\"\nrepeat = \"1s\"", "fault[1].repeat: needs at, the time of the first strike"),
            (
                "kind = \"stall\"\nat = \"1s\"\nrepeat = \"5s\"\nfor = \"5s\"",
                "line 10: fault[1].for: must be shorter than repeat, which is 5s",
            ),
            (
                "kind = \"stall\"\nat = \"1s\"\nrepeat = \"5s\"",
                "line 9: fault[1].repeat: needs for: stall has no end without it, and strikes once",
            ),
            (
                "kind = \"refuse\"\nshare = 0.5",
                "fault[1].share: refuse closes the port for all new connections; remove share",
            ),
            (
                "kind = \"refuse\"\nafter = \"1s\"",
                "fault[1].after: counts from the opening of a connection, and refuse strikes connections as they open; write at",
            ),
        ] {
            let line = fault(fields);
            assert!(line.contains(expected), "{fields}\n{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[test]
    fn a_mistake_around_the_rules_is_named_too() {
        for (text, expected) in [
            ("seed = -1", "line 1: seed: must be a whole number from 0 to 9007199254740991, not -1"),
            ("seed = \"7\"", "seed: must be a whole number"),
            ("\nsead = 7", "line 2: sead: unknown field; write seed"),
            ("kind = \"reset\"", "kind: unknown field here; a file has seed, [[fault]] tables"),
            ("[[faults]]\nkind = \"reset\"", "faults: unknown field; write fault"),
            ("[fault]\nkind = \"reset\"", "fault: must be a list: write [[fault]] with two brackets"),
            ("fault = [1]", "fault[0]: must be a table"),
            (
                "[[profile.alb.fault]]\nkind = \"reset\"",
                "profile.alb: is the name of a built-in profile; choose another",
            ),
            (
                "[profile.x]\nabout = \"y\"",
                "line 2: profile.x.about: unknown field; a profile has only [[profile.x.fault]]",
            ),
            (
                "[[profile.x.fault]]\nkind = \"rest\"",
                "line 2: profile.x.fault[0].kind: \"rest\" is no fault; write reset",
            ),
            ("profile = 1", "profile: write [[profile.NAME.fault]]"),
            ("use = \"alb\"", "use: must be a list of profiles; write for example [\"mobile\"]"),
            ("\nuse = [\"alb\", \"tunel\"]", "line 2: use[1]: \"tunel\" is no profile; write tunnel"),
            ("a = \n", "line 1: no valid TOML"),
            ("a = 1\na = 2\n", "line 2: no valid TOML: duplicate key"),
        ] {
            let line = wrong(text);
            assert!(line.contains(expected), "{text}\n{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        let many = "[[fault]]\nkind = \"reset\"\n".repeat(1001);
        assert!(wrong(&many).contains("has 1001 rules; at most 1000"));
        let used = format!("use = [{}]", "\"mobile\", ".repeat(1000));
        assert!(
            wrong(&used).starts_with("line 1: use: ") && wrong(&used).contains("at most 1000"),
            "{}",
            wrong(&used)
        );
    }

    #[test]
    fn a_line_that_is_no_rule_says_what_to_write() {
        for (line, expected) in [
            ("", "\"\" is no field; write for example black-hole,at=10s,for=8s"),
            ("reset,", "\"\" is no field"),
            ("reset,now", "\"now\" is no field"),
            ("reset,at=1s,at=2s", "at: is written twice"),
            ("black-hole,for=8", "for: must be a time with a unit, not 8; write for example \"8s\""),
            ("rset", "kind: \"rset\" is no fault; write reset"),
            ("bandwidth,bytes-per-second=1.5", "bytes-per-second: must be a number of bytes, not 1.5"),
        ] {
            let error = rule(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
        for text in ["", "[]", "{", "{\"kind\": \"reset\"} x"] {
            assert_eq!(Rule::from_json(text).unwrap_err().to_string().lines().count(), 1);
        }
    }
}
