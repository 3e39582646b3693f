//! What is right for a protocol: one flag instead of five.
//!
//! A profile says what a lost backend connection means (`--on-backend-loss`), what a new one is told first (the
//! prologue), what is taken for received (`--confirm`, `--delivery`), and which of the backend's close codes are its
//! own words to the application. Flags beside it may refine it; one that would make the gateway lie or double what must
//! not be doubled is an error. `docs/PROFILES.md` has the reasons, protocol by protocol.
//!
//! Not here: how rules are read (`pattern`), what the prologue does (`prologue`).

use std::ops::RangeInclusive;
use std::sync::Arc;

use clap::ValueEnum;
use mainstay::{CloseCode, Confirm, Guarantee};

use crate::pattern::{self, Pattern, Rule};
use crate::prologue::{Answer, MOST_RULES, Rules};

/// `--profile`, and the prologue by hand.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "What the backend speaks")]
pub(crate) struct ProfileFlags {
    /// The protocol that the backend speaks: sets what a lost backend connection means, what a new one is told first,
    /// and what counts as received, as docs/PROFILES.md says.
    #[arg(long, value_enum, requires = "upstream")]
    profile: Option<Protocol>,
    /// A frame of the client that every new connection to the backend is told again, before anything else: first=N,
    /// until=REGEX, match=REGEX or json=/POINTER[=VALUE]. May be repeated. Needs --on-backend-loss keep.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse, requires = "upstream")]
    prologue: Vec<Rule>,
    /// What names a frame of the prologue, for example /id: a later frame of the same name takes its place.
    #[arg(long, value_name = "POINTER", value_parser = pattern::pointer, requires = "upstream")]
    prologue_key: Option<String>,
    /// A message of the client or the backend after which the frames of its name are not told again: match=REGEX or
    /// json=/POINTER[=VALUE]. May be repeated. Needs --prologue-key.
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse, requires = "prologue_key")]
    prologue_forget: Vec<Pattern>,
    /// An answer of the backend, or its greeting, that the client does not get a second time; the next frame of the
    /// prologue waits for it. As --prologue; may be repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse, requires = "upstream")]
    prologue_swallow: Vec<Rule>,
    /// An answer of the backend that the client gets again, and that its other messages wait for. As --prologue; may be
    /// repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse, requires = "upstream")]
    prologue_await: Vec<Rule>,
}

/// The protocols that there is a profile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// GraphQL over WebSocket, as graphql-ws and Apollo speak it.
    #[value(name = "graphql-transport-ws")]
    GraphqlTransportWs,
    /// Phoenix channels and LiveView.
    #[value(name = "phoenix")]
    Phoenix,
    /// Action Cable of Rails.
    #[value(name = "actioncable")]
    ActionCable,
    /// MQTT 3.1.1 and 5.
    #[value(name = "mqtt")]
    Mqtt,
    /// Engine.IO, and Socket.IO on it.
    #[value(name = "engine.io")]
    EngineIo,
    /// SignalR's hub protocols.
    #[value(name = "signalr")]
    SignalR,
    /// Kernel channels of Jupyter.
    #[value(name = "jupyter")]
    Jupyter,
    /// Yjs: y-websocket and Hocuspocus.
    #[value(name = "yjs")]
    Yjs,
}

/// What a backend connection that is lost means for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnBackendLoss {
    /// The client's connection ends, and its session with it: it connects again and begins anew.
    Renew,
    /// The client stays, and a new backend connection takes the place of the old one.
    Keep,
}

/// What was said beside a profile; `None`: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    pub(crate) on_backend_loss: Option<OnBackendLoss>,
    pub(crate) confirm: Option<Confirm>,
    pub(crate) delivery: Option<Guarantee>,
}

/// What follows from all of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) on_backend_loss: OnBackendLoss,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    pub(crate) closes: Closes,
    /// What a new backend connection is told first; only with `keep`.
    pub(crate) prologue: Option<Arc<Rules>>,
    /// GraphQL mutations in flight are answered when the backend is lost.
    pub(crate) answers_mutations: bool,
}

