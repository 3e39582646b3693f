//! Profiles: the settings of a protocol, by one flag instead of five.
//!
//! A profile sets what a lost backend connection means (`--on-backend-loss`), what is replayed to a new one (the prologue),
//! what confirms a message (`--confirm`, `--delivery`), and which close codes of the backend belong to the application's
//! protocol. Other flags may refine a profile. A flag that would hide a loss, or repeat what must not be repeated, is an
//! error. `docs/PROFILES.md` has the reasons, protocol by protocol.
//!
//! Not here: the syntax of rules (`rules`), the replay of a prologue (`prologue`).

use std::ops::RangeInclusive;
use std::sync::Arc;

use clap::ValueEnum;
use mainstay::{CloseCode, Confirm, Guarantee, Message};
use serde::Deserialize;

use crate::config::Text;
use crate::config::profile::{Prologue, Section};
use crate::prologue::{Answer, MAX_RULES, Rules};
use crate::rules::{self, Pattern, Rule};

/// Flags for the backend's protocol: `--profile`, or single settings.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct ProfileFlags {
    /// The protocol that the backend speaks. Default: none. A profile sets the prologue, and what a lost backend connection,
    /// delivery and confirmation mean; docs/PROFILES.md has the values.
    #[arg(long, value_enum)]
    profile: Option<Protocol>,
    /// What happens to a client whose backend connection is lost. Default: renew, or the profile's.
    #[arg(long, value_enum)]
    on_backend_loss: Option<BackendLoss>,
    /// What happens to messages that the backend had not confirmed when its connection was lost. Default: at-least-once, or
    /// the profile's.
    #[arg(long, value_enum)]
    delivery: Option<Delivery>,
    /// What confirms that the backend received a message. Default: pong, or the profile's.
    #[arg(long, value_enum)]
    confirm: Option<ConfirmBy>,
    /// Record the client's frames that match, and replay them to every new connection to the backend before anything else:
    /// first=N, until=REGEX, match=REGEX or json=/POINTER[=VALUE]. May be repeated. Requires --on-backend-loss keep.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    prologue: Vec<Rule>,
    /// A JSON pointer to the key of a recorded frame, for example /id: a later frame with the same key replaces it.
    #[arg(long, value_name = "POINTER", value_parser = rules::pointer)]
    prologue_key: Option<String>,
    /// Remove the recorded frames that have the key of a matching message of the client or the backend: match=REGEX or
    /// json=/POINTER[=VALUE]. May be repeated. Requires --prologue-key.
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    prologue_forget: Vec<Pattern>,
    /// Hide a matching answer of the backend, or its greeting, from a client that received it before; the next frame of the
    /// prologue waits for it. Syntax as --prologue. May be repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    prologue_hide: Vec<Rule>,
    /// Wait for a matching answer of the backend before the client's other messages follow; the client receives it again.
    /// Syntax as --prologue. May be repeated.
    #[arg(long, value_name = "RULE", value_parser = Rule::parse)]
    prologue_await: Vec<Rule>,
}

/// What happens to a client whose backend connection is lost.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BackendLoss {
    /// The client is closed with 1012 or gets a new session at once, and its application initialises again. For backends
    /// that keep state in the connection, such as a login, a subscription or a room.
    Renew,
    /// The client stays connected, and the gateway opens a new connection to the backend. For backends that keep no state in
    /// the connection.
    Keep,
}

