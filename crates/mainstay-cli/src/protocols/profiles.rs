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

use crate::protocols::prologue::{Answer, Rules};
use crate::protocols::rules::{self, Pattern, Rule};
use crate::upstream::stickiness::Stickiness;

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
pub(crate) struct Overrides {
    pub(crate) on_backend_loss: Option<BackendLoss>,
    pub(crate) confirm: Option<Confirm>,
    pub(crate) delivery: Option<Guarantee>,
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
    /// Which clients need the same address of a backend with several.
    pub(crate) stickiness: Stickiness,
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
    /// Every code means what RFC 6455 says.
    pub(crate) const GENERAL: Self = Self { final_codes: None, keep_plain: false };
    /// 4000 to 4999 belong to applications; the client of this protocol knows their meaning.
    const APPLICATION: Self = Self { final_codes: Some(4000..=4999), keep_plain: false };

    /// Returns whether a code belongs to the application's protocol.
    pub(crate) fn are_final(&self, code: Option<CloseCode>) -> bool {
        code.is_some_and(|code| self.final_codes.as_ref().is_some_and(|codes| codes.contains(&code.get())))
    }
}

impl Protocol {
    /// Returns the protocol's name in the configuration.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns the protocol's settings, refined by those that are given.
    ///
    /// # Errors
    /// The field, and what it contradicts.
    pub(crate) fn settings(self, given: Overrides) -> Result<Settings, String> {
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
            stickiness: Stickiness::Off,
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
            Self::Phoenix => Settings { confirm: Confirm::PongWindow, ..renew },
            // The server that negotiated knows the client's connection token, and no other one does.
            Self::SignalR => {
                Settings { confirm: Confirm::PongWindow, stickiness: Stickiness::Address, ..renew }
            }
            Self::Yjs => Settings { closes: Closes::APPLICATION, ..renew },
            // The requests before the upgrade, and the kernels, are of one server.
            Self::EngineIo | Self::Jupyter => Settings { stickiness: Stickiness::Address, ..renew },
            Self::Mqtt => renew,
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

    #[test]
    fn codes_of_the_applications_protocol_end_a_session_too() {
        for &protocol in Protocol::value_variants() {
            let closes = protocol.settings(Overrides::default()).unwrap().closes;
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