/// Which of the backend's close codes are its own words to the application, where the general rule would be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closes {
    /// Codes of the application's protocol: an end for a session too, with code and reason.
    ends: Option<RangeInclusive<u16>>,
    /// With `keep`, a plain client too is kept when the backend says that it goes away: 1001, 1012 to 1014.
    keeps_plain: bool,
}

impl Closes {
    const GENERAL: Self = Self { ends: None, keeps_plain: false };
    /// 4000 to 4999 belong to applications; the protocol gives them a meaning that its client knows.
    const APPLICATION: Self = Self { ends: Some(4000..=4999), keeps_plain: false };

    /// Whether this close is the backend's answer to the application; `None`: the general rule decides.
    pub(crate) fn is_end(&self, code: Option<CloseCode>, is_plain: bool) -> Option<bool> {
        let code = code?.get();
        let is_ours = self.ends.as_ref().is_some_and(|ends| ends.contains(&code));
        let goes_away = is_plain && self.keeps_plain && matches!(code, 1001 | 1012..=1014);
        if is_ours { Some(true) } else { goes_away.then_some(false) }
    }
}

impl ProfileFlags {
    /// Puts flags and profile together.
    ///
    /// # Errors
    /// What contradicts what, in one line.
    pub(crate) fn settings(&self, given: Given) -> Result<Settings, String> {
        self.check_counts()?;
        let Some(protocol) = self.profile else { return self.by_hand(given) };
        if self.has_prologue() {
            let name = protocol.name();
            return Err(format!(
                "--profile {name} has its own prologue, or needs none; leave --prologue* or --profile away"
            ));
        }
        protocol.settings(given)
    }

    fn by_hand(&self, given: Given) -> Result<Settings, String> {
        let on_backend_loss = given.on_backend_loss.unwrap_or(OnBackendLoss::Renew);
        if self.has_prologue() && on_backend_loss != OnBackendLoss::Keep {
            return Err(
                "--prologue* needs --on-backend-loss keep: with renew the client begins anew itself".into()
            );
        }
        Ok(Settings {
            on_backend_loss,
            confirm: given.confirm.unwrap_or_default(),
            guarantee: given.delivery.unwrap_or_default(),
            closes: Closes::GENERAL,
            prologue: self.has_prologue().then(|| Arc::new(self.rules())),
            answers_mutations: false,
        })
    }

    fn has_prologue(&self) -> bool {
        let rules = [&self.prologue, &self.prologue_swallow, &self.prologue_await];
        self.prologue_key.is_some() || rules.iter().any(|rules| !rules.is_empty())
    }

    fn check_counts(&self) -> Result<(), String> {
        let answers = self.prologue_swallow.len() + self.prologue_await.len();
        for (flag, count) in [
            ("--prologue", self.prologue.len()),
            ("--prologue-forget", self.prologue_forget.len()),
            ("--prologue-swallow and --prologue-await", answers),
        ] {
            if count > MOST_RULES {
                return Err(format!(
                    "{flag}: at most {MOST_RULES} rules; join some with | in one match=REGEX"
                ));
            }
        }
        Ok(())
    }

    fn rules(&self) -> Rules {
        let answer = |passes| move |rule: &Rule| Answer { rule: rule.clone(), passes };
        let swallowed = self.prologue_swallow.iter().map(answer(false));
        let passed = self.prologue_await.iter().map(answer(true));
        Rules {
            record: self.prologue.clone(),
            key: self.prologue_key.clone(),
            forget: self.prologue_forget.clone(),
            answers: swallowed.chain(passed).collect(),
            leaving: Vec::new(),
        }
    }
}