/// The protocols that have a profile.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub(crate) enum Protocol {
    /// GraphQL over WebSocket (graphql-ws, Apollo).
    #[value(name = "graphql-transport-ws")]
    #[serde(rename = "graphql-transport-ws")]
    GraphqlTransportWs,
    /// Phoenix channels and LiveView.
    #[value(name = "phoenix")]
    #[serde(rename = "phoenix")]
    Phoenix,
    /// Action Cable (Rails).
    #[value(name = "actioncable")]
    #[serde(rename = "actioncable")]
    ActionCable,
    /// MQTT 3.1.1 and 5.
    #[value(name = "mqtt")]
    #[serde(rename = "mqtt")]
    Mqtt,
    /// Engine.IO and Socket.IO.
    #[value(name = "engine.io")]
    #[serde(rename = "engine.io")]
    EngineIo,
    /// SignalR hubs.
    #[value(name = "signalr")]
    #[serde(rename = "signalr")]
    SignalR,
    /// Jupyter kernel channels.
    #[value(name = "jupyter")]
    #[serde(rename = "jupyter")]
    Jupyter,
    /// Yjs (y-websocket, Hocuspocus).
    #[value(name = "yjs")]
    #[serde(rename = "yjs")]
    Yjs,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Delivery {
    /// They are sent again: the backend may receive a message twice.
    AtLeastOnce,
    /// They are dropped and reported: the backend may miss a message.
    AtMostOnce,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ConfirmBy {
    /// A Pong of the backend's WebSocket stack.
    Pong,
    /// A Pong, and 64 later messages: for stacks that read ahead of the application.
    #[value(name = "pong+window")]
    #[serde(rename = "pong+window")]
    PongWindow,
    /// The application's reply: the backend sends one for each message, in order.
    Reply,
}

/// The settings that refine a protocol's; `None` if not given.
#[derive(Clone, Copy, Debug, Default)]
struct Overrides {
    on_backend_loss: Option<BackendLoss>,
    confirm: Option<Confirm>,
    delivery: Option<Guarantee>,
}

/// The settings that result from the protocol's and the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) on_backend_loss: BackendLoss,
    pub(crate) confirm: Confirm,
    pub(crate) guarantee: Guarantee,
    pub(crate) closes: Closes,
    /// What is replayed to a new backend connection; only with `keep`.
    pub(crate) prologue: Option<Arc<Rules>>,
    /// GraphQL mutations in flight are answered when the backend is lost.
    pub(crate) answers_mutations: bool,
}

/// How the backend's close codes differ from the general rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closes {
    /// Codes of the application's protocol. They end a session too, and the client receives code and reason.
    final_codes: Option<RangeInclusive<u16>>,
    /// With `keep`, a plain client is kept too when the backend closes with the code of a restart: closed, it would only
    /// wait and reconnect.
    pub(crate) keep_plain: bool,
}

impl Closes {
    const GENERAL: Self = Self { final_codes: None, keep_plain: false };
    /// 4000 to 4999 belong to applications; the client of this protocol knows their meaning.
    const APPLICATION: Self = Self { final_codes: Some(4000..=4999), keep_plain: false };

    /// Returns whether a code belongs to the application's protocol.
    pub(crate) fn are_final(&self, code: Option<CloseCode>) -> bool {
        code.is_some_and(|code| self.final_codes.as_ref().is_some_and(|codes| codes.contains(&code.get())))
    }
}

impl Settings {
    /// Combines the settings of a section with those of its protocol.
    ///
    /// # Errors
    /// The field, and what it contradicts.
    pub(crate) fn new(section: &Section) -> Result<Self, String> {
        section.check_counts()?;
        let given = Overrides {
            on_backend_loss: section.on_backend_loss,
            confirm: section.confirm.map(|confirm| match confirm {
                ConfirmBy::Pong => Confirm::Pong,
                ConfirmBy::PongWindow => Confirm::PongWindow,
                ConfirmBy::Reply => Confirm::Reply,
            }),
            delivery: section.delivery.map(|delivery| match delivery {
                Delivery::AtLeastOnce => Guarantee::AtLeastOnce,
                Delivery::AtMostOnce => Guarantee::AtMostOnce,
            }),
        };
        let Some(protocol) = section.protocol else { return section.by_hand(given) };
        if section.prologue.is_set() {
            let name = protocol.name();
            return Err(format!(
                "prologue: <profile.protocol> {name} has its own prologue, or needs none; remove the <profile.prologue> or \
                 <profile.protocol>"
            ));
        }
        protocol.settings(given)
    }
}

impl Section {
    fn by_hand(&self, given: Overrides) -> Result<Settings, String> {
        let on_backend_loss = given.on_backend_loss.unwrap_or(BackendLoss::Renew);
        let has_prologue = self.prologue.is_set();
        if has_prologue && on_backend_loss != BackendLoss::Keep {
            return Err("prologue: <profile.prologue> requires <profile.on-backend-loss> keep: with renew the client itself \
                        starts again"
                .into());
        }
        Ok(Settings {
            on_backend_loss,
            confirm: given.confirm.unwrap_or_default(),
            guarantee: given.delivery.unwrap_or_default(),
            closes: Closes::GENERAL,
            prologue: has_prologue.then(|| Arc::new(self.prologue.rules())),
            answers_mutations: false,
        })
    }

    fn check_counts(&self) -> Result<(), String> {
        let Prologue { record, forget, hide, awaits, .. } = &self.prologue;
        for (field, count, named) in [
            ("record", record.len(), "<profile.prologue.record>"),
            ("forget", forget.len(), "<profile.prologue.forget>"),
            ("hide", hide.len() + awaits.len(), "<profile.prologue.hide> and <profile.prologue.await>"),
        ] {
            if count > MAX_RULES {
                return Err(format!(
                    "prologue.{field}: {named}: at most {MAX_RULES} rules; combine some with | in one match=REGEX"
                ));
            }
        }
        Ok(())
    }
}

