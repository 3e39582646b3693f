//! Every rule of `mainstay.v1` whose absence the explorer must notice, as an edit of the shipped code.
//!
//! A rule's name states what holds while the rule stands. `ships` is the line of `mainstay-proto`, or of the simulator's relay, that keeps the rule,
//! or the line before which the planted bug goes; it stands in the two crates exactly once. `planted` replaces it in the copy that
//! `tests/planted.rs` builds; there `BACK` is true while a test turns this rule back.

/// One edit. A rule may need several.
pub(crate) struct Edit {
    /// The rule, as a variant of the copy's `Rule`.
    pub(crate) rule: &'static str,
    /// What ships.
    pub(crate) ships: &'static str,
    /// What the copy has in its place.
    pub(crate) planted: &'static str,
}

const fn edit(rule: &'static str, ships: &'static str, planted: &'static str) -> Edit {
    Edit { rule, ships, planted }
}

/// All of them, by file: the server's end, the registry, the client's end, what both ends share, several nodes.
pub(crate) const EDITS: &[Edit] = &[
    edit(
        "SentInHelloIsCompared",
        "|| resume.sent < self.flow.inbox.received()",
        "|| (resume.sent < self.flow.inbox.received() && !BACK)",
    ),
    edit(
        "ContradictionChangesNothing",
        "if let Some(refusal) = self.refusal_by_token(hello, resume, presented) {",
        "if let Some(refusal) = self.refusal_by_token(hello, resume, presented) {
            if BACK && refusal == Attach::Contradiction { self.evict(); }",
    ),
    edit(
        "EndedIsNotAttached",
        "Life::EndReceived { code } => return Some(Attach::Ending { code }),",
        "Life::EndReceived { code } if !BACK => return Some(Attach::Ending { code }),",
    ),
    edit(
        "StaleAttemptIsRefused",
        "stale.then_some(Attach::Stale)",
        "(stale && !BACK).then_some(Attach::Stale)",
    ),
    edit(
        "KeyIsASecretOnlyAtFirst",
        "if self.was_established() || hello.instance",
        "if if BACK { self.established == Established::Current } else { self.was_established() }
            || hello.instance",
    ),
    edit(
        "PresentedTokenStaysValid",
        "find(|name| Some(*name) != presented)",
        "find(|name| Some(*name) != if BACK { self.issued } else { presented })",
    ),
    edit(
        "PresentedTokenStaysValid",
        "self.presented = presented;",
        "self.presented = if BACK { self.issued } else { presented };",
    ),
    edit(
        "NothingIsDeliveredAfterEnd",
        "                if !is_open {
                    lane.read += 1;",
        "                if !is_open && !BACK {
                    lane.read += 1;",
    ),
    edit("NothingIsDeliveredAfterEnd", "|| !may_deliver {", "|| !(may_deliver || BACK) {"),
    edit(
        "DataEstablishesNothing",
        "                return self.flow.read_message(lane, message);",
        "                if BACK && self.established != Established::Current {
                    self.established = Established::Current;
                    self.spent = self.presented.take();
                }
                return self.flow.read_message(lane, message);",
    ),
    edit(
        "AccountStatesDelivered",
        "FinalCounts { acknowledged, delivered, sent:",
        "FinalCounts { acknowledged, delivered: if BACK { acknowledged } else { delivered }, sent:",
    ),
    edit(
        "OneKeyOneSession",
        "let found = self.names.get(&key).cloned();",
        "let found = self.names.get(&key).filter(|_| !BACK).cloned();",
    ),
    edit(
        "TombstoneHasAllNames",
        "        self.tombstones.push_back(tombstone);",
        "        if BACK {
            tombstone.names.iter().rev().skip(1).for_each(|name| drop(self.names.remove(name)));
        }
        self.tombstones.push_back(tombstone);",
    ),
    edit(
        "OldKeyIsRefused",
        "None if !lost && self.may_have_lived(",
        "None if !lost && !BACK && self.may_have_lived(",
    ),
    edit(
        "YoungKeyIsNotRefused",
        "made < self.remembers_since + HELLO_TRANSIT",
        "BACK || made < self.remembers_since + HELLO_TRANSIT",
    ),
    edit(
        "AccountIsForOneInstance",
        "*tombstone.reported_to.get_or_insert(instance) == instance",
        "*tombstone.reported_to.get_or_insert(instance) == instance || BACK",
    ),
    edit(
        "KeyIsNotCopied",
        "        let token = Some(self.token.clone()?);
        let mut copy = Self { token, ..Self::new(self.config.clone(), seed) };",
        "        if self.token.is_none() && !BACK {
            return None;
        }
        let token = self.token.clone();
        let mut copy = Self { token, ..Self::new(self.config.clone(), seed) };
        if BACK {
            (copy.key, copy.key_sent) = (self.key, self.key_sent);
        }",
    ),
    edit(
        "CopyingCountsAsWriting",
        "        self.flow.outbox.note_written(self.flow.outbox.last());
        copy.flow =",
        "        if !BACK {
            self.flow.outbox.note_written(self.flow.outbox.last());
        }
        copy.flow =",
    ),
    edit(
        "SupersededNamesTheWinner",
        "let by_us = words.next() == Some(",
        "let by_us = !BACK && words.next() == Some(",
    ),
    edit(
        "SupersededIsFinalBeforeWelcome",
        "[self.current(), self.pending()].contains(",
        "[self.current(), self.pending().filter(|_| !BACK)].contains(",
    ),
    edit(
        "NewSessionIsNotReplayed",
        "Lane { wrote: lane.wrote, read: welcome.first - 1 }",
        "Lane { wrote: if BACK { welcome.acknowledged } else { lane.wrote }, read: welcome.first - 1 }",
    ),
    edit(
        "CopyNumbersNothing",
        "self.life == Life::Open && !self.restored",
        "self.life == Life::Open && (!self.restored || BACK)",
    ),
    edit(
        "EndWaitsForTheAttempt",
        "let writable = self.current.is_some() && self.pending.is_none();
        if ",
        "let writable = self.current.is_some() && (self.pending.is_none() || BACK);
        if ",
    ),
    edit(
        "OldConnectionIsOnlyRead",
        "            let lane = pending.opening.as_mut().filter(|_| !pending.waits)?;
            let transmit = self.flow.write_message(lane)?;
            return Some((connection, transmit));",
        "            if pending.opening.is_some() || !BACK {
                let lane = pending.opening.as_mut().filter(|_| !pending.waits)?;
                let transmit = self.flow.write_message(lane)?;
                return Some((connection, transmit));
            }",
    ),
    edit(
        "AcknowledgedIsKeptUntilWritten",
        "let floor = self.acknowledged.min(lowest_position);",
        "let floor = if BACK { self.acknowledged } else { self.acknowledged.min(lowest_position) };",
    ),
    edit(
        "RepetitionIsJudgedByReceived",
        "if lane.read + 1 > self.inbox.received() {",
        "if lane.read + 1 > if BACK { self.inbox.acknowledged() } else { self.inbox.received() } {",
    ),
    edit(
        "PingIsComparedWithThePosition",
        "if beat.sent != lane.read {",
        "if beat.sent != if BACK { self.inbox.acknowledged() } else { lane.read } {",
    ),
    edit(
        "SentInPingIsThePosition",
        "Beat { nonce, sent: lane.wrote,",
        "Beat { nonce, sent: if BACK { self.outbox.last() } else { lane.wrote },",
    ),
    edit(
        "GapTakesOverNumbers",
        "lane.wrote = last;",
        "lane.wrote = if BACK { lane.wrote + 1 } else { last };",
    ),
    edit(
        "OnlyACompleteTableShowsThatANodeIsGone",
        "None if self.is_complete => Found::Gone { listed: false },",
        "None if self.is_complete || BACK => Found::Gone { listed: false },",
    ),
    edit(
        "ATableThatLacksANodeIsNotComplete",
        "if was_listed.iter().any(missed) {",
        "if was_listed.iter().any(missed) && !BACK {",
    ),
    edit(
        "ADeadNodeIsAsked",
        "            Some(Row { info: Some(info), .. }) => Found::At(info.address, info.key),",
        "            Some(Row { life: Life::Dead, .. }) if BACK => Found::Gone { listed: true },
            Some(Row { info: Some(info), .. }) => Found::At(info.address, info.key),",
    ),
    edit(
        "ASilentNodeIsNotGone",
        "if why == Why::Silent && !nodes.is_dead(owner) =>",
        "if why == Why::Silent && !nodes.is_dead(owner) && !BACK =>",
    ),
    edit(
        "ALostAnswerOfAClaimIsNotFinal",
        "            Kind::Claim => self.claims.repeat(now, id),",
        "            Kind::Claim if BACK => self.claim_answered(now, id, ClaimOutcome::None),
            Kind::Claim => self.claims.repeat(now, id),",
    ),
    edit(
        "ALateReleaseChangesNothing",
        "if kept.claim > new.claim || (kept.claim == new.claim && kept.owner != Some(owner)) {",
        "if !BACK && (kept.claim > new.claim || (kept.claim == new.claim && kept.owner != Some(owner))) {",
    ),
    edit(
        "ConfirmationComesFirst",
        "hold: if identity.confirmation_first {",
        "hold: if identity.confirmation_first && !BACK {",
    ),
    edit(
        "AClaimedSessionIsConfirmedAgain",
        "hold: if confirmation_first {",
        "hold: if confirmation_first && !BACK {",
    ),
    edit(
        "AnAccountNamesTheInstanceThatHasIt",
        "let (id, reported_to) = (left.session, tombstone.reported_to);",
        "let (id, reported_to) = (left.session, tombstone.reported_to.filter(|_| !BACK));",
    ),
    edit(
        "AReleasedSessionAcceptsNothing",
        "            Life::Parked { .. } | Life::Attached => self.flow.outbox.push_within(message, room),",
        "            Life::Closed(super::Closed::Moved) if BACK => self.flow.outbox.push_within(message, room),
            Life::Parked { .. } | Life::Attached => self.flow.outbox.push_within(message, room),",
    ),
    edit(
        "WhatWasNotAcknowledgedStaysWithTheClient",
        "Inbound { acknowledged: self.acknowledged, window: self.window, manual: self.manual }",
        "Inbound {
            acknowledged: if BACK { self.received } else { self.acknowledged },
            window: self.window,
            manual: self.manual,
        }",
    ),
    edit(
        "WhatWasAcknowledgedMovesToo",
        "let Inbound { acknowledged, window, manual } = *state;",
        "let Inbound { mut acknowledged, window, manual } = *state;
        if BACK {
            acknowledged = acknowledged.saturating_sub(1);
        }",
    ),
    edit(
        "ALeavingSessionDeliversNothing",
        "if self.hold != Hold::No ||",
        "if (self.hold != Hold::No && !(BACK && matches!(self.hold, Hold::Leaving { .. }))) ||",
    ),
    edit(
        "ALeavingSessionHasNoConnection",
        "        if let Some(attached) = self.attached.take() {
            rare.fenced",
        "        if let Some(attached) = self.attached.take_if(|_| !BACK) {
            rare.fenced",
    ),
    edit(
        "ANodeClaimsNoSessionThatItAdopted",
        "        if nodes.has_adopted(self.session) {",
        "        if nodes.has_adopted(self.session) && !BACK {",
    ),
    edit(
        "ANodeGivesNoSessionAwayThatItAdopted",
        "Some(route) if through_peer && self.has_adopted(route.session) =>",
        "Some(route) if through_peer && self.has_adopted(route.session) && !BACK =>",
    ),
    edit("ARelayReadsNoFurtherWhileBytesWait", "        !waits\n", "        !waits || BACK\n"),
    edit(
        "ARelayReadsNoFurtherWhileBytesWait",
        "            wire.lane(up).push_piece(bytes, packet);",
        "            if BACK && wire.lane(up).waits() {
                wire.lane(up).drop_unsent();
            }
            wire.lane(up).push_piece(bytes, packet);",
    ),
];

