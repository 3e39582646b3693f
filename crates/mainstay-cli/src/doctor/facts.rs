//! The facts of one connection: the name, every address, TLS, the opening handshake, HTTP/2, Pings.

use std::net::SocketAddr;
use std::sync::Arc;

use mainstay::client::rustls::client::danger::ServerCertVerifier;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Plan;
use super::certificates::Recording;
use super::dial::{self, Opened, Stream, Upgraded};
use super::http2;
use super::pings;
use super::probe::{Options, Probe};
use super::progress::{Progress, State};
use super::report::{AddressFacts, Facts, LookupFacts, OpenError, Step, TlsFacts, ms};
use super::target::{Target, config, is_near};

/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 16;

/// The server, reached: the target at one address, and the connection that was examined.
pub(super) struct Facing {
    pub(super) target: Target,
    pub(super) probe: Probe,
}

/// Returns the variables of the environment that name a proxy for this target, by curl's rules.
pub(super) fn proxy_variables(target: &Target) -> Vec<String> {
    let names: &[&str] = match target.is_secure() {
        _ if target.socket().is_some() => &[],
        true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        false => &["http_proxy", "all_proxy", "ALL_PROXY"],
    };
    let is_set = |name: &&&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    names.iter().filter(is_set).map(ToString::to_string).collect()
}

/// Looks up the target's name. Returns whether all its addresses are of this machine or private networks; true if it has none.
///
/// # Cancel safety
/// Safe.
pub(super) async fn resolve(target: &Target, facts: &mut Facts) -> bool {
    if target.socket().is_some() {
        return true;
    }
    let began = Instant::now();
    let found = dial::look_up(target).await;
    let all = found.as_deref().unwrap_or_default();
    let of_family = |is_wanted: fn(&SocketAddr) -> bool| {
        all.iter().filter(|address| is_wanted(address)).map(SocketAddr::ip).collect()
    };
    facts.lookup = Some(LookupFacts {
        took_ms: ms(began.elapsed()),
        ipv4: of_family(SocketAddr::is_ipv4),
        ipv6: of_family(SocketAddr::is_ipv6),
        error: found.as_ref().err().map(|error| error.words.clone()),
    });
    let is_all_near = all.iter().all(|address| is_near(address.ip()));
    let untried = |address: &SocketAddr| AddressFacts { address: *address, connect_ms: None, error: None };
    facts.addresses = all.iter().take(MAX_ADDRESSES).map(untried).collect();
    facts.failed = found.err();
    is_all_near
}

/// Gathers the facts, and writes each one as soon as it is known. `None`: no WebSocket could be opened.
///
/// # Cancel safety
/// Safe: what is known so far is in `facts`.
pub(super) async fn gather(
    target: &Target,
    plan: &Plan,
    facts: &mut Facts,
    progress: &Progress,
) -> Option<Facing> {
    if let Some(lookup) = &facts.lookup {
        match &lookup.error {
            Some(words) => progress.report("name", State::Bad, words.clone()),
            None => {
                let (v4, v6) = (lookup.ipv4.len(), lookup.ipv6.len());
                progress.report(
                    "name",
                    State::Good,
                    format!("IPv4: {v4}, IPv6: {v6}, {:.1} ms", lookup.took_ms),
                );
            }
        }
    }
    if facts.failed.is_some() {
        return None;
    }
    match open(target, facts, progress).await {
        Ok((target, mut probe)) => {
            progress.report("Pings", State::Running, "");
            pings::measure(&mut probe, plan.echo, &target, facts).await;
            let pings = facts.pings.as_ref();
            let words = pings.and_then(|pings| Some(format!("{:.1} ms", pings.rtt?.median_ms)));
            match words {
                Some(words) => progress.report("Pings", State::Good, words),
                None => progress.report("Pings", State::Bad, "not answered as they should be"),
            }
            // Another connection: this one must not wait for it with what it has to send.
            facts.http2 = http2::facts(&target).await;
            let is_mute = facts.first_message.as_ref().is_some_and(|first| first.answered_ms.is_none());
            let target = if is_mute { target.without_answer() } else { target };
            Some(Facing { target, probe })
        }
        Err(error) => {
            facts.failed = Some(error);
            None
        }
    }
}

