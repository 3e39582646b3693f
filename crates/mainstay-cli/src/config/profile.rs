//! `[routes.NAME.profile]`: the protocol that the backend speaks, and what a lost connection to it means.
//!
//! Not here: the settings of each protocol (`profiles`).

use std::sync::Arc;

use mainstay::{Confirm, Guarantee};

use super::text::{Expected, Text, Written};
use crate::protocols::profiles::{BackendLoss, Closes, ConfirmBy, Delivery, Overrides, Protocol, Settings};
use crate::protocols::prologue::{Answer, MAX_RULES, Rules};
use crate::protocols::rules::{self, Pattern, Rule};
use crate::upstream::stickiness::Stickiness;

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

    /// Combines the settings of a section with those of its protocol.
    ///
    /// # Errors
    /// The field, and what it contradicts.
    pub(crate) fn settings(&self) -> Result<Settings, String> {
        self.check_counts()?;
        let given = Overrides {
            on_backend_loss: self.on_backend_loss,
            confirm: self.confirm.map(|confirm| match confirm {
                ConfirmBy::Pong => Confirm::Pong,
                ConfirmBy::PongWindow => Confirm::PongWindow,
                ConfirmBy::Reply => Confirm::Reply,
            }),
            delivery: self.delivery.map(|delivery| match delivery {
                Delivery::AtLeastOnce => Guarantee::AtLeastOnce,
                Delivery::AtMostOnce => Guarantee::AtMostOnce,
            }),
        };
        let Some(protocol) = self.protocol else { return self.by_hand(given) };
        if self.prologue.is_set() {
            let name = protocol.name();
            return Err(format!(
                "prologue: <profile.protocol> {name} has its own prologue, or needs none; remove the <profile.prologue> or \
                 <profile.protocol>"
            ));
        }
        protocol.settings(given)
    }

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
            stickiness: Stickiness::Off,
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

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

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
}
