//! What needs a container engine or systemd is not run: the images, the Compose files, the Kubernetes manifest and the units. Their
//! files are checked by the schemas and programs of those who read them, and this prints that nothing more was done.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::output;
use crate::{Result, install};

/// The version whose schemas the manifest must fit: the oldest one that its fields need, and the newest one that is known.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];
const COMPOSE: [&str; 2] = ["deploy/compose.yaml", "packaging/compose.yaml"];

/// How exposed the unit may be, in tenths on systemd's scale of 10 (unsafe) to 0.
const EXPOSURE: &str = "15";

/// Parses a Compose file as the specification demands, and checks that each name it uses is defined.
const READ_COMPOSE: &str = "
import compose_spec, sys
for name in sys.argv[1:]:
    try:
        compose_spec.PyCompose.from_yaml(open(name).read()).validate()
    except ValueError as error:
        sys.exit(f'{name}: {error}')
";

pub(super) fn check_kubernetes() -> Result<()> {
    let program = install::kubernetes_validate()?;
    for version in KUBERNETES {
        let mut command = Command::new(&program);
        command.args(["--strict", "--quiet", "--kubernetes-version", version]);
        output(command.arg(Path::new("deploy/kubernetes.yaml")))?;
    }
    let [oldest, newest] = KUBERNETES;
    println!(
        "    Kubernetes: not run here; deploy/kubernetes.yaml fits the schemas of {oldest} and {newest}, strictly"
    );
    Ok(())
}

pub(super) fn check_compose() -> Result<()> {
    let python = install::compose_spec()?;
    output(Command::new(python).args(["-c", READ_COMPOSE]).args(COMPOSE))?;
    println!(
        "    Compose: not run here; {} fit the specification, and each name in them is defined",
        COMPOSE.join(" and ")
    );
    Ok(())
}

/// Lets systemd's own program judge what the unit leaves to a process that an attacker has taken over.
pub(super) fn check_unit(scratch: &Path) -> Result<()> {
    let unit = scratch.join("mainstay.service");
    fs::copy("packaging/mainstay.service", &unit)?;
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", &format!("--threshold={EXPOSURE}")]);
    let report = output(command.arg(&unit))?;
    // "Overall exposure level for mainstay.service: 1.4 OK", between an arrow and a face.
    let verdict =
        report.lines().last().unwrap_or_default().trim_matches(|c: char| !c.is_ascii_alphanumeric());
    println!("    systemd: not run here; {verdict}");
    Ok(())
}
