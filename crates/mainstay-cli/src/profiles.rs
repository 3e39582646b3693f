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
use mainstay::{CloseCode, Confirm, Guarantee, Message};
use serde::Deserialize;

use crate::prologue::{Answer, MOST_RULES, Rules};
use crate::relay::BackendLoss;
use crate::rules::{self, Pattern, Rule};

/// What is true of the backend: by `--profile`, or by hand.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ProfileFlags {
    /// The protocol that the backend speaks: sets what a lost backend connection means, what a new one is told first,
    /// and what counts as received, as docs/PROFILES.md says.
    #[arg(long, value_enum)]
    profile: Option<Protocol>,
    /// What becomes of a client whose backend connection is lost. Default: renew, or as the profile says.
    #[arg(long, value_enum)]
    on_backend_loss: Option<BackendLoss>,
    /// What becomes of messages that the backend did not confirm when its connection is lost. Default: at-least-once, or
    /// as the profile says.
    #[arg(long, value_enum)]
    delivery: Option<Delivery>,
    /// What confirms a message to the backend. Default: pong, or as the profile says.
    #[arg(long, value_enum)]
    confirm: Option<ConfirmBy>,
    /// A frame of the client that every new connection to the backend is told again, before anything else: first=N,
    /// until=REGEX, match=REGEX or json=/POINTER[=VALUE]. May be repeated. Needs --on-backend-loss keep.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    prologue: Vec<Rule>,
    /// What names a frame of the prologue, for example /id: a later frame of the same name takes its place.
    #[arg(long, value_name = "POINTER", value_parser = rules::pointer)]
    prologue_key: Option<String>,
    /// A message of the client or the backend after which the frames of its name are not told again: match=REGEX or
    /// json=/POINTER[=VALUE]. May be repeated. Needs --prologue-key.
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse, requires = "prologue_key")]
    prologue_forget: Vec<Pattern>,
    /// An answer of the backend, or its greeting, that the client does not get a second time; the next frame of the
    /// prologue waits for it. As --prologue; may be repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    prologue_swallow: Vec<Rule>,
    /// An answer of the backend that the client gets again, and that its other messages wait for. As --prologue; may be
    /// repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Delivery {
    /// Sent again: the backend may see a message twice.
    AtLeastOnce,
    /// Given up: the backend may miss a message.
    AtMostOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConfirmBy {
    /// Its WebSocket stack's Pong.
    Pong,
    /// The Pong, and 64 later messages: for stacks that read ahead.
    #[value(name = "pong+window")]
    PongWindow,
    /// The application's answer: one for each message, in order.
    Reply,
}

/// What the flags beside a profile say; `None`: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    on_backend_loss: Option<BackendLoss>,
    confirm: Option<Confirm>,
    delivery: Option<Guarantee>,
}

/// What follows from all of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) on_backend_loss: BackendLoss,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    pub(crate) closes: Closes,
    /// What a new backend connection is told first; only with `keep`.
    pub(crate) prologue: Option<Arc<Rules>>,
    /// GraphQL mutations in flight are answered when the backend is lost.
    pub(crate) answers_mutations: bool,
}

/// What the backend's close codes mean where the general rule would be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closes {
    /// Codes of the application's protocol: an end for a session too, with code and reason.
    words: Option<RangeInclusive<u16>>,
    /// With `keep`, a plain client too is kept when the backend closes as one does that restarts: its own client would
    /// only wait and come back.
    pub(crate) keep_plain: bool,
}

impl Closes {
    const GENERAL: Self = Self { words: None, keep_plain: false };
    /// 4000 to 4999 belong to applications; the protocol gives them a meaning that its client knows.
    const APPLICATION: Self = Self { words: Some(4000..=4999), keep_plain: false };

    /// Whether a close is the backend's word to its application, in a code of their protocol.
    pub(crate) fn are_words(&self, code: Option<CloseCode>) -> bool {
        code.is_some_and(|code| self.words.as_ref().is_some_and(|words| words.contains(&code.get())))
    }
}

