//! The verdict: what the measurements mean, what most probably ends connections, and what to set where. Pure.
//!
//! [`suspects`] ranks what may have cut, [`heartbeat`] says what keeps a path open, [`findings`](super::findings) puts the other
//! measurements into words.

use std::time::Duration;

use super::cutters::{self, Cut};
use super::findings;
use super::first_message::{self, Hint};
use super::heartbeat::{self, Counts};
use super::judgement::{Certainty, CutVerdict, Suspect, Verdict};
use super::measured::{CutHow, Idle, Limit, Measured};
use super::report::{Finding, Report, Severity};
use super::suspects::{self, Kind, Sighting};
use super::words::span;

/// What may be meant by a limit of age if no messages were sent.
const LOOKS_THE_SAME: &str = "A server that counts only messages, and not Pings, looks the same: if it echoes, --echo tells them apart.";
/// What ends sooner was closed at once: that is no limit of age.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Returns the findings that the measurements show, beside those of the facts, and the verdict on everything.
pub(crate) fn judge(report: &Report) -> (Vec<Finding>, Option<Verdict>) {
    let Some(measured) = &report.measured else {
        return (
            Vec::new(),
            Some(Verdict { summary: unmeasured(report), cuts: Vec::new(), heartbeat: None }),
        );
    };
    let (mut findings, mut cuts, mut sentences) = (Vec::new(), Vec::new(), Vec::new());
    let has_talked = measured.idle.as_ref().is_some_and(|idle| idle.our_messages.is_some());
    let (silence, speechlessness) = (silence(measured), speechlessness(measured));
    for cut in [silence, speechlessness, age(measured)].into_iter().flatten() {
        let suspects = match cut.counts {
            Counts::Messages => vec![suspects::that_reads_messages()],
            _ => suspects::rank(&cut.sighting(report)),
        };
        let hint = cut.hint(report);
        sentences.push(cut.summary(report, &suspects, hint.as_ref(), has_talked));
        findings.push(cut.finding(report, &suspects, hint, has_talked));
        cuts.push(CutVerdict { finding: cut.id(), suspects });
    }
    findings.extend(traffic(measured));
    findings.extend(findings::of(measured, report.facts.ended.is_none()));
    let gravest = gravest(report.findings.iter().chain(&findings));
    if sentences.is_empty() {
        sentences.push(match gravest {
            Some(finding) if finding.severity > Severity::Note => with_advice(finding),
            _ => healthy(measured),
        });
    }
    // Messages renew the limits of both.
    let counts = speechlessness.or(silence).map_or(Counts::Unknown, |cut| cut.counts);
    let shortest = [silence, speechlessness].into_iter().flatten().map(|cut| cut.between.0).min();
    let server = measured.idle.as_ref().map(|idle| &idle.server);
    let heartbeat = Some(heartbeat::advise(shortest, counts, server));
    (findings, Some(Verdict { summary: sentences.join(" "), cuts, heartbeat }))
}

/// The first of those that weigh most.
fn gravest<'a>(findings: impl DoubleEndedIterator<Item = &'a Finding>) -> Option<&'a Finding> {
    findings.rev().max_by_key(|finding| finding.severity)
}

/// A limit that cuts.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    kind: Kind,
    after: Duration,
    between: (Duration, Duration),
    how: &'a CutHow,
    counts: Counts,
}

/// Returns the idle limit, if one cuts. A cut that Pings do not prevent is one by age.
fn silence(measured: &Measured) -> Option<Seen<'_>> {
    let idle = measured.idle.as_ref()?;
    let (Limit::Cut { after, between, how, .. }, counts) = longest_silence(idle) else { return None };
    let is_age = [Some(&idle.our_pings), measured.lifetime.as_ref().map(|lifetime| &lifetime.limit)]
        .into_iter()
        .flatten()
        .any(|limit| matches!(limit, Limit::Cut { after: age, .. } if is_about(*age, *after)));
    (!is_age).then_some(Seen { kind: Kind::Silence, after: *after, between: *between, how, counts })
}