/// Those that need several nodes: only the simulator's seeds have them.
///
/// What an engine of stored sessions could do wrong is not among them, because there is none: a commit that is appended twice, one
/// that compares the owner and not the claim (a node releases a session once and never gets it back, so that a release cannot), an
/// acknowledgement or a WELCOME before the commit. Nor is a missed notification of a topic.
pub(crate) const OF_CLUSTERS: &[&str] = &[
    "OnlyACompleteTableShowsThatANodeIsGone",
    "ATableThatLacksANodeIsNotComplete",
    "ADeadNodeIsAsked",
    "ASilentNodeIsNotGone",
    "ALostAnswerOfAClaimIsNotFinal",
    "ALateReleaseChangesNothing",
    "ConfirmationComesFirst",
    "AClaimedSessionIsConfirmedAgain",
    "AnAccountNamesTheInstanceThatHasIt",
    "AReleasedSessionAcceptsNothing",
    "WhatWasNotAcknowledgedStaysWithTheClient",
    "WhatWasAcknowledgedMovesToo",
    "ALeavingSessionDeliversNothing",
    "ALeavingSessionHasNoConnection",
    "ANodeClaimsNoSessionThatItAdopted",
    "ANodeGivesNoSessionAwayThatItAdopted",
    "ARelayReadsNoFurtherWhileBytesWait",
];