impl Protocol {
    /// As it is written after `--profile`.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn settings(self, given: Given) -> Result<Settings, String> {
        let own = self.own();
        let name = self.name();
        let on_backend_loss = given.on_backend_loss.unwrap_or(own.on_backend_loss);
        if let (OnBackendLoss::Keep, Some(why)) = (on_backend_loss, self.why_not_keep()) {
            return Err(format!("--on-backend-loss keep contradicts --profile {name}: {why}; leave it away"));
        }
        if given.confirm == Some(Confirm::Reply) {
            return Err(format!(
                "--confirm reply contradicts --profile {name}: not every message is answered by one, in order; \
                 write pong or pong+window"
            ));
        }
        if on_backend_loss == OnBackendLoss::Keep && given.delivery == Some(Guarantee::AtLeastOnce) {
            return Err(format!(
                "--delivery at-least-once contradicts --profile {name}: the backend would carry out an action twice; \
                 leave it away"
            ));
        }
        let keeps = on_backend_loss == OnBackendLoss::Keep;
        Ok(Settings {
            on_backend_loss,
            confirm: given.confirm.unwrap_or(own.confirm),
            guarantee: given.delivery.unwrap_or(own.guarantee),
            prologue: own.prologue.filter(|_| keeps),
            ..own
        })
    }

    /// The profile itself.
    fn own(self) -> Settings {
        let renew = Settings {
            on_backend_loss: OnBackendLoss::Renew,
            // Node, the BEAM, mosquitto and Tornado hand a message over before they read the Ping behind it.
            confirm: Confirm::Pong,
            guarantee: Guarantee::AtMostOnce,
            closes: Closes::GENERAL,
            prologue: None,
            answers_mutations: false,
        };
        match self {
            Self::GraphqlTransportWs => {
                Settings { closes: Closes::APPLICATION, answers_mutations: true, ..renew }
            }
            // Puma's reactor reads on while workers of a pool handle what came before.
            Self::ActionCable => Settings {
                on_backend_loss: OnBackendLoss::Keep,
                confirm: Confirm::PongWindow,
                closes: Closes { keeps_plain: true, ..Closes::GENERAL },
                prologue: Some(Arc::new(action_cable())),
                ..renew
            },
            // Kestrel reads into a pipe; the hub's loop follows.
            Self::SignalR => Settings { confirm: Confirm::PongWindow, ..renew },
            Self::Yjs => Settings { closes: Closes::APPLICATION, ..renew },
            Self::Phoenix | Self::Mqtt | Self::EngineIo | Self::Jupyter => renew,
        }
    }

    /// What a client that is kept would not get to know.
    fn why_not_keep(self) -> Option<&'static str> {
        match self {
            Self::ActionCable => None,
            Self::GraphqlTransportWs => {
                Some("the client must ask again for what it missed, with a token that is still good")
            }
            Self::Phoenix => Some("a channel must be joined again by the client, which knows since when"),
            Self::Mqtt => Some("packet identifiers and the session belong to the client and its broker"),
            Self::EngineIo => Some("a new server does not know the client's session id"),
            Self::SignalR => Some("a new server does not know the client's connection token"),
            Self::Jupyter => {
                Some("the client must ask for the kernel's state, and output it missed never comes")
            }
            Self::Yjs => Some("the client must compare its document with the server's"),
        }
    }
}