/// The longest silence that can be had: of both ends, or of the client alone if the server sends messages by itself.
fn longest_silence(idle: &Idle) -> (&Limit, Counts) {
    let only_messages = idle.server.message_interval.is_some() && idle.server.ping_interval.is_none();
    match &idle.silent {
        Limit::Unknown { .. } if only_messages => (&idle.server_sends, Counts::Client),
        silent => (silent, counts(idle)),
    }
}

/// Returns the limit of age, if one cuts. One that messages of the client keep a connection from is none.
fn age(measured: &Measured) -> Option<Seen<'_>> {
    end_of_busy(measured).filter(|cut| !messages_keep(measured, cut.after))
}

/// Returns the time without a message of the client after which something cuts that does not count Pings.
fn speechlessness(measured: &Measured) -> Option<Seen<'_>> {
    let cut = end_of_busy(measured).filter(|cut| messages_keep(measured, cut.after))?;
    let between = (cut.after, cut.after);
    Some(Seen { kind: Kind::Silence, counts: Counts::Messages, between, ..cut })
}

/// Whether a connection on which this client sends messages outlives this age.
fn messages_keep(measured: &Measured, age: Duration) -> bool {
    let held = measured.idle.as_ref().and_then(|idle| idle.our_messages.as_ref());
    matches!(held, Some(Limit::Holds { for_at_least }) if *for_at_least > age && !is_about(*for_at_least, age))
}

/// Returns the age at which connections end whose Pings are answered all the time.
fn end_of_busy(measured: &Measured) -> Option<Seen<'_>> {
    let lifetime = measured.lifetime.as_ref();
    let from_restart = lifetime.is_some_and(|lifetime| !lifetime.restarts.is_empty());
    let limits =
        [lifetime.map(|lifetime| &lifetime.limit), measured.idle.as_ref().map(|idle| &idle.our_pings)];
    let cut = limits.into_iter().flatten().find_map(|limit| match limit {
        Limit::Cut { after, between, how, .. } => Some((*after, *between, how)),
        _ => None,
    });
    let (after, between, how) = cut.filter(|(after, ..)| !from_restart && *after >= AT_ONCE)?;
    quiet_for_longer(measured, after).is_none().then_some(Seen {
        kind: Kind::Age,
        after,
        between,
        how,
        counts: Counts::Unknown,
    })
}

/// Returns for how long a connection lived on which less was sent, if that is longer than this age.
fn quiet_for_longer(measured: &Measured, age: Duration) -> Option<Duration> {
    let idle = measured.idle.as_ref()?;
    let held =
        [&idle.silent, &idle.our_pings, &idle.server_sends].into_iter().filter_map(|limit| match limit {
            Limit::Holds { for_at_least } => Some(*for_at_least),
            _ => None,
        });
    held.max().filter(|held| *held > age && !is_about(*held, age))
}

/// Busy connections end, and quiet ones of the same age do not: something counts what passes.
fn traffic(measured: &Measured) -> Option<Finding> {
    let lifetime = measured.lifetime.as_ref().filter(|lifetime| lifetime.restarts.is_empty())?;
    let Limit::Cut { after, how, .. } = &lifetime.limit else { return None };
    let quiet = quiet_for_longer(measured, *after)?;
    let words = format!(
        "Connections on which much is sent end after {}, and quiet ones live for {}, so it is not their age: something counts \
         Pings, messages or bytes. {}",
        span(*after),
        span(quiet),
        cut_words(how)
    );
    let advice = vec![
        "Look for a limit of Pings, messages or bytes of each connection: a quota, or a protection from floods.".to_owned(),
    ];
    Some(Finding { id: "traffic-limit", severity: Severity::Problem, words, advice })
}

/// Whether two limits are one, as far as can be measured.
fn is_about(one: Duration, other: Duration) -> bool {
    one.abs_diff(other) <= (one.max(other) / 10).max(Duration::from_millis(300))
}

/// Which end's bytes keep a silent connection.
fn counts(idle: &Idle) -> Counts {
    match (&idle.silent, &idle.up_only) {
        (Limit::Cut { .. }, Limit::Holds { .. }) => Counts::Either,
        (Limit::Cut { after, .. }, Limit::Cut { after: up, .. }) if is_about(*after, *up) => Counts::Server,
        _ => Counts::Unknown,
    }
}

