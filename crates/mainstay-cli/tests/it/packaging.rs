//! The files and documents that belong to the program: its defaults, its version, its manual pages, `packaging` and `deploy`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Gateway, run};

/// Reads a file of the repository.
fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the flags of a subcommand, each with its help in one line.
fn flags(command: &str) -> Vec<(String, String)> {
    let help = run(&[command, "--help"], b"");
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text(&help.stdout).lines().map(str::trim) {
        let long = line.split(' ').take(2).find_map(|word| word.strip_prefix("--"));
        match (long, found.last_mut()) {
            (Some(name), _) if line.starts_with('-') => found.push((format!("--{name}"), line.to_owned())),
            (_, Some((_, help))) => help.extend([" ", line]),
            _ => {}
        }
    }
    found.retain(|(name, _)| name != "--help");
    assert!(found.len() > 5, "{command}: {found:?}");
    found
}

/// Returns a value as the documents write it: `16MiB` as `16 MiB`, `2m` as `2 minutes`.
fn as_written(value: &str) -> String {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let number =
        if digits == 4 { format!("{},{}", &value[..1], &value[1..4]) } else { value[..digits].to_owned() };
    match &value[digits..] {
        "" => number,
        "m" => format!("{number} minutes"),
        unit if digits > 0 && unit.chars().all(char::is_alphabetic) => format!("{number} {unit}"),
        _ => value.to_owned(),
    }
}

