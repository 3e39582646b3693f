//! `mainstay config`, and the mistakes of a configuration: one line each that names the file, the line, the key and what to
//! write.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::routes::Folder;
use crate::support::mainstay;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs `mainstay` with these variables.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    mainstay(arguments).envs(variables.iter().copied()).output().unwrap()
}

const ROUTE: &str = "[routes.chat]\nupstream.addresses = [\"ws://127.0.0.1:1\"]\n";

/// Checks that this file is refused with one line that has these words, by `config check` and by `serve`.
fn is_refused(file: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let folder = Folder::new("wrong");
    let path = folder.write("mainstay.toml", file);
    let path = path.to_str().unwrap();
    for arguments in [&["config", "check", path][..], &["serve", "--config", path], &["config", "show", path]]
    {
        let output = run(arguments, variables);
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{arguments:?}: {stderr}");
        for words in expected {
            assert!(stderr.contains(words), "{arguments:?} lacks {words:?}: {stderr}");
        }
    }
}

fn is_accepted(file: &str, variables: &[(&str, &str)]) -> String {
    let folder = Folder::new("right");
    let path = folder.write("mainstay.toml", file);
    let output = run(&["config", "check", path.to_str().unwrap()], variables);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = run(&["config", "show", path.to_str().unwrap()], variables);
    text(&output.stdout)
}