impl Seen<'_> {
    fn id(&self) -> &'static str {
        match (self.kind, self.counts) {
            (Kind::Silence, Counts::Messages) => "idle-limit-of-messages",
            (Kind::Silence, _) => "idle-limit",
            (Kind::Age, _) => "age-limit",
        }
    }

    fn sighting<'r>(&self, report: &'r Report) -> Sighting<'r> {
        let cut = match self.how {
            CutHow::Close { .. } => Cut::Close,
            CutHow::Fin | CutHow::Reset => Cut::Tcp,
            CutHow::ResetOnSend | CutHow::Silent => Cut::Silent,
            CutHow::Error { .. } => Cut::Unknown,
        };
        let (client_keeps, server_keeps) = match self.counts {
            Counts::Either | Counts::Messages => (Some(true), None),
            Counts::Server => (Some(false), None),
            Counts::Client => (None, Some(false)),
            Counts::Unknown => (None, None),
        };
        let products = report.facts.handshake.as_ref().map_or(&[][..], |handshake| &handshake.products);
        let is_near = report.target.is_near;
        Sighting { kind: self.kind, after: self.after, cut, client_keeps, server_keeps, products, is_near }
    }

    /// The limit, or its bounds: what looks for idle connections only now and then ends them late.
    fn time(&self) -> String {
        let (from, to) = self.between;
        match self.kind {
            Kind::Silence if !is_about(from, to) => format!("{} to {}", span(from), span(to)),
            _ => span(self.after),
        }
    }

    /// What happens, and what most probably does it or what else it may be.
    fn summary(
        &self,
        report: &Report,
        suspects: &[Suspect],
        hint: Option<&Hint>,
        has_talked: bool,
    ) -> String {
        let sentence = self.sentence(report);
        if let Some(hint) = hint {
            return format!("{sentence} {} {}", hint.words, hint.advice);
        }
        let is_named = suspects.first().is_some_and(|first| first.source.is_some());
        let more = if self.kind == Kind::Age && !has_talked && !is_named { LOOKS_THE_SAME } else { "" };
        format!("{sentence} {} {more}", accusation(suspects)).trim_end().to_owned()
    }

    /// What happens, in one sentence.
    fn sentence(&self, report: &Report) -> String {
        let after = self.time();
        let speaker = "The server, or something in front of it that speaks WebSocket,";
        let (what, ends) = match self.how {
            CutHow::Close { .. } => (speaker, "closes"),
            _ if self.counts == Counts::Messages => (speaker, "ends"),
            CutHow::Silent | CutHow::ResetOnSend => ("Something between you and the server", "forgets"),
            _ if self.sighting(report).products.iter().all(cutters::is_the_end) => {
                ("The server, or something between you and it,", "ends")
            }
            _ => ("Something between you and the server", "ends"),
        };
        match (self.kind, self.counts) {
            (Kind::Silence, Counts::Server) => {
                format!("{what} {ends} connections after {after} of silence from the server.")
            }
            (Kind::Silence, Counts::Client) => {
                format!("{what} {ends} connections after {after} of silence from the client.")
            }
            (Kind::Silence, Counts::Messages) => {
                format!(
                    "{what} {ends} connections after {after} without a message from the client; Pings do not count."
                )
            }
            (Kind::Silence, _) => format!("{what} {ends} connections after {after} of silence."),
            (Kind::Age, _) => {
                format!(
                    "{what} {ends} each connection when it is {after} old, even one on which Pings are answered."
                )
            }
        }
    }

    /// What to know if such an end may come because the doctor does not do what a client of that server does.
    fn hint(&self, report: &Report) -> Option<Hint> {
        if self.kind != Kind::Age {
            return None;
        }
        self.missing_first_message(report).or_else(|| unanswered_messages(report.measured.as_ref()?))
    }

    fn missing_first_message(&self, report: &Report) -> Option<Hint> {
        if report.target.sends_first_message {
            return None;
        }
        let code = match self.how {
            CutHow::Close { code, .. } => *code,
            _ => None,
        };
        let subprotocol = report.facts.handshake.as_ref()?.subprotocol.as_deref();
        first_message::hint(subprotocol, code)
    }

    /// `has_talked`: a connection with messages was watched.
    fn finding(
        &self,
        report: &Report,
        suspects: &[Suspect],
        hint: Option<Hint>,
        has_talked: bool,
    ) -> Finding {
        let otherwise = if hint.is_some() { "If it is cut all the same, nothing" } else { "Nothing" };
        let first = match self.kind {
            Kind::Silence if self.counts == Counts::Messages => {
                "Let the server take Pings and Pongs for signs of life, or let clients send it messages."
                    .to_owned()
            }
            Kind::Silence => {
                format!(
                    "Send more often: {}.",
                    heartbeat::advise(Some(self.between.0), self.counts, None).server
                )
            }
            Kind::Age => format!(
                "{otherwise} keeps a connection beyond it: let clients reconnect. With Mainstay their sessions go on: \
                 --max-lifetime below {} moves them in time.",
                span(self.after)
            ),
        };
        let said = hint.as_ref().map_or_else(String::new, |hint| format!("{} ", hint.words));
        let is_open = self.kind == Kind::Age && !has_talked && hint.is_none();
        let mut advice: Vec<String> = hint.map(|hint| hint.advice).into_iter().chain([first]).collect();
        if is_open {
            advice.push(LOOKS_THE_SAME.to_owned());
        }
        let named =
            suspects.iter().filter(|suspect| suspect.certainty > Certainty::Possible || suspects.len() == 1);
        advice.extend(named.map(|suspect| format!("In {}: {}.", suspect.name, suspect.remedy)));
        let words = format!("{} {said}{}", self.sentence(report), cut_words(self.how));
        Finding { id: self.id(), severity: Severity::Problem, words, advice }
    }
}

