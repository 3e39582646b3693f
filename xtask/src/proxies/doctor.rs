//! `mainstay doctor` looks through each proxy with its shortened limit: it has to find the limit within 10 %, to see how the proxy
//! ends connections, and to name the proxy as far as anything gives it away. nginx, Caddy and Envoy write a field into responses;
//! HAProxy and Traefik write none, so that HAProxy is only possible. The lines that it advises are checked by the proxy itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Result;
use crate::programs::MAINSTAY;

use super::proxy::{Kind, Proxy};
use super::stage::Stage;

/// More than twice the shortened limit of 3 s.
const FOR: &str = "8s";
const LIMIT_MS: f64 = 3_000.0;

/// What the doctor has to see through a proxy.
struct Expected {
    /// The product that a field of the response gives away.
    product: Option<&'static str>,
    /// How its idle limit may cut; none: it has no limit.
    cuts: &'static [&'static str],
    /// The first suspect, and how sure the verdict is.
    suspect: Option<(&'static str, &'static str)>,
}

fn expected(kind: Kind) -> Expected {
    let named = |product| Expected { product: Some(product), cuts: &[], suspect: None };
    match kind {
        Kind::Nginx => Expected { cuts: &["fin"], suspect: Some(("nginx", "probable")), ..named("nginx") },
        // Envoy ends TCP a second after its limit; what comes in that second gets a reset, or no answer.
        Kind::Envoy => Expected {
            cuts: &["fin", "reset-on-send", "silent"],
            suspect: Some(("envoy", "probable")),
            ..named("envoy")
        },
        Kind::Caddy => named("caddy"),
        Kind::HAProxy => Expected { product: None, cuts: &["fin"], suspect: Some(("haproxy", "possible")) },
        Kind::Traefik => Expected { product: None, cuts: &[], suspect: None },
    }
}

/// Lets the doctor look through this proxy at a gateway whose heartbeat is longer than the limit.
pub(super) fn play(proxy: &Proxy, scratch: &Path, backend: &str) -> Result<()> {
    let folder = scratch.join("doctor").join(proxy.name);
    let _ = fs::remove_dir_all(&folder);
    let stage = Stage::set(proxy, &folder, "60s", backend)?;
    let report = examine(&format!("ws://{}/echo", stage.listening), &folder)?;
    let expected = expected(proxy.kind);
    let products: Vec<&str> = report["facts"]["handshake"]["products"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|product| product["name"].as_str())
        .collect();
    let silent = &report["measured"]["idle"]["silent"];
    let suspect = &report["verdict"]["cuts"][0]["suspects"][0];
    println!(
        "    {:8} the doctor sees {products:?}, {silent}, and suspects {} ({})",
        proxy.name, suspect["id"], suspect["certainty"]
    );
    check(products.first().copied() == expected.product, "the product", &report)?;
    let cut = silent["how"]["kind"].as_str();
    let is_right = cut.map_or(expected.cuts.is_empty(), |cut| expected.cuts.contains(&cut));
    check(is_right, "how silent connections end", &report)?;
    if cut.is_some() {
        let off = silent["after_ms"].as_f64().map(|after| (after - LIMIT_MS).abs());
        check(off.is_some_and(|off| off <= LIMIT_MS / 10.0), "the limit within 10 %", &report)?;
        // As docs/DOCTOR.md has it: each of them counts the client's bytes, too.
        let only_client = &report["measured"]["idle"]["up_only"]["kind"];
        check(only_client == "holds", "the bytes that count", &report)?;
    }
    let named = suspect["id"].as_str().zip(suspect["certainty"].as_str());
    check(named == expected.suspect, "the first suspect", &report)?;
    let lines = suspect["lines"].as_array().into_iter().flatten();
    let lines: Vec<&str> = lines.filter_map(Value::as_str).collect();
    check(lines.is_empty() == expected.suspect.is_none(), "the lines that raise its limit", &report)?;
    proxy.check_lines(&lines, stage.listening, &folder)
}

/// Runs the doctor, and returns what it reports.
fn examine(url: &str, folder: &Path) -> Result<Value> {
    let mut command = Command::new("timeout");
    command.args(["60", MAINSTAY, "doctor", "--json", "--for", FOR, "--connections", "64", url]);
    command.stderr(fs::File::create(folder.join("doctor.log"))?);
    let output = command.output()?;
    if !matches!(output.status.code(), Some(0 | 1)) {
        return Err(format!("mainstay doctor ended with {}, see {}", output.status, folder.display()).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let has_findings = report["findings"]
        .as_array()
        .is_some_and(|findings| findings.iter().any(|finding| finding["severity"] == "problem"));
    check(has_findings == (output.status.code() == Some(1)), "the exit code", &report)?;
    Ok(report)
}

fn check(is_right: bool, what: &str, report: &Value) -> Result<()> {
    if is_right { Ok(()) } else { Err(format!("the doctor is wrong about {what}: {report}").into()) }
}