#[test]
fn a_mistake_in_a_file_is_one_line_with_the_line_the_key_and_what_to_write() {
    let check = |file: &str, expected: &[&str]| is_refused(file, &[], expected);
    let with = |line: &str| format!("{ROUTE}{line}\n");
    check("listen = ", &["mainstay.toml:1:", "no valid TOML"]);
    check("drian = \"5s\"\n", &["mainstay.toml:1: drian: unknown key", "write drain"]);
    check("\n\n[limit]\n", &["mainstay.toml:3: limit: unknown key", "write limits"]);
    check(&with("hearbeat = 5"), &["mainstay.toml:3: routes.chat.hearbeat", "write heartbeat"]);
    check(
        &with("session.resume_window = \"1m\""),
        &["routes.chat.session.resume_window", "write resume-window"],
    );
    // The name of a flag, and a key in a table where it does not belong.
    check("max-sessions = 5\n", &["mainstay.toml:1: max-sessions", "write limits.sessions"]);
    check(&with("max-message = \"1MiB\""), &["routes.chat.max-message", "write routes.chat.limits.message"]);
    check(
        &with("limits.resume-window = \"1m\""),
        &["unknown key", "write routes.chat.session.resume-window"],
    );
    check("[limits]\nmessage = \"1MiB\"\n", &["write message in [routes.NAME.limits]"]);
    check("[session]\ncookies = []\n", &["unknown key", "write session in [routes.NAME]"]);
    check(&with("zzz = 1"), &["routes.chat.zzz: unknown key; known here: credentials, exact-path, "]);
    // Values.
    check("drain = 5\n", &["mainstay.toml:1: drain: ", "integer `5`", "a duration in quotes", "25s"]);
    check("drain = \"5\"\n", &["mainstay.toml:1: drain: ", "write for example 25s"]);
    check("drain = \"2h\"\n", &["mainstay.toml:1: drain: must be at most 1h"]);
    check("listen = [\"localhost:80\"]\n", &["mainstay.toml:1: listen", "write an IP address"]);
    check("watch = \"yes\"\n", &["mainstay.toml:1: watch", "boolean"]);
    check(
        &with("limits.message = 5"),
        &["mainstay.toml:3: routes.chat.limits.message", "a size in quotes", "64KiB"],
    );
    check(&with("limits.message = \"5MB\""), &["unknown unit MB"]);
    check(&with("limits.message = \"2GiB\""), &["mainstay.toml:3: ", "between 1 B and 1 GiB"]);
    check(&with("limits.fragments = -1"), &["mainstay.toml:3: routes.chat.limits.fragments", "-1"]);
    check(&with("heartbeat.interval = \"1ms\""), &["mainstay.toml:3: ", "between 100 ms and 1 hour"]);
    check(
        &with("heartbeat.paths = { \"/a\" = \"1ms\" }"),
        &["mainstay.toml:3: ", "between 100 ms and 1 hour"],
    );
    check(
        &with("profile.protocol = \"grapql\""),
        &["mainstay.toml:3: routes.chat.profile.protocol", "graphql-"],
    );
    check(&with("profile.prologue.record = [\"x\"]"), &["mainstay.toml:3: ", "write first=N"]);
    check(&with("path = \"chat\""), &["mainstay.toml:3: routes.chat.path", "begins with /"]);
    check(
        &with("hosts = [\"example.com:80\"]"),
        &["mainstay.toml:3: routes.chat.hosts", "without scheme, port"],
    );
    check("[routes.Chat]\n", &["mainstay.toml:1: routes.Chat", "lower case"]);
    check(
        "[routes.chat]\nupstream.addresses = [\"127.0.0.1:1\"]\n",
        &["mainstay.toml:2: ", "ws://127.0.0.1:3000"],
    );
    check("[routes.chat]\n", &["mainstay.toml:1: routes.chat.upstream.addresses", "is missing"]);
    check(&with("origins.allow = [\"example.com\"]"), &["mainstay.toml:3: ", "https://example.com"]);
    check(&with("session.cookies = [\"a b\"]"), &["mainstay.toml:3: ", "letters, digits"]);
    // Contradictions.
    check(
        &with("path = \"/a\"\nexact-path = \"/a\""),
        &["mainstay.toml:4: routes.chat.exact-path", "contradicts path"],
    );
    check(
        &with("session.movable = true"),
        &["mainstay.toml:3: routes.chat.session.movable", "cluster.engine"],
    );
    check(
        &with("profile.prologue.record = [\"first=1\"]"),
        &[
            "mainstay.toml:3: routes.chat.profile.prologue",
            "requires routes.chat.profile.on-backend-loss keep",
        ],
    );
    check(&with("upstream.tls.ca = \"/x\""), &["mainstay.toml:3: ", "routes.chat.upstream.tls", "wss://"]);
    check(
        &with("[cluster]\nengine = \"redis://h\""),
        &["mainstay.toml", "cluster.name", "is required where routes have names"],
    );
    check("[cluster]\nurl = \"ws://h\"\n", &["mainstay.toml:2: cluster.url", "needs cluster.engine"]);
    check(
        &with("[routes.more]\nupstream.addresses = [\"ws://h\"]"),
        &["mainstay.toml:3: routes.more", "routes.chat"],
    );
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once() {
    let folder = Folder::new("all");
    let file = folder.write("mainstay.toml", &format!("drian = \"1s\"\n{ROUTE}paht = \"/\"\n"));
    let output = run(&["config", "check", file.to_str().unwrap()], &[]);
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 2), "{stderr}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let output = run(&["serve", "--config", "/nowhere/mainstay.toml"], &[]);
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(
        stderr.contains("--config /nowhere/mainstay.toml") && stderr.contains("readable file"),
        "{stderr}"
    );
}