/// A server that sends each connection one message, and later closes it, may have waited for an answer.
fn unanswered_messages(measured: &Measured) -> Option<Hint> {
    let server = &measured.idle.as_ref()?.server;
    let is_asked_once = server.messages > 0 && server.message_interval.is_none();
    is_asked_once.then(|| Hint {
        words: "The server sent a message before, and the doctor answers none: it may wait for an answer, as Socket.IO does for \
                pingInterval and pingTimeout (25 s and 20 s)."
            .to_owned(),
        advice: "If clients answer such messages, take this limit for their heartbeat, and not for a limit of age.".to_owned(),
    })
}

/// How the cut looked, in one sentence.
fn cut_words(how: &CutHow) -> String {
    match how {
        CutHow::Close { code: Some(code), reason } if reason.is_empty() => format!("A Close came with code {code}."),
        CutHow::Close { code: Some(code), reason } => format!("A Close came with code {code}: \"{reason}\"."),
        CutHow::Close { code: None, .. } => "A Close came without a code.".to_owned(),
        CutHow::Fin => "TCP ended in order (FIN), and no Close came before.".to_owned(),
        CutHow::Reset => "TCP was reset, and no Close came before.".to_owned(),
        CutHow::ResetOnSend => {
            "No end arrived: a reset answered the next byte, so neither end learns of the cut before it sends.".to_owned()
        }
        CutHow::Silent => {
            "No end arrived: what was sent got no answer, so only a heartbeat finds such a connection dead.".to_owned()
        }
        CutHow::Error { words } => format!("The connection broke: {words}."),
    }
}

/// What most probably did it, in one or two sentences.
fn accusation(suspects: &[Suspect]) -> String {
    let Some(first) = suspects.first() else { return String::new() };
    let because = first.reasons.join("; ");
    if first.certainty > Certainty::Possible {
        return format!("That is {} {}: {because}.", first.certainty.word(), first.name);
    }
    let names: Vec<&str> = suspects.iter().map(|suspect| suspect.name).collect();
    match names.as_slice() {
        [name] => format!("It may be {name}, although nothing names it: {because}."),
        [others @ .., last] => {
            format!("No field of the response names it; possible are {} and {last}.", others.join(", "))
        }
        [] => String::new(),
    }
}