/// Opens a WebSocket, step by step.
async fn open(target: &Target, facts: &mut Facts, progress: &Progress) -> Result<(Target, Probe), OpenError> {
    let target = match target.socket() {
        Some(_) => target.clone(),
        None => {
            progress.report("TCP", State::Running, "");
            let tried = try_addresses(facts).await;
            row(progress, "TCP", &tried, |address| address.to_string());
            let address = tried?;
            facts.used = Some(address);
            target.at(address)
        }
    };
    let stream = dial::connect(&target).await?;
    let stream: Box<dyn Stream> = match target.is_secure() {
        false => stream,
        true => {
            progress.report("TLS", State::Running, "");
            let secured = secure(&target, stream, facts).await;
            let version = facts.tls.as_ref().and_then(|tls| tls.version.clone()).unwrap_or_default();
            row(progress, "TLS", &secured, |_| version);
            secured?
        }
    };
    progress.report("handshake", State::Running, "");
    let shaken = dial::shake_hands(&target, stream, true).await;
    let opened = shaken.and_then(|(handshake, opened)| {
        facts.handshake = Some(handshake.clone());
        opened.map(|Upgraded { stream, early, deflate }| Opened { stream, early, deflate, handshake })
    });
    row(progress, "handshake", &opened, |opened| format!("{:.1} ms", opened.handshake.took_ms));
    let probe = Probe::new(&target, opened?, Options::default());
    Ok((target, probe))
}

/// Reports the end of a step.
fn row<T>(
    progress: &Progress,
    name: &'static str,
    result: &Result<T, OpenError>,
    good: impl FnOnce(&T) -> String,
) {
    match result {
        Ok(value) => progress.report(name, State::Good, good(value)),
        Err(error) => progress.report(name, State::Bad, error.words.clone()),
    }
}

/// Connects to every address at once, and returns the first of them, in the system's order, that accepted.
async fn try_addresses(facts: &mut Facts) -> Result<SocketAddr, OpenError> {
    let mut attempts = JoinSet::new();
    for facts in &facts.addresses {
        let address = facts.address;
        attempts.spawn(async move { (address, dial::tcp(address).await.map(|(_, took)| took)) });
    }
    let mut last = None;
    while let Some(attempt) = attempts.join_next().await {
        let Ok((address, result)) = attempt else { continue };
        let Some(facts) = facts.addresses.iter_mut().find(|facts| facts.address == address) else { continue };
        match result {
            Ok(took) => facts.connect_ms = Some(ms(took)),
            Err(error) => {
                facts.error = Some(error.words.clone());
                last = Some(error);
            }
        }
    }
    let accepted = facts.addresses.iter().find(|facts| facts.connect_ms.is_some());
    match (accepted, last) {
        (Some(facts), _) => Ok(facts.address),
        (None, Some(error)) => Err(error),
        (None, None) => Err(OpenError::new(Step::Lookup, "the name has no address")),
    }
}

/// Speaks TLS, and notes what the server shows.
async fn secure(
    target: &Target,
    stream: Box<dyn Stream>,
    facts: &mut Facts,
) -> Result<Box<dyn Stream>, OpenError> {
    let recording = Arc::new(Recording::new(target.verifier()));
    let verifier: Arc<dyn ServerCertVerifier> = recording.clone();
    let config = config(&verifier, &[b"http/1.1"]).map_err(|words| OpenError::new(Step::Tls, words))?;
    let tls = facts.tls.insert(TlsFacts::default());
    let is_address = target.host().parse::<std::net::IpAddr>().is_ok();
    tls.server_name = (!is_address).then(|| target.host().to_owned());
    let secured = dial::secure(target, stream, &config).await;
    (tls.chain, tls.untrusted) = recording.facts(target);
    match secured {
        Ok((stream, took)) => {
            tls.took_ms = ms(took);
            let session = stream.get_ref().1;
            tls.version = session.protocol_version().map(|version| match version.as_str() {
                Some(name) => name.replace("TLSv1_", "TLS 1."),
                None => format!("{version:?}"),
            });
            tls.cipher = session.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
            tls.alpn = session.alpn_protocol().map(|name| target.shown(&String::from_utf8_lossy(name)));
            Ok(Box::new(stream))
        }
        Err(mut error) => {
            if let Some(untrusted) = &tls.untrusted {
                error.words.clone_from(&untrusted.words);
            }
            tls.error = Some(error.words.clone());
            Err(error)
        }
    }
}