impl Prologue {
    fn rules(&self) -> Rules {
        let answer = |passes| move |rule: &Text<Rule>| Answer { rule: (**rule).clone(), passes };
        let hidden = self.hide.iter().map(answer(false));
        let passed = self.awaits.iter().map(answer(true));
        Rules {
            record: self.record.iter().map(|rule| (**rule).clone()).collect(),
            key: self.key.as_ref().map(|pointer| pointer.0.clone()),
            forget: self.forget.iter().map(|pattern| (**pattern).clone()).collect(),
            answers: hidden.chain(passed).collect(),
            announces_restart: None,
        }
    }
}

impl Protocol {
    /// Returns the protocol's name in the configuration.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn settings(self, given: Overrides) -> Result<Settings, String> {
        let own = self.own();
        let name = self.name();
        let on_backend_loss = given.on_backend_loss.unwrap_or(own.on_backend_loss);
        if let (BackendLoss::Keep, Some(why)) = (on_backend_loss, self.why_not_keep()) {
            return Err(format!(
                "on-backend-loss: <profile.on-backend-loss> keep contradicts <profile.protocol> {name}: {why}; remove one of them"
            ));
        }
        if given.confirm == Some(Confirm::Reply) {
            return Err(format!(
                "confirm: <profile.confirm> reply contradicts <profile.protocol> {name}: the protocol does not answer every message, in order; \
                 write pong or pong+window"
            ));
        }
        if on_backend_loss == BackendLoss::Keep && given.delivery == Some(Guarantee::AtLeastOnce) {
            return Err(format!(
                "delivery: <profile.delivery> at-least-once contradicts <profile.protocol> {name}: the backend could execute an action twice; \
                 remove one of them"
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

    /// Returns the profile's own settings.
    fn own(self) -> Settings {
        let renew = Settings {
            on_backend_loss: BackendLoss::Renew,
            // Node, mosquitto and Tornado deliver a message to the application before they read the Ping behind it.
            confirm: Confirm::Pong,
            guarantee: Guarantee::AtMostOnce,
            closes: Closes::GENERAL,
            prologue: None,
            answers_mutations: false,
        };
        match self {
            // Servers exist on every stack, and some stacks read ahead.
            Self::GraphqlTransportWs => Settings {
                confirm: Confirm::PongWindow,
                closes: Closes::APPLICATION,
                answers_mutations: true,
                ..renew
            },
            // Puma's reactor reads on while a thread pool handles earlier messages.
            Self::ActionCable => Settings {
                on_backend_loss: BackendLoss::Keep,
                confirm: Confirm::PongWindow,
                closes: Closes { keep_plain: true, ..Closes::GENERAL },
                prologue: Some(Arc::new(action_cable())),
                ..renew
            },
            // A Phoenix channel is a process with a mailbox, and Kestrel reads into a pipe: both run ahead of the
            // application.
            Self::Phoenix | Self::SignalR => Settings { confirm: Confirm::PongWindow, ..renew },
            Self::Yjs => Settings { closes: Closes::APPLICATION, ..renew },
            Self::Mqtt | Self::EngineIo | Self::Jupyter => renew,
        }
    }

    /// Returns why a client of this protocol must not be kept; `None` if it may be.
    fn why_not_keep(self) -> Option<&'static str> {
        match self {
            Self::ActionCable => None,
            Self::GraphqlTransportWs => {
                Some("the client must request again what it missed, with a valid token")
            }
            Self::Phoenix => Some("only the client can join a channel again, from where it stopped"),
            Self::Mqtt => Some("packet identifiers and the session belong to the client and its broker"),
            Self::EngineIo => Some("a new server does not know the client's session id"),
            Self::SignalR => Some("a new server does not know the client's connection token"),
            Self::Jupyter => {
                Some("the client must request the kernel's state, and output that it missed never arrives")
            }
            Self::Yjs => Some("the client must compare its document with the server's"),
        }
    }
}

/// Returns the prologue of Action Cable: the client's subscriptions are replayed after the new connection's `welcome`. The
/// confirmations pass to the client: they run the application's `connected` callbacks, which fetch what was missed.
/// Actions wait for them, because the server handles commands concurrently and refuses an action for a channel that is
/// not subscribed yet.
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

/// Recognises `{"type":"disconnect","reason":"server_restart","reconnect":true}`; the Close that follows has the code 1000.
/// A client that receives it would wait for 6 to 12 s.
fn action_cable_restarts(message: &Message) -> bool {
    #[derive(Deserialize)]
    struct Disconnect<'a> {
        r#type: &'a str,
        reason: &'a str,
        reconnect: bool,
    }
    // A longer message is not an announcement, and is not parsed.
    let short = message.as_text().filter(|text| text.len() < 256);
    let read = short.and_then(|text| serde_json::from_str(text).ok());
    read.is_some_and(|Disconnect { r#type, reason, reconnect }| {
        r#type == "disconnect" && reason == "server_restart" && reconnect
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(protocol: Protocol) -> Section {
        Section { protocol: Some(protocol), ..Section::default() }
    }

    fn first() -> Text<Rule> {
        Text::new("first=1").unwrap()
    }

    #[test]
    fn a_profile_renews_unless_its_client_cannot_tell_the_difference() {
        for &protocol in Protocol::value_variants() {
            let settings = profile(protocol).settings().unwrap();
            let keeps = protocol == Protocol::ActionCable;
            assert_eq!(settings.on_backend_loss == BackendLoss::Keep, keeps, "{protocol:?}");
            assert_eq!(settings.prologue.is_some(), keeps, "{protocol:?}");
            assert_eq!(settings.guarantee, Guarantee::AtMostOnce, "{protocol:?}");
        }
    }

    #[test]
    fn a_setting_that_contradicts_a_profile_is_an_error_with_the_reason() {
        for &protocol in Protocol::value_variants() {
            let name = protocol.name();
            let reply = Section { confirm: Some(ConfirmBy::Reply), ..profile(protocol) };
            let error = reply.settings().unwrap_err();
            assert!(error.contains("<profile.confirm> reply") && error.contains(&name), "{error}");
            if protocol != Protocol::ActionCable {
                let keep = Section { on_backend_loss: Some(BackendLoss::Keep), ..profile(protocol) };
                let error = keep.settings().unwrap_err();
                assert!(error.contains("<profile.on-backend-loss> keep") && error.contains(&name), "{error}");
            }
            let prologue = Prologue { record: vec![first()], ..Prologue::default() };
            let error = Section { prologue, ..profile(protocol) }.settings().unwrap_err();
            assert!(error.contains("<profile.prologue>"), "{error}");
        }
        let again = Section { delivery: Some(Delivery::AtLeastOnce), ..profile(Protocol::ActionCable) };
        assert!(again.settings().unwrap_err().contains("twice"));
    }

    #[test]
    fn a_setting_that_refines_a_profile_wins() {
        let renew = Section {
            on_backend_loss: Some(BackendLoss::Renew),
            delivery: Some(Delivery::AtLeastOnce),
            ..profile(Protocol::ActionCable)
        };
        let settings = renew.settings().unwrap();
        assert_eq!(settings.on_backend_loss, BackendLoss::Renew);
        assert!(settings.prologue.is_none());
        let window = Section { confirm: Some(ConfirmBy::PongWindow), ..profile(Protocol::Mqtt) };
        assert_eq!(window.settings().unwrap().confirm, Confirm::PongWindow);
    }

    #[test]
    fn a_prologue_without_a_profile_requires_keep() {
        let with = |prologue: Prologue, on_backend_loss| {
            Section { prologue, on_backend_loss, ..Section::default() }.settings()
        };
        let record = |count| Prologue { record: vec![first(); count], ..Prologue::default() };
        let keep = Some(BackendLoss::Keep);
        assert!(with(record(1), None).unwrap_err().contains("<profile.on-backend-loss> keep"));
        assert!(with(record(1), keep).unwrap().prologue.is_some());
        let greeting = Prologue { hide: vec![first()], ..Prologue::default() };
        assert!(with(greeting, keep).unwrap().prologue.is_some());
        assert!(with(record(17), keep).unwrap_err().contains("at most 16"));
        assert!(with(Prologue::default(), keep).unwrap().prologue.is_none());
    }

    #[test]
    fn codes_of_the_applications_protocol_end_a_session_too() {
        for &protocol in Protocol::value_variants() {
            let closes = profile(protocol).settings().unwrap().closes;
            let has_codes = matches!(protocol, Protocol::GraphqlTransportWs | Protocol::Yjs);
            for (code, expected) in [(4401, has_codes), (4999, has_codes), (1012, false), (1000, false)] {
                assert_eq!(closes.are_final(CloseCode::new(code)), expected, "{protocol:?} {code}");
            }
            assert!(!closes.are_final(None));
        }
    }

    #[test]
    fn only_the_announcement_of_a_restart_is_recognised() {
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