/// What to know if nothing is wrong.
fn healthy(measured: &Measured) -> String {
    let waited = span(measured.waited);
    let Some(idle) = &measured.idle else { return "Nothing was found; silence was not measured.".to_owned() };
    let (pings, messages) = (idle.server.ping_interval, idle.server.message_interval);
    if let Some((what, interval)) =
        pings.map(|every| ("Ping", every)).or(messages.map(|every| ("message", every)))
    {
        return format!(
            "Healthy: the server sends a {what} every {}, and no connection was cut in {waited}.",
            span(interval)
        );
    }
    match &idle.silent {
        Limit::Holds { for_at_least } => format!(
            "Healthy as far as {} of silence: no connection was cut. Longer limits take longer to find: --for 1h.",
            span(*for_at_least)
        ),
        Limit::Unknown { why } => {
            format!("Nothing was found in {waited}; the idle limit is not known: {why}.")
        }
        Limit::Cut { .. } => format!("Nothing else was found in {waited}."),
    }
}

/// A finding and the first step to take.
fn with_advice(finding: &Finding) -> String {
    let first = finding.advice.iter().take(1);
    std::iter::once(&finding.words).chain(first).map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn unmeasured(report: &Report) -> String {
    match gravest(report.findings.iter()) {
        Some(finding) if finding.severity > Severity::Note => with_advice(finding),
        _ if report.complete => "The facts are healthy; nothing was measured by waiting.".to_owned(),
        _ => "Nothing was found before the command was interrupted.".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::cutters::{CUTTERS, Figure};
    use super::super::measured::{Lifetime, ServerSends};
    use super::super::report::{Facts, HandshakeFacts, Product, TargetFacts};
    use super::*;

    const WAITED: Duration = Duration::from_secs(130);

    fn cut(after: Duration, how: CutHow) -> Limit {
        Limit::Cut { after, between: (after, after), how, seen: 3 }
    }

    fn held() -> Limit {
        Limit::Holds { for_at_least: WAITED }
    }

    /// A path that ends silent connections, and keeps those of which one end sends.
    pub(in super::super) fn silent_for(seconds: u64, how: CutHow) -> Measured {
        let idle = Idle {
            silent: cut(Duration::from_secs(seconds), how),
            our_pings: held(),
            up_only: held(),
            our_messages: None,
            server_sends: Limit::unknown("the server sends nothing"),
            unanswered_pings: Limit::unknown("the server sends no Pings"),
            every: Duration::from_secs(5),
            server: ServerSends::default(),
        };
        let lifetime = Some(Lifetime { limit: held(), restarts: Vec::new() });
        Measured { waited: WAITED, idle: Some(idle), lifetime, ..Measured::default() }
    }

    pub(in super::super) fn report(measured: Option<Measured>, products: &[&'static str]) -> Report {
        let products =
            products.iter().map(|name| Product { name, evidence: format!("server: {name}/1") }).collect();
        Report {
            version: 1,
            target: TargetFacts {
                url: "wss://example.com/ws".into(),
                host: "example.com".into(),
                port: 443,
                secure: true,
                added_fields: Vec::new(),
                subprotocols: Vec::new(),
                sends_first_message: false,
                is_near: false,
            },
            facts: Facts {
                handshake: Some(HandshakeFacts { products, ..HandshakeFacts::default() }),
                ..Facts::default()
            },
            measured,
            findings: Vec::new(),
            verdict: None,
            complete: true,
            took_ms: 0.0,
        }
    }

    fn judged(measured: Measured, products: &[&'static str]) -> (Vec<Finding>, Verdict) {
        match judge(&report(Some(measured), products)) {
            (findings, Some(verdict)) => (findings, verdict),
            (_, None) => panic!("no verdict"),
        }
    }

    fn ids(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn nginx_with_its_default_is_named_in_plain_words() {
        let (findings, verdict) = judged(silent_for(60, CutHow::Fin), &["nginx"]);
        assert_eq!(ids(&findings), ["idle-limit"]);
        assert_eq!(
            verdict.summary,
            "Something between you and the server ends connections after 60 s of silence. That is most probably nginx: its idle limit \
             is 60 s by default; the response has server: nginx/1; it ends TCP without a Close, as here."
        );
        assert!(findings[0].advice.iter().any(|step| step.contains("proxy_read_timeout")), "{findings:?}");
        assert_eq!(verdict.heartbeat.map(|heartbeat| heartbeat.interval_ms), Some(25_000.0));
    }

    #[test]
    fn no_verdict_is_certain() {
        for cutter in CUTTERS {
            let Some(Figure::Default(limit) | Figure::Fixed(limit)) = cutter.idle.map(|idle| idle.limit)
            else {
                continue;
            };
            let how = match cutter.cut {
                Cut::Close => CutHow::Close { code: Some(1001), reason: String::new() },
                Cut::Silent => CutHow::Silent,
                Cut::Tcp | Cut::Unknown => CutHow::Fin,
            };
            let (_, verdict) = judged(silent_for(limit.as_secs(), how), cutter.families);
            let words = &verdict.summary;
            assert!(
                words.contains("probably") || words.contains("It may be") || words.contains("possible are"),
                "{words}"
            );
        }
    }

    #[test]
    fn a_limit_of_many_names_them_all_as_questions() {
        let (findings, verdict) = judged(silent_for(60, CutHow::Fin), &[]);
        assert!(verdict.summary.contains("No field of the response names it;"), "{}", verdict.summary);
        for name in ["nginx", "AWS Application Load Balancer"] {
            assert!(verdict.summary.contains(name), "{}", verdict.summary);
        }
        assert_eq!(findings[0].advice.len(), 1, "no single one is blamed: {:?}", findings[0].advice);
    }

    #[test]
    fn silence_from_the_server_is_told_from_silence() {
        let mut measured = silent_for(60, CutHow::Fin);
        if let Some(idle) = &mut measured.idle {
            idle.up_only = cut(Duration::from_secs(60), CutHow::Fin);
        }
        let (_, verdict) = judged(measured, &["nginx"]);
        assert!(verdict.summary.contains("after 60 s of silence from the server."), "{}", verdict.summary);
        assert!(verdict.heartbeat.is_some_and(|heartbeat| heartbeat.client.contains("do not count")));
    }

    #[test]
    fn a_server_that_sends_and_ends_clients_that_do_not_counts_the_clients_bytes() {
        let mut measured = silent_for(60, CutHow::Fin);
        if let Some(idle) = &mut measured.idle {
            idle.silent = Limit::unknown("the server sends");
            idle.server =
                ServerSends { message_interval: Some(Duration::from_secs(1)), ..ServerSends::default() };
            let how = CutHow::Close { code: Some(1000), reason: String::new() };
            idle.server_sends = cut(Duration::from_secs(60), how);
        }
        let (_, verdict) = judged(measured, &[]);
        assert!(verdict.summary.contains("after 60 s of silence from the client."), "{}", verdict.summary);
        let ids: Vec<_> = verdict.cuts[0].suspects.iter().map(|suspect| suspect.id).collect();
        assert_eq!(ids, ["server", "cowboy"]);
        assert!(verdict.heartbeat.is_some_and(|heartbeat| heartbeat.server.contains("Pong counts")));
    }

    #[test]
    fn a_cut_that_pings_do_not_prevent_is_one_by_age() {
        let mut measured = silent_for(30, CutHow::Fin);
        if let Some(lifetime) = &mut measured.lifetime {
            lifetime.limit = cut(Duration::from_secs(30), CutHow::Fin);
        }
        end_at(&mut measured, 30);
        let (findings, verdict) = judged(measured, &["google-load-balancer"]);
        assert_eq!(ids(&findings), ["age-limit"]);
        assert!(
            verdict.summary.contains("when it is 30 s old, even one on which Pings are answered."),
            "{}",
            verdict.summary
        );
        assert_eq!(verdict.cuts[0].suspects[0].id, "google-cloud-load-balancer");
    }

    /// The connection with Pings ends with the others.
    fn end_at(measured: &mut Measured, age: u64) {
        if let Some(idle) = &mut measured.idle {
            idle.our_pings = Limit::Holds { for_at_least: Duration::from_secs(age) };
        }
    }

    /// Busy connections end after 13 s.
    fn busy_for_13_seconds(silent: Limit, how: CutHow) -> Measured {
        let mut measured = silent_for(60, CutHow::Fin);
        measured.lifetime = Some(Lifetime { limit: cut(Duration::from_secs(13), how), restarts: Vec::new() });
        end_at(&mut measured, 13);
        measured.idle = measured.idle.map(|idle| Idle { silent, ..idle });
        measured
    }

    #[test]
    fn what_ends_only_busy_connections_is_no_limit_of_age() {
        let (findings, verdict) = judged(busy_for_13_seconds(held(), CutHow::Reset), &[]);
        assert_eq!(ids(&findings), ["traffic-limit"]);
        assert!(verdict.cuts.is_empty() && verdict.summary.contains("end after 13 s"), "{}", verdict.summary);
        let as_old = Limit::Holds { for_at_least: Duration::from_secs(12) };
        assert_eq!(ids(&judged(busy_for_13_seconds(as_old, CutHow::Reset), &[]).0), ["age-limit"]);
    }

    #[test]
    fn a_close_with_a_code_of_the_application_may_have_waited_for_a_first_message() {
        let as_old = Limit::Holds { for_at_least: Duration::from_secs(12) };
        let words = |code| {
            let how = CutHow::Close { code: Some(code), reason: String::new() };
            judged(busy_for_13_seconds(as_old.clone(), how), &[]).1.summary
        };
        assert!(words(4008).contains("a first message") && words(1008).contains("a first message"));
        assert!(!words(1001).contains("a first message"));
        let how = CutHow::Close { code: Some(4008), reason: String::new() };
        let advice = judged(busy_for_13_seconds(as_old, how), &[]).0.remove(0).advice;
        assert!(advice[0].contains("--first-message"), "{advice:?}");
    }

    #[test]
    fn a_server_that_sent_one_message_may_have_waited_for_an_answer() {
        let as_old = Limit::Holds { for_at_least: Duration::from_secs(12) };
        let how = CutHow::Close { code: None, reason: String::new() };
        let mut measured = busy_for_13_seconds(as_old, how);
        let summary = |measured: &Measured| judged(measured.clone(), &[]).1.summary;
        assert!(!summary(&measured).contains("Socket.IO"));
        let mut sends = |message_interval| {
            let server = ServerSends { messages: 20, message_interval, ..ServerSends::default() };
            measured.idle = measured.idle.take().map(|idle| Idle { server, ..idle });
            summary(&measured)
        };
        assert!(sends(None).contains("Socket.IO"));
        assert!(!sends(Some(Duration::from_secs(1))).contains("Socket.IO"), "it sends whatever clients do");
    }

    #[test]
    fn where_messages_keep_a_connection_that_pings_do_not_it_is_no_limit_of_age() {
        let as_old = Limit::Holds { for_at_least: Duration::from_secs(12) };
        let mut measured = busy_for_13_seconds(as_old, CutHow::Fin);
        let advice = judged(measured.clone(), &[]).0.remove(0).advice;
        assert!(advice.iter().any(|advice| advice.contains("--echo tells")), "{advice:?}");
        measured.idle = measured.idle.map(|idle| Idle { our_messages: Some(held()), ..idle });
        let mut behind_nginx = measured.clone();
        behind_nginx.idle =
            behind_nginx.idle.map(|idle| Idle { silent: cut(Duration::from_secs(5), CutHow::Fin), ..idle });
        let (both, verdict) = judged(behind_nginx, &["nginx"]);
        assert_eq!(ids(&both), ["idle-limit", "idle-limit-of-messages"]);
        assert_eq!(verdict.heartbeat.map(|heartbeat| heartbeat.interval_ms), Some(2000.0));
        let (findings, verdict) = judged(measured, &["nginx"]);
        assert_eq!(ids(&findings), ["idle-limit-of-messages"]);
        assert!(verdict.summary.contains("after 13 s without a message"), "{}", verdict.summary);
        assert_eq!(verdict.cuts[0].suspects.iter().map(|suspect| suspect.id).collect::<Vec<_>>(), ["server"]);
        assert!(verdict.heartbeat.is_some_and(|heartbeat| heartbeat.client.contains("Pings do not count")));
    }

    #[test]
    fn a_connection_that_is_closed_at_once_has_no_limit_of_age() {
        let mut measured = silent_for(60, CutHow::Fin);
        let at_once = cut(Duration::ZERO, CutHow::Close { code: Some(1013), reason: String::new() });
        measured.lifetime = Some(Lifetime { limit: at_once, restarts: Vec::new() });
        measured.idle = measured.idle.map(|idle| Idle { silent: Limit::unknown("ended before"), ..idle });
        assert!(!ids(&judged(measured, &[]).0).contains(&"age-limit"));
    }

    #[test]
    fn a_server_that_sends_messages_all_the_time_is_healthy_by_them() {
        let mut measured = silent_for(60, CutHow::Fin);
        let server = ServerSends {
            messages: 80,
            message_interval: Some(Duration::from_millis(1500)),
            ..ServerSends::default()
        };
        let short = Limit::Holds { for_at_least: Duration::from_millis(1500) };
        measured.idle =
            measured.idle.map(|idle| Idle { silent: short, server_sends: held(), server, ..idle });
        let summary = judged(measured, &[]).1.summary;
        assert!(summary.starts_with("Healthy: the server sends a message every 1.5 s"), "{summary}");
    }

    #[test]
    fn an_idle_limit_and_a_longer_limit_of_age_are_both_reported() {
        let mut measured = silent_for(20, CutHow::Fin);
        if let Some(lifetime) = &mut measured.lifetime {
            lifetime.limit = cut(Duration::from_secs(100), CutHow::Reset);
        }
        end_at(&mut measured, 100);
        let (findings, verdict) = judged(measured, &[]);
        assert_eq!(ids(&findings), ["idle-limit", "age-limit"]);
        assert_eq!(verdict.cuts.len(), 2);
    }

    #[test]
    fn connections_that_end_at_once_are_a_restart_and_no_limit_of_age() {
        let mut measured = silent_for(20, CutHow::Fin);
        measured.idle = None;
        measured.lifetime = Some(Lifetime {
            limit: cut(Duration::from_secs(40), CutHow::Fin),
            restarts: vec![Duration::from_secs(40)],
        });
        assert_eq!(ids(&judged(measured, &[]).0), ["restart"]);
    }

    #[test]
    fn a_close_is_laid_to_the_server() {
        let how = CutHow::Close { code: Some(1001), reason: "Idle Timeout".into() };
        let (findings, verdict) = judged(silent_for(30, how), &[]);
        assert!(
            verdict
                .summary
                .starts_with("The server, or something in front of it that speaks WebSocket, closes")
        );
        assert!(
            findings[0].words.ends_with("A Close came with code 1001: \"Idle Timeout\"."),
            "{findings:?}"
        );
        assert_eq!(verdict.cuts[0].suspects[0].id, "server");
    }

    #[test]
    fn a_server_that_names_itself_is_accused_by_name_and_is_nothing_on_the_way() {
        let close = CutHow::Close { code: Some(1000), reason: String::new() };
        let summary = judged(silent_for(60, close), &["cowboy"]).1.summary;
        assert!(summary.contains("most probably Cowboy"), "{summary}");
        let summary = judged(silent_for(7, CutHow::Fin), &["cowboy"]).1.summary;
        assert!(summary.starts_with("The server, or something between"), "{summary}");
        let summary = judged(silent_for(60, CutHow::Fin), &["nginx"]).1.summary;
        assert!(summary.starts_with("Something between you and the server"), "{summary}");
    }

    #[test]
    fn a_path_that_held_is_healthy_as_far_as_it_was_watched() {
        let mut measured = silent_for(60, CutHow::Fin);
        if let Some(idle) = &mut measured.idle {
            idle.silent = held();
        }
        let (findings, verdict) = judged(measured, &["nginx"]);
        assert!(findings.is_empty(), "{findings:?}");
        assert!(verdict.summary.starts_with("Healthy as far as 130 s of silence"), "{}", verdict.summary);
    }

    #[test]
    fn without_a_websocket_the_gravest_fact_is_the_verdict_and_says_what_to_do_first() {
        let mut report = report(None, &[]);
        let words = "The name is unknown.";
        report.findings = vec![
            Finding { id: "proxy", severity: Severity::Note, words: "A note.".into(), advice: Vec::new() },
            Finding {
                id: "name-unknown",
                severity: Severity::Unreachable,
                words: words.into(),
                advice: vec!["Check it.".into(), "Then check the record.".into()],
            },
        ];
        let summary = judge(&report).1.map(|verdict| verdict.summary);
        assert_eq!(summary.as_deref(), Some("The name is unknown. Check it."));
    }

    #[test]
    fn an_interrupt_before_any_result_is_no_bill_of_health() {
        let unknown = Measured { waited: Duration::from_secs(2), ..Measured::default() };
        assert!(!judged(unknown, &[]).1.summary.contains("Healthy"));
    }
}
