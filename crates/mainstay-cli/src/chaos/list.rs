//! `mainstay chaos --list`: all faults with their fields, and all profiles.

use std::process::ExitCode;

use mainstay_chaos::{Kind, Profile, Scenario, Strikes};
use serde_json::{Value, json};

use crate::observe::log;

/// Prints everything, or the file of the profile of this name.
pub(super) fn print(name: &str, json: bool) -> ExitCode {
    if name.is_empty() {
        return crate::print(if json { format!("{:#}\n", as_json()) } else { as_text() }.as_bytes());
    }
    match (Profile::named(name), Scenario::profile(name)) {
        (Some(profile), _) if !json => crate::print(profile.text.as_bytes()),
        (Some(profile), _) => crate::print(format!("{:#}\n", profile_as_json(profile)).as_bytes()),
        (None, unknown) => {
            let error = unknown.err().map(|error| error.to_string()).unwrap_or_default();
            log::write_line(&format!("--list: {error}"));
            ExitCode::from(2)
        }
    }
}

/// When a fault strikes: the fields that all faults have.
const TIMES: [(&str, &str); 6] = [
    ("at=10s", "10 s after the start, all connections that are open then; with repeat=1m again each minute"),
    ("after=10s", "10 s after the opening of each connection"),
    ("every=30s", "at random times of each connection, 30 s apart on average"),
    ("", "none of the three: from the start, and each connection from its opening"),
    ("for=8s", "until 8 s later; without it, until the connection ends"),
    ("share=0.5", "one connection in two, drawn from the seed"),
];

fn as_text() -> String {
    let mut text = "Faults, for --fault KIND,FIELD=VALUE,... and [[fault]] in a file:\n".to_owned();
    for Kind { name, about, parameters, required, .. } in Kind::ALL {
        text += &format!("  {name:<14} {about}\n");
        let mark = |field: &&str| {
            if required.contains(field) { format!("{field} (needed)") } else { (*field).to_owned() }
        };
        let fields: Vec<String> = parameters.iter().map(mark).collect();
        if !fields.is_empty() {
            text += &format!("  {:<14}   {}\n", "", fields.join(", "));
        }
    }
    text += "\nWhen:\n";
    for (field, about) in TIMES {
        text += &format!("  {field:<14} {about}\n");
    }
    text += "\nProfiles, for --profile NAME; --list NAME prints the file:\n";
    for profile in Profile::ALL {
        // The first sentence; the file has the rest.
        let about = profile.about();
        text += &format!(
            "  {:<14} {}\n",
            profile.name,
            about.split(". ").next().unwrap_or_default().trim_end_matches('.')
        );
    }
    text
}

fn as_json() -> Value {
    let strikes = |strikes| match strikes {
        Strikes::Once => "once",
        Strikes::Lasting => "lasting",
        Strikes::Listener => "listener",
        Strikes::Opening => "opening",
    };
    let faults = Kind::ALL.map(|kind| {
        json!({"kind": kind.name, "about": kind.about, "strikes": strikes(kind.strikes), "parameters": kind.parameters,
               "required": kind.required})
    });
    json!({"faults": faults, "profiles": Profile::ALL.iter().map(profile_as_json).collect::<Vec<_>>()})
}

fn profile_as_json(profile: &Profile) -> Value {
    let rules = Scenario::profile(profile.name).map(|scenario| scenario.rules).unwrap_or_default();
    json!({"name": profile.name, "about": profile.about(), "source": profile.source(), "fault": rules})
}