#[test]
fn a_variable_sets_any_key_and_a_wrong_one_is_named() {
    let shown = is_accepted(
        ROUTE,
        &[
            ("MAINSTAY_ROUTES__CHAT__SESSION__RESUME_WINDOW", "7s"),
            ("MAINSTAY_ROUTES__CHAT__SESSION__COOKIES", "a, b"),
            ("MAINSTAY_ROUTES__CHAT__SESSION__DEFLATE", "1"),
            ("MAINSTAY_ROUTES__CHAT__HEARTBEAT__PATHS", "{ \"/a\" = \"5s\" }"),
            ("MAINSTAY_ROUTES__OTHER_ONE__UPSTREAM__ADDRESSES", "ws://h:1"),
            ("MAINSTAY_ROUTES__OTHER_ONE__PATH", "/other"),
            ("MAINSTAY_LIMITS__SESSIONS", "5"),
            ("MAINSTAY_WATCH", "off"),
        ],
    );
    for line in [
        "routes.chat.session.resume-window = \"7s\"",
        "routes.chat.session.cookies = [\"a\", \"b\"]",
        "routes.chat.session.deflate = true",
        "routes.chat.heartbeat.paths.\"/a\" = \"5s\"",
        "routes.other-one.path = \"/other\"",
        "limits.sessions = 5",
        "watch = false",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let check = |name, value, expected: &[&str]| is_refused(ROUTE, &[(name, value)], expected);
    check("MAINSTAY_LIMIT__SESSIONS", "5", &["MAINSTAY_LIMIT__SESSIONS", "unknown key"]);
    check("MAINSTAY_LIMITS__SESIONS", "5", &["MAINSTAY_LIMITS__SESIONS", "write sessions"]);
    check("MAINSTAY_LIMITS__SESSIONS", "many", &["MAINSTAY_LIMITS__SESSIONS: ", "many"]);
    check("MAINSTAY_ROUTES__CHAT__SESSION__RESUME_WINDOW", "2h", &["RESUME_WINDOW: must be at most 1h"]);
    check("MAINSTAY_LOG", "infoo", &["MAINSTAY_LOG", "for example info"]);
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let folder = Folder::new("precedence");
    let file =
        folder.write("mainstay.toml", &format!("drain = \"1s\"\n{ROUTE}heartbeat.interval = \"1s\"\n"));
    let show = |variables: &[(&str, &str)]| {
        text(&run(&["config", "show", file.to_str().unwrap()], variables).stdout)
    };
    let line = |shown: &str, key: &str| {
        let line =
            shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {shown}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let name = file.display().to_string();
    let shown = show(&[]);
    assert_eq!(line(&shown, "drain"), format!("drain = \"1s\" # {name}:1"));
    assert_eq!(line(&shown, "routes.chat.session.movable"), "routes.chat.session.movable = false # default");
    let shown = show(&[("MAINSTAY_DRAIN", "2s"), ("MAINSTAY_HEARTBEAT", "2s")]);
    assert_eq!(line(&shown, "drain"), "drain = \"2s\" # MAINSTAY_DRAIN");
    assert_eq!(
        line(&shown, "routes.chat.heartbeat.interval"),
        "routes.chat.heartbeat.interval = \"2s\" # MAINSTAY_HEARTBEAT",
        "a flag's variable is about the only route"
    );
    // A flag is in force in the process: this one is wrong together with the file, and names itself.
    let output = run(
        &["serve", "--config", file.to_str().unwrap(), "--profile", "mqtt", "--confirm", "reply"],
        &[("MAINSTAY_CONFIRM", "pong")],
    );
    let stderr = text(&output.stderr);
    assert!(stderr.contains("--confirm: ") && stderr.contains("reply contradicts"), "{stderr}");
}

#[test]
fn a_flag_about_a_route_is_refused_where_the_file_has_several() {
    let folder = Folder::new("several");
    let file = folder.write(
        "mainstay.toml",
        "[routes.a]\npath = \"/a\"\nupstream.addresses = [\"ws://h\"]\n[routes.b]\nupstream.addresses = [\"ws://h\"]\n",
    );
    for (flag, value, variable) in
        [("--upstream", "ws://h", "MAINSTAY_UPSTREAM"), ("--heartbeat", "5s", "MAINSTAY_HEARTBEAT")]
    {
        let output = run(&["serve", "--config", file.to_str().unwrap(), flag, value], &[]);
        let stderr = text(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(
            stderr.contains(flag) && stderr.contains("(a, b)") && stderr.contains("routes.a."),
            "{stderr}"
        );
        let output = run(&["config", "check", file.to_str().unwrap()], &[(variable, value)]);
        assert!(text(&output.stderr).contains(variable), "{}", text(&output.stderr));
    }
}

#[test]
fn secrets_are_not_shown() {
    let file = format!(
        "{ROUTE}upstream.headers = [\"Authorization: Bearer geheim\"]\n[cluster]\nname = \"a\"\nengine = \"redis://u:geheim@h:1\"\n\
         [routes.chat.credentials.connect-hook]\nurl = \"http://127.0.0.1:1\"\nheaders = {{ X-Key = \"geheim:geheim\" }}\n"
    );
    let shown = is_accepted(&file, &[]);
    assert!(!shown.contains("geheim") && shown.contains("Authorization: ..."), "{shown}");
    let hook = "credentials.connect-hook.url = \"http://127.0.0.1:1/\"\ncredentials.connect-hook.headers.Authorization = \"geheim: geheim\"\n";
    let shown = is_accepted(&format!("{ROUTE}{hook}"), &[]);
    assert!(!shown.contains("geheim") && shown.contains("headers.Authorization = \"...\""), "{shown}");
    let folder = Folder::new("secret");
    let path = folder.write("mainstay.toml", &file);
    let output = run(&["config", "show", "--json", path.to_str().unwrap()], &[]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!json.to_string().contains("geheim"), "{json}");
    let of =
        |key: &str| json.as_array().unwrap().iter().find(|setting| setting["key"] == key).unwrap().clone();
    assert_eq!(of("drain")["value"], "5s");
    assert_eq!(of("drain")["from"], "default");
    assert!(of("cluster.engine")["from"].as_str().unwrap().ends_with("mainstay.toml:6"));
}

#[test]
fn the_reference_is_the_committed_one_and_every_line_of_it_is_a_setting() {
    let output = run(&["config", "reference"], &[]);
    let reference = text(&output.stdout);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/mainstay.toml");
    let committed = std::fs::read_to_string(committed).unwrap();
    let differs = reference.lines().zip(committed.lines()).find(|(ours, theirs)| ours != theirs);
    assert!(
        reference == committed,
        "docs/mainstay.toml differs: {differs:?}; run: cargo run -- config reference > docs/mainstay.toml"
    );
    // Without the `#` of settings it is TOML, and no key of it is unknown.
    let plain: String = reference
        .lines()
        .filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ') && !line.is_empty()))
        .map(|line| format!("{line}\n"))
        .collect();
    let folder = Folder::new("reference");
    let file = folder.write("mainstay.toml", &plain);
    let stderr = text(&run(&["config", "check", file.to_str().unwrap()], &[]).stderr);
    assert!(!stderr.contains("unknown key") && !stderr.contains("TOML"), "{stderr}");
}

#[test]
fn the_schema_describes_every_setting() {
    let output = run(&["config", "schema"], &[]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["properties"]["drain"]["default"], "5s");
    assert_eq!(schema["additionalProperties"], false);
    let undescribed: Vec<String> = schema["$defs"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(name, table)| Some((name, table["properties"].as_object()?)))
        .flat_map(|(name, properties)| properties.iter().map(move |(key, value)| (name, key, value)))
        .filter(|(_, _, value)| value["description"].as_str().is_none_or(str::is_empty))
        .map(|(name, key, _)| format!("{name}.{key}"))
        .collect();
    assert_eq!(undescribed, Vec::<String>::new());
}

#[test]
fn the_defaults_of_the_tree_are_those_of_the_flags() {
    let help = text(&run(&["serve", "--help"], &[]).stdout);
    let shown = text(&run(&["config", "show"], &[("MAINSTAY_UPSTREAM", "ws://h")]).stdout);
    for (flag, key) in [
        ("--drain", "drain"),
        ("--heartbeat", "routes.default.heartbeat.interval"),
        ("--resume-window", "routes.default.session.resume-window"),
        ("--max-message", "routes.default.limits.message"),
        ("--max-fragments", "routes.default.limits.fragments"),
        ("--upstream-wait", "routes.default.upstream.wait"),
        ("--cluster-name", "cluster.name"),
        ("--log-format", "log.format"),
    ] {
        let (_, described) = help.split_once(&format!("{flag} <")).unwrap();
        let default = described.split_once("[default: ").unwrap().1.split(']').next().unwrap();
        let line = shown.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        let value = line.split(" = ").nth(1).unwrap().split('#').next().unwrap().trim().trim_matches('"');
        assert_eq!(value, default, "{flag} and {key}");
    }
}
