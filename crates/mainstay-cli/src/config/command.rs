//! `mainstay config`: checks, shows and describes the configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Loaded, Sources, reference, schema, show};
use crate::observe::log;
use crate::print;

/// The end of `mainstay config --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay config check mainstay.toml
      exit with 0 if `mainstay serve --config mainstay.toml` would start with it
  mainstay config show mainstay.toml
      print each setting in force, and the line or the variable that it is from
  mainstay config reference > mainstay.toml
      write a file with every setting, its default and its description

Exit codes:
  0  printed, or the configuration is right
  1  standard output cannot be written
  2  the configuration or the arguments are wrong; each mistake is one line";

/// Flags of `mainstay config`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Check a file and the environment; print each mistake in one line.
    Check {
        /// The file, in TOML. Default: none, the environment alone.
        #[arg(env = "MAINSTAY_CONFIG")]
        file: Option<PathBuf>,
    },
    /// Print each setting that is in force, and where it is from. Secrets are hidden.
    Show {
        /// The file, in TOML. Default: none, the environment alone.
        #[arg(env = "MAINSTAY_CONFIG")]
        file: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of the file, for editors.
    Schema,
    /// Print a file with every setting, its default and its description.
    Reference,
}

/// Runs `mainstay config`. `program`: the whole command line, with the variables of `serve`.
pub(crate) fn run(arguments: Arguments, program: &clap::Command) -> ExitCode {
    match arguments.command {
        Command::Check { file } => load(file, program).map_or_else(|code| code, |_| ExitCode::SUCCESS),
        Command::Show { file, json } => match load(file, program) {
            Ok(loaded) if json => print(show::json(&loaded).as_bytes()),
            Ok(loaded) => print(show::text(&loaded).as_bytes()),
            Err(code) => code,
        },
        Command::Schema => print(format!("{:#}\n", schema::json()).as_bytes()),
        Command::Reference => print(reference::toml().as_bytes()),
    }
}

/// Reads the configuration as `mainstay serve` would, with this file.
fn load(file: Option<PathBuf>, program: &clap::Command) -> Result<Loaded, ExitCode> {
    let mut words: Vec<std::ffi::OsString> = vec!["mainstay".into(), "serve".into()];
    words.extend(file.into_iter().flat_map(|file| ["--config".into(), file.into()]));
    let lines = |lines: &[String]| {
        lines.iter().for_each(|line| log::write_line(line));
        ExitCode::from(2)
    };
    let matches = match program.clone().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return Err(crate::refuse(error)),
    };
    let serve = program.find_subcommand("serve").zip(matches.subcommand_matches("serve"));
    let Some((serve, given)) = serve else { return Err(lines(&["there is no subcommand".to_owned()])) };
    let (sources, warnings) = Sources::new(serve, given).map_err(|line| lines(&[line]))?;
    for name in warnings {
        tracing::warn!(name, "unknown environment variable ignored; see mainstay serve --help");
    }
    sources.load().map_err(|wrong| lines(&wrong.iter().map(ToString::to_string).collect::<Vec<_>>()))
}
