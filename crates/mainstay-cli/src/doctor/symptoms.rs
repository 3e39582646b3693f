//! What the facts alone show: findings that need no measurement.

use super::answer::CLIENT_CERTIFICATE;
use super::report::{
    AnsweredBy, Facts, Finding, HandshakeFacts, OpenError, Severity, Step, TargetFacts, TlsFacts,
    UntrustedKind, Wrong,
};

/// A certificate that expires within so many days is a problem: its renewal is late.
const EXPIRES_SOON: i64 = 14;
/// The error itself says what to write.
const IN_THE_WORDS: &[&str] = &[];
/// A connection that ends by itself within this time, in milliseconds, was closed at once.
const AT_ONCE: f64 = 1000.0;

/// Returns the findings, in the order in which a connection meets them.
pub(super) fn find(facts: &Facts, target: &TargetFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(facts.failed.as_ref().map(|error| unreachable(error, facts, target)));
    found.extend(dead_addresses(facts));
    found.extend(facts.tls.as_ref().into_iter().flat_map(tls));
    if facts.failed.is_none() {
        found.extend(facts.handshake.as_ref().into_iter().flat_map(handshake));
    }
    found.extend(http2(facts));
    found.extend(pings(facts));
    found.extend(ended(facts, target));
    found.extend(proxies(facts));
    found
}

fn finding(id: &'static str, severity: Severity, words: impl Into<String>, advice: &[&str]) -> Finding {
    let advice = advice.iter().map(ToString::to_string).collect();
    Finding { id, severity, words: words.into(), advice }
}

/// Says why no WebSocket was opened.
fn unreachable(error: &OpenError, facts: &Facts, target: &TargetFacts) -> Finding {
    let (id, advice): (_, &[&str]) = match (error.step, &facts.handshake) {
        (Step::Lookup, _) => ("name-unknown", &["Check the host's name, and the DNS record."]),
        (Step::Tcp, _) if error.timed_out => (
            "no-answer",
            &["Check that the server runs, and that no firewall drops the packets to this port."],
        ),
        (Step::Tcp, _) => ("connection-refused", &["Check that the server runs and listens on this port."]),
        (Step::Tls | Step::Handshake, None) if error.words == CLIENT_CERTIFICATE => {
            ("client-certificate-required", &["Examine a path that needs none: one behind the gateway."])
        }
        (Step::Tls, _) => tls_failure(error, facts),
        (Step::Handshake, Some(handshake)) => return refusal(error, handshake, target),
        (Step::Handshake, None) if error.timed_out => (
            "no-response",
            &["Check that the server speaks HTTP at this port, and that its backend answers."],
        ),
        (Step::Handshake, None) if error.words.contains("wss://") => ("tls-expected", IN_THE_WORDS),
        (Step::Handshake, None) => ("no-http", &["Check the port: a WebSocket begins with HTTP/1.1."]),
    };
    finding(id, Severity::Unreachable, sentence(&error.to_string()), advice)
}