/// The client's subscriptions are made again behind the new connection's `welcome`. Its confirmations are passed on: they
/// run the application's `connected` callbacks, which fetch what was missed. Actions wait for them, as the server
/// handles commands concurrently and refuses one for a channel that is not subscribed yet.
fn action_cable() -> Rules {
    let json =
        |pointer: &str, value: &str| Pattern::Json { pointer: pointer.into(), value: Some(value.into()) };
    let answer = |kind, passes| Answer { rule: Rule::Each(json("/type", kind)), passes };
    Rules {
        record: vec![Rule::Each(json("/command", "subscribe"))],
        key: Some("/identifier".into()),
        forget: vec![json("/command", "unsubscribe"), json("/type", "reject_subscription")],
        answers: vec![answer("welcome", false), answer("confirm_subscription", true)],
        leaving: vec![json("/reason", "server_restart")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(profile: Protocol) -> ProfileFlags {
        ProfileFlags { profile: Some(profile), ..ProfileFlags::default() }
    }

    #[test]
    fn a_profile_is_renewed_unless_its_client_cannot_tell_the_difference() {
        for &protocol in Protocol::value_variants() {
            let settings = flags(protocol).settings(Given::default()).unwrap();
            let keeps = protocol == Protocol::ActionCable;
            assert_eq!(settings.on_backend_loss == OnBackendLoss::Keep, keeps, "{protocol:?}");
            assert_eq!(settings.prologue.is_some(), keeps, "{protocol:?}");
            assert_eq!(settings.guarantee, Guarantee::AtMostOnce, "{protocol:?}");
        }
    }

    #[test]
    fn what_contradicts_a_profile_is_an_error_that_says_why() {
        let keep = Given { on_backend_loss: Some(OnBackendLoss::Keep), ..Given::default() };
        let reply = Given { confirm: Some(Confirm::Reply), ..Given::default() };
        for &protocol in Protocol::value_variants() {
            let name = protocol.name();
            let error = flags(protocol).settings(reply).unwrap_err();
            assert!(error.contains("--confirm reply") && error.contains(&name), "{error}");
            if protocol != Protocol::ActionCable {
                let error = flags(protocol).settings(keep).unwrap_err();
                assert!(error.contains("--on-backend-loss keep") && error.contains(&name), "{error}");
            }
            let prologue = vec![Rule::First(1)];
            let error = ProfileFlags { prologue, ..flags(protocol) }.settings(Given::default()).unwrap_err();
            assert!(error.contains("--prologue"), "{error}");
        }
        let again = Given { delivery: Some(Guarantee::AtLeastOnce), ..Given::default() };
        assert!(flags(Protocol::ActionCable).settings(again).unwrap_err().contains("twice"));
    }

    #[test]
    fn what_refines_a_profile_wins() {
        let renew = Given {
            on_backend_loss: Some(OnBackendLoss::Renew),
            delivery: Some(Guarantee::AtLeastOnce),
            ..Given::default()
        };
        let settings = flags(Protocol::ActionCable).settings(renew).unwrap();
        assert_eq!(settings.on_backend_loss, OnBackendLoss::Renew);
        assert!(settings.prologue.is_none());
        let window = Given { confirm: Some(Confirm::PongWindow), ..Given::default() };
        assert_eq!(flags(Protocol::Mqtt).settings(window).unwrap().confirm, Confirm::PongWindow);
    }

    #[test]
    fn a_prologue_by_hand_needs_a_client_that_is_kept() {
        let by_hand = || ProfileFlags { prologue: vec![Rule::First(1)], ..ProfileFlags::default() };
        assert!(by_hand().settings(Given::default()).unwrap_err().contains("--on-backend-loss keep"));
        let keep = Given { on_backend_loss: Some(OnBackendLoss::Keep), ..Given::default() };
        assert!(by_hand().settings(keep).unwrap().prologue.is_some());
        let greeting = ProfileFlags { prologue_swallow: vec![Rule::First(1)], ..ProfileFlags::default() };
        assert!(greeting.settings(keep).unwrap().prologue.is_some());
        let many = ProfileFlags { prologue: vec![Rule::First(1); 17], ..ProfileFlags::default() };
        assert!(many.settings(keep).unwrap_err().contains("at most 16"));
        assert!(ProfileFlags::default().settings(keep).unwrap().prologue.is_none());
    }

    #[test]
    fn codes_of_the_applications_protocol_are_an_end_for_a_session_too() {
        let is_end = |protocol, code, is_plain| {
            let settings = flags(protocol).settings(Given::default()).unwrap();
            settings.closes.is_end(CloseCode::new(code), is_plain)
        };
        for protocol in [Protocol::GraphqlTransportWs, Protocol::Yjs] {
            assert_eq!(is_end(protocol, 4401, false), Some(true));
            assert_eq!(is_end(protocol, 1012, false), None);
        }
        assert_eq!(is_end(Protocol::Phoenix, 4401, false), None);
        assert_eq!(is_end(Protocol::ActionCable, 1012, true), Some(false));
        assert_eq!(is_end(Protocol::ActionCable, 1000, true), None);
        assert_eq!(is_end(Protocol::ActionCable, 1005, true), None);
    }
}