impl ProfileFlags {
    /// Puts flags and profile together.
    ///
    /// # Errors
    /// What contradicts what, in one line.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        let confirm = self.confirm.map(|confirm| match confirm {
            ConfirmBy::Pong => Confirm::Pong,
            ConfirmBy::PongWindow => Confirm::PongWindow,
            ConfirmBy::Reply => Confirm::Reply,
        });
        let delivery = self.delivery.map(|delivery| match delivery {
            Delivery::AtLeastOnce => Guarantee::AtLeastOnce,
            Delivery::AtMostOnce => Guarantee::AtMostOnce,
        });
        self.with(Given { on_backend_loss: self.on_backend_loss, confirm, delivery })
    }

    fn with(&self, given: Given) -> Result<Settings, String> {
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
        let on_backend_loss = given.on_backend_loss.unwrap_or(BackendLoss::Renew);
        if self.has_prologue() && on_backend_loss != BackendLoss::Keep {
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
            announces_restart: None,
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
        if let (BackendLoss::Keep, Some(why)) = (on_backend_loss, self.why_not_keep()) {
            return Err(format!("--on-backend-loss keep contradicts --profile {name}: {why}; leave it away"));
        }
        if given.confirm == Some(Confirm::Reply) {
            return Err(format!(
                "--confirm reply contradicts --profile {name}: not every message is answered by one, in order; \
                 write pong or pong+window"
            ));
        }
        if on_backend_loss == BackendLoss::Keep && given.delivery == Some(Guarantee::AtLeastOnce) {
            return Err(format!(
                "--delivery at-least-once contradicts --profile {name}: the backend would carry out an action twice; \
                 leave it away"
            ));
        }
        let keeps = on_backend_loss == BackendLoss::Keep;
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
            on_backend_loss: BackendLoss::Renew,
            // Node, mosquitto and Tornado hand a message over before they read the Ping behind it.
            confirm: Confirm::Pong,
            guarantee: Guarantee::AtMostOnce,
            closes: Closes::GENERAL,
            prologue: None,
            answers_mutations: false,
        };
        match self {
            // Served on every stack, and some read ahead.
            Self::GraphqlTransportWs => Settings {
                confirm: Confirm::PongWindow,
                closes: Closes::APPLICATION,
                answers_mutations: true,
                ..renew
            },
            // Puma's reactor reads on while workers of a pool handle what came before.
            Self::ActionCable => Settings {
                on_backend_loss: BackendLoss::Keep,
                confirm: Confirm::PongWindow,
                closes: Closes { keep_plain: true, ..Closes::GENERAL },
                prologue: Some(Arc::new(action_cable())),
                ..renew
            },
            // A channel is a process with a mailbox, and Kestrel reads into a pipe: the application follows.
            Self::Phoenix | Self::SignalR => Settings { confirm: Confirm::PongWindow, ..renew },
            Self::Yjs => Settings { closes: Closes::APPLICATION, ..renew },
            Self::Mqtt | Self::EngineIo | Self::Jupyter => renew,
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
        announces_restart: Some(action_cable_restarts),
    }
}