#[test]
fn each_flag_has_a_row_with_its_default_in_the_defaults() {
    let document = file("docs/DEFAULTS.md");
    let rows: Vec<Vec<&str>> = document.lines().map(|line| line.split(" | ").collect()).collect();
    let mut complaints = Vec::new();
    for (flag, help) in flags("serve").into_iter().chain(flags("connect")) {
        let names_it = |row: &&Vec<&str>| {
            row[0].split('`').skip(1).step_by(2).any(|code| code.split(' ').next() == Some(&flag))
        };
        let cells: Vec<&str> = rows.iter().filter(names_it).filter_map(|row| row.get(1).copied()).collect();
        if cells.is_empty() {
            complaints.push(format!("{flag} has no row in docs/DEFAULTS.md"));
        }
        // The model's own default, or the first words of the one that the help describes.
        let shown =
            help.split_once("[default: ").map(|(_, rest)| as_written(rest.split(']').next().unwrap()));
        let described = help.split_once("Default: ").map(|(_, rest)| {
            let words = rest.split([',', '.', '[']).next().unwrap().trim().split(' ');
            words.take(3).collect::<Vec<_>>().join(" ")
        });
        let none = || {
            ["off", "none", "no limit", "any", "as above"]
                .iter()
                .any(|word| cells.iter().any(|cell| cell.contains(word)))
        };
        match shown.or(described) {
            Some(default) if !cells.iter().any(|cell| cell.contains(&default)) => {
                complaints
                    .push(format!("{flag}: the default is {default}, and docs/DEFAULTS.md says: {cells:?}"));
            }
            None if !none() => {
                complaints.push(format!("{flag} has no default, and docs/DEFAULTS.md says: {cells:?}"))
            }
            _ => {}
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_short_version_is_one_line_and_the_long_one_names_commit_features_and_target() {
    let version = concat!("mainstay ", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&run(&["-V"], b"").stdout), format!("{version}\n"));
    let long = run(&["--version"], b"");
    let lines: Vec<&str> = text(&long.stdout).lines().collect();
    assert_eq!(lines[0], version);
    for (line, begin) in lines[1..].iter().zip(["commit: ", "features: ", "target: "]) {
        assert!(line.strip_prefix(begin).is_some_and(|value| !value.is_empty()), "{line}");
    }
    assert_eq!(lines.len(), 4);
}

#[test]
fn each_command_has_a_manual_page_with_its_flags() {
    let folder = std::env::temp_dir().join(format!("mainstay-man-{}", std::process::id()));
    assert!(run(&["man", folder.to_str().unwrap()], b"").status.success());
    let page = |name: &str| fs::read_to_string(folder.join(name)).unwrap().replace("\\-", "-");
    for command in ["serve", "connect"] {
        let page = page(&format!("mainstay-{command}.1"));
        for (flag, _) in flags(command) {
            assert!(page.contains(&flag), "{command}: {flag}");
        }
        assert!(page.contains("Exit codes:"), "{command}");
    }
    assert!(page("mainstay.1").contains("serve"));
    fs::remove_dir_all(&folder).unwrap();
    let nowhere = run(&["man", "/dev/null/man"], b"");
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/dev/null/man"));
}

#[test]
fn the_unit_the_image_and_the_compose_file_use_flags_and_variables_that_the_program_has() {
    let serve = flags("serve");
    let variable = |flag: &str| format!("MAINSTAY_{}", flag[2..].to_uppercase().replace('-', "_"));
    let variables: BTreeSet<String> = serve.iter().map(|(flag, _)| variable(flag)).collect();
    let names_of_the_build = ["MAINSTAY_COMMIT"];
    for path in [
        "packaging/mainstay.default",
        "packaging/mainstay.service",
        "packaging/mainstay.socket",
        "packaging/Dockerfile",
        "packaging/compose.yaml",
        "deploy/compose.yaml",
        "deploy/kubernetes.yaml",
    ] {
        let text = file(path);
        let lines = || text.lines().filter(|line| !line.starts_with("# "));
        for word in lines().flat_map(|line| line.split(|c: char| !(c.is_ascii_uppercase() || c == '_'))) {
            let is_known = variables.contains(word) || names_of_the_build.contains(&word);
            assert!(!word.starts_with("MAINSTAY_") || is_known, "{path}: {word}");
        }
    }
    // The commands that start the program: `mainstay serve --flag value` in the unit, and lists in the compose file.
    for path in [
        "packaging/mainstay.service",
        "packaging/compose.yaml",
        "deploy/compose.yaml",
        "deploy/kubernetes.yaml",
    ] {
        let text = file(path);
        let starts = |line: &&str| {
            let line = line.trim_start();
            ["command:", "args:", "ExecStart=", "\"--"].iter().any(|begin| line.starts_with(begin))
        };
        let commands = text.lines().filter(starts).filter(|line| !line.contains("valkey-server"));
        for word in commands.flat_map(|line| line.split(['"', ' '])).filter(|word| word.starts_with("--")) {
            assert!(serve.iter().any(|(flag, _)| flag == word), "{path}: {word}");
        }
    }
}

#[test]
fn the_packaged_configuration_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = run(&["config", "check", root.join("packaging/mainstay.toml").to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn each_figure_of_the_dashboard_and_of_the_alerts_is_one_that_the_program_has() {
    let documented = file("docs/METRICS.md");
    let families: BTreeSet<&str> =
        documented.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
    for path in ["deploy/grafana.json", "deploy/alerts.yaml"] {
        let text = file(path);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let figures: BTreeSet<&str> =
            words.filter(|word| word.starts_with("mainstay_") || word.starts_with("process_")).collect();
        assert!(figures.len() > 10, "{path}: {figures:?}");
        for figure in figures {
            let family = figure.trim_end_matches("_bucket");
            assert!(families.contains(family), "{path}: {figure} is not in docs/METRICS.md");
        }
    }
}

#[test]
fn each_alert_names_a_section_that_exists() {
    let (alerts, operating) = (file("deploy/alerts.yaml"), file("docs/OPERATIONS.md"));
    let runbooks: Vec<&str> = alerts
        .lines()
        .filter_map(|line| Some(line.trim().strip_prefix("runbook: \"")?.trim_end_matches('"')))
        .collect();
    assert_eq!(runbooks.len(), alerts.matches("- alert:").count());
    for section in runbooks.iter().filter_map(|runbook| runbook.strip_prefix("docs/OPERATIONS.md: ")) {
        let is_there = operating
            .lines()
            .any(|line| line.trim_start_matches('#').trim() == section && line.starts_with('#'));
        assert!(is_there, "docs/OPERATIONS.md has no section {section:?}");
    }
}

#[test]
fn the_files_to_deploy_are_valid_yaml_and_json() {
    for path in [
        "deploy/alerts.yaml",
        "deploy/compose.yaml",
        "deploy/kubernetes.yaml",
        "deploy/prometheus.yaml",
        "deploy/proxies/envoy.yaml",
        "deploy/proxies/traefik.yaml",
        "deploy/proxies/traefik-routes.yaml",
        "packaging/compose.yaml",
    ] {
        let text = file(path);
        let documents = <saphyr::Yaml as saphyr::LoadableYamlNode>::load_from_str(&text);
        assert!(documents.is_ok_and(|documents| !documents.is_empty()), "{path}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&file("deploy/grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
}

#[test]
fn the_socket_unit_and_the_settings_name_the_same_address() {
    let after = |path: &str, begin: &str| {
        let text = file(path);
        text.lines()
            .find_map(|line| line.strip_prefix(begin))
            .unwrap_or_else(|| panic!("{path}: {begin}"))
            .to_owned()
    };
    let listens = after("packaging/mainstay.default", "MAINSTAY_LISTEN=");
    assert_eq!(after("packaging/mainstay.socket", "ListenStream="), listens);
}

#[test]
fn systemd_accepts_the_units() {
    let folder = std::env::temp_dir().join(format!("mainstay-units-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for unit in ["mainstay.service", "mainstay.socket"] {
        // The program and its manual pages are installed nowhere.
        let text =
            file(&format!("packaging/{unit}")).replace("/usr/bin/mainstay", env!("CARGO_BIN_EXE_mainstay"));
        fs::write(folder.join(unit), text.replace("man:mainstay-serve(1) ", "")).unwrap();
    }
    let units = ["mainstay.service", "mainstay.socket"].map(|unit| folder.join(unit));
    if let Ok(output) = Command::new("systemd-analyze").arg("verify").args(units).output() {
        let complaints: Vec<&str> =
            text(&output.stderr).lines().filter(|line| line.contains("mainstay.")).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_image_is_built_from_files_that_exist_by_the_promised_compiler_and_its_port_is_the_one_it_listens_at() {
    let image = file("packaging/Dockerfile");
    let copies = image
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"));
    let copied: Vec<&str> = copies
        .flat_map(|line| line.split(' ').collect::<Vec<_>>().split_last().unwrap().1.to_vec())
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for source in &copied {
        assert!(root.join(source).exists(), "{source}");
    }
    let manifest = file("Cargo.toml");
    let after = |text: &str, begin: &str| {
        let rest = text.split_once(begin).unwrap_or_else(|| panic!("no {begin}")).1;
        rest.split(['"', '\n']).next().unwrap().to_owned()
    };
    // cargo reads the manifest of every member.
    let members = manifest.split_once("members = [").unwrap().1.split(']').next().unwrap();
    for member in members.split('"').skip(1).step_by(2) {
        let folder = member.split('/').next().unwrap();
        assert!(copied.contains(&folder), "{member} is not copied into the image");
    }
    let compiler = after(&manifest, "rust-version = \"");
    assert!(image.contains(&format!("FROM rust:{compiler}-")), "{compiler}");
    assert!(manifest.contains("[profile.dist]") && image.contains("--profile dist --package mainstay-cli"));
    // The command is the one that the test run builds by.
    assert!(file("xtask/src/release.rs").contains(r#""--profile", "dist", "--package", "mainstay-cli""#));
    let listens = after(&image, "ENV MAINSTAY_LISTEN=0.0.0.0:");
    assert_eq!(after(&image, "\nEXPOSE "), listens);
    let default = flags("serve").into_iter().find(|(flag, _)| flag == "--listen").unwrap().1;
    assert!(default.contains(&format!("[default: 127.0.0.1:{listens}]")), "{default}");
    assert!(image.contains("\nUSER nonroot"));
}

#[test]
fn health_succeeds_while_the_gateway_is_ready_and_else_gives_the_reason_in_one_line() {
    let ready = Gateway::start(&["--admin", "127.0.0.1:0"]);
    let address = ready.admin.unwrap().to_string();
    let output = run(&["health", &address], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    drop(ready);
    let refused = run(&["health", &address], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(text(&refused.stderr).lines().count(), 1);
    // A port without a listener.
    let backend = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let waiting = Gateway::start(&["--admin", "127.0.0.1:0", "--upstream", &format!("ws://{backend}")]);
    let output = run(&["health", &waiting.admin.unwrap().to_string()], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("503") && text(&output.stderr).lines().count() == 1,
        "{}",
        text(&output.stderr)
    );
    assert_eq!(run(&["health", "here"], b"").status.code(), Some(2));
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