fn tls_failure(error: &OpenError, facts: &Facts) -> (&'static str, &'static [&'static str]) {
    match facts.tls.as_ref().and_then(|tls| tls.untrusted.as_ref()).map(|untrusted| untrusted.kind) {
        Some(UntrustedKind::Expired) => {
            ("certificate-expired", &["Renew the certificate, and check what renews it."])
        }
        Some(UntrustedKind::NotYetValid) => (
            "certificate-not-yet-valid",
            &["Check the clocks of this machine and of the one that issued the certificate."],
        ),
        Some(UntrustedKind::WrongName) => (
            "certificate-wrong-name",
            &["Use a name that the certificate is for, or add this host's name to the certificate."],
        ),
        Some(UntrustedKind::MissingIntermediate) => (
            "certificate-missing-intermediate",
            &["Let the server send the whole chain: nginx takes fullchain.pem, not cert.pem."],
        ),
        Some(UntrustedKind::SelfSigned) => (
            "certificate-self-signed",
            &["Use a certificate of an authority, or name this one with --cacert."],
        ),
        Some(UntrustedKind::UnknownIssuer) => (
            "certificate-unknown-issuer",
            &[
                "Name the certificate of a private authority with --cacert.",
                "Let the server send the whole chain: an intermediate certificate may be missing.",
            ],
        ),
        Some(UntrustedKind::Other) => ("certificate-not-trusted", &["Replace the certificate."]),
        None if error.words.contains("write ws://") => ("tls-missing", IN_THE_WORDS),
        None => ("tls-failed", &["Check the versions and ciphers of TLS that the server allows."]),
    }
}

/// Says what a response means that opened no WebSocket.
fn refusal(error: &OpenError, handshake: &HandshakeFacts, target: &TargetFacts) -> Finding {
    if handshake.wrong != Some(Wrong::Status) {
        return wrong_response(error, handshake);
    }
    let (id, advice) = status(handshake, target);
    let advice: Vec<&str> = advice.iter().map(String::as_str).collect();
    finding(id, Severity::Unreachable, sentence(&error.to_string()), &advice)
}

fn wrong_response(error: &OpenError, handshake: &HandshakeFacts) -> Finding {
    let (id, advice) = match handshake.wrong {
        Some(Wrong::NoUpgrade | Wrong::NoConnection) => (
            "upgrade-missing",
            "A proxy may have removed the field: let it pass Upgrade and Connection (nginx: proxy_set_header Upgrade \
             $http_upgrade, proxy_set_header Connection \"upgrade\").",
        ),
        Some(Wrong::NoAccept | Wrong::Accept) => (
            "accept-wrong",
            "Something answers the handshake that is no WebSocket server, or a cache or proxy replaced \
             Sec-WebSocket-Key or Sec-WebSocket-Accept.",
        ),
        Some(Wrong::Subprotocol) => (
            "subprotocol-not-offered",
            "Let the server choose only among the subprotocols that the client offers; browsers close the connection.",
        ),
        _ => (
            "extension-not-offered",
            "Let the server answer only the extensions that the client offers; browsers close the connection.",
        ),
    };
    finding(id, Severity::Unreachable, sentence(&error.to_string()), &[advice])
}

/// Returns the finding of a status, and what to do.
fn status(handshake: &HandshakeFacts, target: &TargetFacts) -> (&'static str, Vec<String>) {
    let one = |id, advice: &str| (id, vec![advice.to_owned()]);
    let again = handshake
        .retry_after_ms
        .map(|wait| format!("Try again after {} s (Retry-After).", (wait / 1e3).ceil()));
    let body = handshake.body.as_deref().unwrap_or_default().to_ascii_lowercase();
    match handshake.status {
        300..=399 => {
            let to = handshake.location.as_deref().unwrap_or("another address");
            one(
                "redirected",
                &format!(
                    "Use the address that the server names, {to}: browsers follow no redirect of a WebSocket. If that is a \
                     login, add what it gives with --header: a cookie or a token."
                ),
            )
        }
        200..=299 => one(
            "not-a-websocket",
            "The path is served as a page, or the proxy passes no upgrade: check the path, the login in front of it, and \
             that the proxy passes Upgrade and Connection.",
        ),
        400 if !target.secure && body.contains("https") => {
            one("tls-expected", "Write wss:// instead of ws://: the server speaks TLS at this port.")
        }
        400 | 426 => one(
            "upgrade-refused",
            "A proxy may have removed Upgrade or Connection, or spoken HTTP/1.0 to the server: let it pass them (nginx: \
             proxy_http_version 1.1, proxy_set_header Upgrade $http_upgrade, proxy_set_header Connection \"upgrade\").",
        ),
        401 | 407 => one("unauthorized", "Add credentials with --header or --bearer-file."),
        403 => one(
            "forbidden",
            "The server may allow only some origins: add --header \"Origin: https://...\" of a page that may; or the \
             credentials, a firewall of the server or the address of this machine are refused.",
        ),
        404 | 405 | 410 => one("path-not-found", "Check the path; a proxy may serve it without the backend."),
        429 => (
            "too-many-requests",
            again
                .into_iter()
                .chain(["Lower the rate, or ask the operator for a higher limit.".to_owned()])
                .collect(),
        ),
        502..=504 => {
            let why =
                "Check the backend: the proxy in front of it answers, and the backend does not.".to_owned();
            ("backend-unavailable", again.into_iter().chain([why]).collect())
        }
        _ => ("refused", again.into_iter().chain(["Look into the server's log.".to_owned()]).collect()),
    }
}

/// Finds addresses that do not answer while others do.
fn dead_addresses(facts: &Facts) -> Vec<Finding> {
    if facts.used.is_none() {
        return Vec::new();
    }
    let family = |is_v6: bool| facts.addresses.iter().filter(move |facts| facts.address.is_ipv6() == is_v6);
    let is_dead = |is_v6| family(is_v6).next().is_some() && family(is_v6).all(|facts| facts.error.is_some());
    let whole = [(true, "ipv6-broken", "IPv6"), (false, "ipv4-broken", "IPv4")];
    if let Some((is_v6, id, name)) = whole.into_iter().find(|(is_v6, ..)| is_dead(*is_v6)) {
        let errors: Vec<_> = family(is_v6).filter_map(|facts| facts.error.clone()).collect();
        let words = format!(
            "The name has addresses of {name}, and none of them answers from here: {}.",
            errors.join("; ")
        );
        let advice: &[&str] = match is_v6 {
            true => &[
                "Check the route of IPv6 from here; if the server has none, remove its AAAA records.",
                "Clients that try IPv6 first lose time at every connection.",
            ],
            false => &["Check the route of IPv4 from here; if the server has none, remove its A records."],
        };
        // A server for development often listens on one of them only.
        let is_here = family(is_v6).all(|facts| facts.address.ip().is_loopback());
        let severity = if is_here { Severity::Note } else { Severity::Problem };
        return vec![finding(id, severity, words, advice)];
    }
    let dead: Vec<_> = facts.addresses.iter().filter_map(|facts| facts.error.clone()).collect();
    if dead.is_empty() {
        return Vec::new();
    }
    let words = format!(
        "{} of {} addresses of the name do not answer: {}.",
        dead.len(),
        facts.addresses.len(),
        dead.join("; ")
    );
    vec![finding(
        "address-dead",
        Severity::Problem,
        words,
        &["Remove the address from DNS, or start the server there: clients meet it at random."],
    )]
}

fn tls(facts: &TlsFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let soonest = facts.chain.iter().min_by_key(|certificate| certificate.days_left);
    if let Some(certificate) = soonest
        && facts.error.is_none()
        && certificate.days_left < EXPIRES_SOON
    {
        let words = format!(
            "The certificate of {} expires in {} days.",
            certificate.subject,
            certificate.days_left.max(0)
        );
        found.push(finding(
            "certificate-expires-soon",
            Severity::Problem,
            words,
            &["Renew it, and check what renews it: most tools do so 30 days before."],
        ));
    }
    if facts.version.as_deref() == Some("TLS 1.2") {
        found.push(finding(
            "tls-1.2",
            Severity::Note,
            "The server speaks TLS 1.2 and not 1.3, which takes one round trip more at every connection.",
            &["Allow TLS 1.3."],
        ));
    }
    found
}

/// Finds what clients will meet although the handshake is valid.
fn handshake(facts: &HandshakeFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.subprotocol.is_none() && !facts.offered_subprotocols.is_empty() {
        found.push(finding(
            "subprotocol-not-chosen",
            Severity::Problem,
            format!("The server chose none of the subprotocols {}.", facts.offered_subprotocols.join(", ")),
            &["Let the server choose one of them: browsers close the connection otherwise. A proxy may have removed the field."],
        ));
    }
    if facts.offered_extensions.is_some() && !facts.compressed {
        found.push(finding(
            "compression-off",
            Severity::Note,
            "Compression was offered and not agreed on: the server does without, or a proxy removed the field.",
            &[],
        ));
    }
    found
}

fn http2(facts: &Facts) -> Option<Finding> {
    let http2 = facts.http2.as_ref().filter(|http2| http2.extended_connect && http2.status != Some(200))?;
    let how = match (http2.status, &http2.error) {
        (Some(status), _) => format!("answers {status}"),
        (None, Some(error)) => format!("fails: {error}"),
        (None, None) => "does not answer".to_owned(),
    };
    Some(finding(
        "http2-websocket-fails",
        Severity::Problem,
        format!("The server allows WebSockets over HTTP/2 (RFC 8441), and {how} when one is opened."),
        &["Serve them, or take SETTINGS_ENABLE_CONNECT_PROTOCOL away: browsers use it where it is allowed."],
    ))
}

fn pings(facts: &Facts) -> Vec<Finding> {
    let Some(pings) = &facts.pings else { return Vec::new() };
    let mut found = Vec::new();
    if pings.answered == 0 && pings.wrong_payload == 0 && pings.sent > 0 && facts.ended.is_none() {
        found.push(finding(
            "pings-unanswered",
            Severity::Problem,
            "No Ping was answered: a client cannot know by Pings whether the connection is alive.",
            &["Answer Pings with Pongs (RFC 6455 section 5.5.3), or let clients probe with messages."],
        ));
    }
    if pings.wrong_payload > 0 {
        found.push(finding(
            "pong-wrong",
            Severity::Problem,
            format!("{} of {} Pongs did not return the payload of the Ping.", pings.wrong_payload, pings.sent),
            &["Return the payload (RFC 6455 section 5.5.3): clients that measure or confirm by Pings need it."],
        ));
    }
    if let (AnsweredBy::Nearer, Some(pong), Some(echo)) =
        (pings.answered_by, pings.rtt, pings.echo.as_ref().and_then(|echo| echo.rtt))
    {
        found.push(finding(
            "pings-answered-nearer",
            Severity::Problem,
            format!(
                "Pongs take {:.1} ms and echoed messages {:.1} ms: something in front of the server answers Pings.",
                pong.min_ms, echo.min_ms
            ),
            &["Do not take a Pong for a sign of the server: let clients probe with messages."],
        ));
    }
    if pings.echo.as_ref().is_some_and(|echo| echo.returned == 0 && echo.sent > 0) {
        found.push(finding(
            "echo-missing",
            Severity::Problem,
            "No message came back, although --echo says that the server echoes.",
            &["Check the path, or leave --echo out."],
        ));
    }
    found
}

fn ended(facts: &Facts, target: &TargetFacts) -> Option<Finding> {
    let end = facts.ended.as_ref()?;
    let how = match (end.how, end.code, end.reason.as_deref().filter(|reason| !reason.is_empty())) {
        ("close", Some(code), Some(reason)) => format!("with close code {code} ({reason})"),
        ("close", Some(code), None) => format!("with close code {code}"),
        ("close", None, _) => "with a Close that has no code".to_owned(),
        ("fin", ..) => "by closing TCP without a Close".to_owned(),
        ("reset", ..) => "with a reset of TCP".to_owned(),
        ("tls-cut", ..) => "by closing TCP without an end of TLS".to_owned(),
        (_, _, reason) => format!("by an error: {}", reason.unwrap_or("unknown")),
    };
    let id = if end.after_ms < AT_ONCE { "closed-after-opening" } else { "closed-early" };
    Some(finding(
        id,
        Severity::Problem,
        format!("The connection ended {:.0} ms after it was opened, {how}.", end.after_ms),
        &[match target.sends_first_message {
            true => {
                "Look into the server's log: it may refuse the first message, or expect a subprotocol or credentials."
            }
            false => {
                "Look into the server's log: it may expect a first message (--first-message), a subprotocol or credentials."
            }
        }],
    ))
}

fn proxies(facts: &Facts) -> Option<Finding> {
    let names = &facts.proxy_variables;
    (!names.is_empty()).then(|| {
        finding(
            "proxy-in-environment",
            Severity::Note,
            format!("{} names a proxy; the doctor connected directly.", names.join(" and ")),
            &["Clients that use the proxy may meet other limits."],
        )
    })
}

/// Makes a sentence of an error.
fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::report::AddressFacts;
    use super::*;

    /// The findings of a name with these addresses, of which those without a time do not answer.
    fn of_addresses(addresses: &[(&str, bool)]) -> Vec<(&'static str, Severity)> {
        let facts = |(address, answers): &(&str, bool)| AddressFacts {
            address: address.parse().unwrap(),
            connect_ms: answers.then_some(1.0),
            error: (!answers).then(|| format!("{address} does not answer")),
        };
        let addresses: Vec<_> = addresses.iter().map(facts).collect();
        let used = addresses.iter().find(|facts| facts.connect_ms.is_some()).map(|facts| facts.address);
        let facts = Facts { addresses, used, ..Facts::default() };
        dead_addresses(&facts).iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn addresses_that_do_not_answer_beside_others_that_do_are_found() {
        let (v4, other_v4, v6) = ("192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80");
        assert_eq!(of_addresses(&[(v4, true), (v6, true)]), []);
        assert_eq!(of_addresses(&[(v6, true)]), [], "IPv6 only");
        assert_eq!(of_addresses(&[(v4, true), (v6, false)]), [("ipv6-broken", Severity::Problem)]);
        assert_eq!(of_addresses(&[(v4, false), (v6, true)]), [("ipv4-broken", Severity::Problem)]);
        assert_eq!(
            of_addresses(&[(v4, true), (other_v4, false), (v6, true)]),
            [("address-dead", Severity::Problem)]
        );
        assert_eq!(of_addresses(&[(v4, false), (v6, false)]), [], "the failure itself is the finding");
        let here = [("127.0.0.1:80", true), ("[::1]:80", false)];
        assert_eq!(of_addresses(&here), [("ipv6-broken", Severity::Note)]);
    }
}
