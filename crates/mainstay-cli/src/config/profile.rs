//! `[routes.NAME.profile]`: the protocol that the backend speaks, and what a lost connection to it means.
//!
//! Not here: the settings of each protocol (`profiles`).

use super::text::{Expected, Text, Written};
use crate::profiles::{BackendLoss, ConfirmBy, Delivery, Protocol, Settings};
use crate::rules::{self, Pattern, Rule};

/// The backend's protocol.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// The protocol that the backend speaks. Default: none. It sets the prologue, and what a lost backend connection,
    /// delivery and confirmation mean; docs/PROFILES.md has the values.
    pub(crate) protocol: Option<Protocol>,
    /// What happens to a client whose backend connection is lost: renew closes it or gives it a new session, keep connects
    /// it to the backend again. Default: renew, or the protocol's.
    pub(crate) on_backend_loss: Option<BackendLoss>,
    /// What happens to messages that the backend had not confirmed when its connection was lost: at-least-once sends them
    /// again, at-most-once drops and reports them. Default: at-least-once, or the protocol's.
    pub(crate) delivery: Option<Delivery>,
    /// What confirms that the backend received a message: a pong of its WebSocket stack; pong+window, a pong and 64 later
    /// messages; or the application's reply. Default: pong, or the protocol's.
    pub(crate) confirm: Option<ConfirmBy>,
    /// Frames of the client that are replayed to every new connection to the backend. Requires on-backend-loss keep.
    pub(crate) prologue: Prologue,
}

/// The prologue. A rule is first=N, until=REGEX, match=REGEX or json=/POINTER[=VALUE].
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Prologue {
    /// Rules for the client's frames to record.
    pub(crate) record: Vec<Text<Rule>>,
    /// A JSON pointer to the key of a recorded frame, for example /id: a later frame with the same key replaces it.
    pub(crate) key: Option<Text<Pointer>>,
    /// Patterns (match=REGEX or json=/POINTER[=VALUE]): a matching message of either end removes the recorded frames with its
    /// key. Requires a key.
    pub(crate) forget: Vec<Text<Pattern>>,
    /// Rules for answers of the backend that a client received before and does not receive again; the next frame of the
    /// prologue waits for them.
    pub(crate) hide: Vec<Text<Rule>>,
    /// Rules for answers of the backend that are waited for before the client's other messages follow; the client receives
    /// them again.
    #[serde(rename = "await")]
    pub(crate) awaits: Vec<Text<Rule>>,
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.prologue.forget.is_empty() && self.prologue.key.is_none() {
            return Err(
                "prologue.forget: <profile.prologue.forget> requires <profile.prologue.key>".to_owned()
            );
        }
        self.settings().map(drop)
    }

    /// Combines the settings with those of the protocol.
    ///
    /// # Errors
    /// The field, and what it contradicts.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        Settings::new(self)
    }
}

impl Prologue {
    /// Returns whether anything of it is set.
    pub(crate) fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

impl Written for Rule {
    const EXPECTED: Expected = Expected { kind: "rule", example: "json=/type=hello" };

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl Written for Pattern {
    const EXPECTED: Expected = Expected { kind: "pattern", example: "json=/type=goodbye" };

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

/// A JSON pointer.
#[derive(Clone)]
pub(crate) struct Pointer(pub(crate) String);

impl Written for Pointer {
    const EXPECTED: Expected = Expected { kind: "JSON pointer", example: "/id" };

    fn parse(text: &str) -> Result<Self, String> {
        rules::pointer(text).map(Self)
    }
}
