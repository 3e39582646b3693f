//! What needs a container engine is not run: the images, the Compose files and the Kubernetes manifest. Their files are checked by
//! the schemas of those who read them, and this prints that nothing more was done.

use std::path::Path;
use std::process::Command;

use crate::run::output;
use crate::{Result, install};

/// The version whose schemas the manifest must fit: the oldest one that its fields need, and the newest one that is known.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];
const COMPOSE: [&str; 2] = ["deploy/compose.yaml", "packaging/compose.yaml"];

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
