//! The environment: every flag of `serve` as a variable, and variables that look like one and are none.
//!
//! `--max-sessions` is `MAINSTAY_MAX_SESSIONS`. What was misspelt would be a default in silence, so a name within two
//! edits of a known one is a mistake, and any other is warned of. Kubernetes injects names such as
//! `MAINSTAY_SERVICE_HOST` and `MAINSTAY_PORT` where a service is called `mainstay`: these mean nothing here.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

const PREFIX: &str = "MAINSTAY_";
/// Variables that are no flag.
const OTHERS: [&str; 1] = ["MAINSTAY_LOG"];
/// Flags whose values hold no comma, and are parted by one in a variable. Others are parted by line breaks.
const LISTS: [&str; 5] = ["trusted_proxy", "session_cookie", "session_header", "allow_origin", "admin_host"];
/// Flags that say something of the backend, by name or by how their name begins.
const OF_BACKEND: [&str; 6] =
    ["delivery", "confirm", "trusted_proxy", "profile", "on_backend_loss", "route_heartbeat"];
const OF_BACKEND_BEGIN: [&str; 4] = ["upstream_", "session_", "prologue", "backend_"];

/// The command with a variable for each flag.
pub(crate) fn with_variables(command: Command) -> Command {
    command.mut_args(|argument| {
        let Some(variable) = variable_of(&argument) else { return argument };
        let (action, id) = (argument.get_action().clone(), argument.get_id().to_string());
        let argument = argument.env(variable).hide_env_values(true);
        match action {
            // A variable is set to 1 as often as to true.
            ArgAction::SetTrue => argument.value_parser(clap::builder::BoolishValueParser::new()),
            ArgAction::Append => {
                argument.value_delimiter(if LISTS.contains(&id.as_str()) { ',' } else { '\n' })
            }
            _ => argument,
        }
    })
}

/// `None`: for what is no flag, such as `--help`.
fn variable_of(argument: &Arg) -> Option<String> {
    let takes_part = matches!(
        argument.get_action(),
        ArgAction::Set | ArgAction::Append | ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count
    );
    argument.get_long().filter(|_| takes_part).map(variable)
}

/// The variable of a flag.
pub(crate) fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.trim_start_matches('-').to_ascii_uppercase().replace('-', "_"))
}

/// A variable that is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnknownVariable {
    /// It was probably meant to be the second one.
    Misspelt(String, String),
    Unrelated(String),
}

/// Those among `names` that look like ours, and are not.
pub(crate) fn unknown_variables(
    serve: &Command,
    names: impl Iterator<Item = String>,
) -> Vec<UnknownVariable> {
    let flags = serve.get_arguments().filter_map(variable_of);
    let known: Vec<String> = flags.chain(OTHERS.map(str::to_owned)).collect();
    let judge = |name: String| {
        let upper = name.to_ascii_uppercase();
        if !upper.starts_with(PREFIX) || known.contains(&name) || is_injected_by_kubernetes(&upper) {
            return None;
        }
        let nearest = known.iter().min_by_key(|known| edits(known, &upper))?;
        Some(match edits(nearest, &upper) {
            ..=2 => UnknownVariable::Misspelt(name, nearest.clone()),
            _ => UnknownVariable::Unrelated(name),
        })
    };
    names.filter_map(judge).collect()
}

/// By Kubernetes, for services called `mainstay` or `mainstay-something`.
fn is_injected_by_kubernetes(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    let of_port = |rest: &str| {
        let mut words = rest.split('_').skip_while(|word| *word != "PORT").skip(1);
        match (words.next(), words.next()) {
            (None, _) => rest.ends_with("_PORT"),
            (Some(number), Some("TCP" | "UDP" | "SCTP")) => number.parse::<u16>().is_ok(),
            _ => false,
        }
    };
    rest.starts_with("SERVICE_")
        || rest.starts_with("PORT")
        || rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || of_port(rest)
}

/// Characters to put in, take out or replace to make one of the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, have) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, want) in to.iter().enumerate() {
            let cheapest =
                (diagonal + usize::from(have != *want)).min(row[column] + 1).min(row[column + 1] + 1);
            diagonal = std::mem::replace(&mut row[column + 1], cheapest);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// A flag about the backend where there is none is a gateway without its backend, not a wish for the demonstration.