/// `{"type":"disconnect","reason":"server_restart","reconnect":true}`; the close that follows has the code 1000. On its own
/// the client would wait for 6 to 12 s.
fn action_cable_restarts(message: &Message) -> bool {
    #[derive(Deserialize)]
    struct Disconnect<'a> {
        r#type: &'a str,
        reason: &'a str,
        reconnect: bool,
    }
    // All others are longer, or need not be read to the end.
    let short = message.as_text().filter(|text| text.len() < 256);
    let read = short.and_then(|text| serde_json::from_str(text).ok());
    read.is_some_and(|Disconnect { r#type, reason, reconnect }| {
        r#type == "disconnect" && reason == "server_restart" && reconnect
    })
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
            let settings = flags(protocol).with(Given::default()).unwrap();
            let keeps = protocol == Protocol::ActionCable;
            assert_eq!(settings.on_backend_loss == BackendLoss::Keep, keeps, "{protocol:?}");
            assert_eq!(settings.prologue.is_some(), keeps, "{protocol:?}");
            assert_eq!(settings.guarantee, Guarantee::AtMostOnce, "{protocol:?}");
        }
    }

    #[test]
    fn what_contradicts_a_profile_is_an_error_that_says_why() {
        let keep = Given { on_backend_loss: Some(BackendLoss::Keep), ..Given::default() };
        let reply = Given { confirm: Some(Confirm::Reply), ..Given::default() };
        for &protocol in Protocol::value_variants() {
            let name = protocol.name();
            let error = flags(protocol).with(reply).unwrap_err();
            assert!(error.contains("--confirm reply") && error.contains(&name), "{error}");
            if protocol != Protocol::ActionCable {
                let error = flags(protocol).with(keep).unwrap_err();
                assert!(error.contains("--on-backend-loss keep") && error.contains(&name), "{error}");
            }
            let prologue = vec![Rule::First(1)];
            let error = ProfileFlags { prologue, ..flags(protocol) }.with(Given::default()).unwrap_err();
            assert!(error.contains("--prologue"), "{error}");
        }
        let again = Given { delivery: Some(Guarantee::AtLeastOnce), ..Given::default() };
        assert!(flags(Protocol::ActionCable).with(again).unwrap_err().contains("twice"));
    }

    #[test]
    fn what_refines_a_profile_wins() {
        let renew = Given {
            on_backend_loss: Some(BackendLoss::Renew),
            delivery: Some(Guarantee::AtLeastOnce),
            ..Given::default()
        };
        let settings = flags(Protocol::ActionCable).with(renew).unwrap();
        assert_eq!(settings.on_backend_loss, BackendLoss::Renew);
        assert!(settings.prologue.is_none());
        let window = Given { confirm: Some(Confirm::PongWindow), ..Given::default() };
        assert_eq!(flags(Protocol::Mqtt).with(window).unwrap().confirm, Confirm::PongWindow);
    }

    #[test]
    fn a_prologue_by_hand_needs_a_client_that_is_kept() {
        let by_hand = || ProfileFlags { prologue: vec![Rule::First(1)], ..ProfileFlags::default() };
        assert!(by_hand().with(Given::default()).unwrap_err().contains("--on-backend-loss keep"));
        let keep = Given { on_backend_loss: Some(BackendLoss::Keep), ..Given::default() };
        assert!(by_hand().with(keep).unwrap().prologue.is_some());
        let greeting = ProfileFlags { prologue_swallow: vec![Rule::First(1)], ..ProfileFlags::default() };
        assert!(greeting.with(keep).unwrap().prologue.is_some());
        let many = ProfileFlags { prologue: vec![Rule::First(1); 17], ..ProfileFlags::default() };
        assert!(many.with(keep).unwrap_err().contains("at most 16"));
        assert!(ProfileFlags::default().with(keep).unwrap().prologue.is_none());
    }

    #[test]
    fn codes_of_the_applications_protocol_are_an_end_for_a_session_too() {
        for &protocol in Protocol::value_variants() {
            let closes = flags(protocol).with(Given::default()).unwrap().closes;
            let has_words = matches!(protocol, Protocol::GraphqlTransportWs | Protocol::Yjs);
            for (code, expected) in [(4401, has_words), (4999, has_words), (1012, false), (1000, false)] {
                assert_eq!(closes.are_words(CloseCode::new(code)), expected, "{protocol:?} {code}");
            }
            assert!(!closes.are_words(None));
        }
    }

    #[test]
    fn only_a_restart_that_is_announced_is_one() {
        let announces = |text: &str| action_cable_restarts(&Message::text(text));
        assert!(announces(r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#));
        for other in [
            r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#,
            r#"{"type":"disconnect","reason":"remote","reconnect":true}"#,
            r#"{"type":"disconnect","reason":"server_restart","reconnect":false}"#,
            r#"{"identifier":"{}","message":{"reason":"server_restart"}}"#,
        ] {
            assert!(!announces(other), "{other}");
        }
    }
}