///
/// # Errors
/// Names the flag, or the variable that it came from.
pub(crate) fn check_backend(serve: &ArgMatches) -> Result<(), String> {
    let given = |id: &str| serve.value_source(id).filter(|source| *source != ValueSource::DefaultValue);
    if given("upstream").is_some() {
        return Ok(());
    }
    let is_of_backend =
        |id: &&str| OF_BACKEND.contains(id) || OF_BACKEND_BEGIN.iter().any(|begin| id.starts_with(begin));
    let ids: Vec<&str> = serve.ids().map(clap::Id::as_str).collect();
    for id in ids.into_iter().filter(is_of_backend) {
        let Some(source) = given(id) else { continue };
        let name = match source {
            ValueSource::EnvVariable => variable(id),
            _ => format!("--{}", id.replace('_', "-")),
        };
        return Err(format!(
            "{name} needs --upstream: without a backend it means nothing; \
             add for example --upstream ws://127.0.0.1:3000, or leave {name} away"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve() -> Command {
        crate::Arguments::command().find_subcommand("serve").unwrap().clone()
    }

    fn judged(names: &[&str]) -> Vec<UnknownVariable> {
        unknown_variables(&serve(), names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_variable_that_is_almost_one_of_ours_is_a_mistake_that_names_both() {
        for (written, meant) in [
            ("MAINSTAY_UPSTREEM", "MAINSTAY_UPSTREAM"),
            ("MAINSTAY_UPSTREM", "MAINSTAY_UPSTREAM"),
            ("MAINSTAY_LISTNE", "MAINSTAY_LISTEN"),
            ("MAINSTAY_MAX_SESSION", "MAINSTAY_MAX_SESSIONS"),
            ("MAINSTAY_TRUSTED_PROXYS", "MAINSTAY_TRUSTED_PROXY"),
            ("MAINSTAY_LOGS", "MAINSTAY_LOG"),
            ("MAINSTAY_LOG_FORMATT", "MAINSTAY_LOG_FORMAT"),
            ("mainstay_upstream", "MAINSTAY_UPSTREAM"),
        ] {
            assert_eq!(judged(&[written]), [UnknownVariable::Misspelt(written.into(), meant.into())]);
        }
    }

    #[test]
    fn other_strangers_are_named_and_what_kubernetes_injects_is_none() {
        assert_eq!(
            judged(&["MAINSTAY_BACKUP_DIR"]),
            [UnknownVariable::Unrelated("MAINSTAY_BACKUP_DIR".into())]
        );
        let injected = [
            "MAINSTAY_SERVICE_HOST",
            "MAINSTAY_SERVICE_PORT",
            "MAINSTAY_SERVICE_PORT_HTTP",
            "MAINSTAY_PORT",
            "MAINSTAY_PORT_8080_TCP",
            "MAINSTAY_PORT_8080_TCP_ADDR",
            "MAINSTAY_ADMIN_SERVICE_HOST",
            "MAINSTAY_ADMIN_PORT",
            "MAINSTAY_ADMIN_PORT_9090_TCP_PROTO",
        ];
        assert_eq!(judged(&injected), []);
        assert_eq!(judged(&["MAINSTAY_EXPORT"]), [UnknownVariable::Unrelated("MAINSTAY_EXPORT".into())]);
        assert_eq!(judged(&["MAINSTAY", "PATH", "MAINSTAY_LOG", "MAINSTAY_LISTEN"]), []);
    }

    #[test]
    fn no_flag_has_a_variable_that_kubernetes_injects() {
        for argument in serve().get_arguments() {
            let variable = variable_of(argument);
            assert!(!variable.as_deref().is_some_and(is_injected_by_kubernetes), "{variable:?}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, expected) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "ac", 1), ("ab", "ba", 2), ("", "abc", 3)]
        {
            assert_eq!((edits(from, to), edits(to, from)), (expected, expected), "{from} {to}");
        }
    }
}
