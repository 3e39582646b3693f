//! The vectors of records: the bytes of sessions and accounts that leave a node. `conformance/README.md` describes them.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_proto::session::message::{Instance, SessionId};
use mainstay_proto::session::state::{
    AccountState, Content, Inbound, Outbound, SessionState, Unacknowledged,
};
use mainstay_proto::session::{Adopted, BadRecord, Record, Registry, RegistryConfig};
use serde_json::Value;

use super::conformance::{list, vectors};
use super::json::{Fields, message_from_json, unhex};
use super::pair::{Arena, server_config, start};

fn record(vector: &Value) -> Record {
    let bytes = |value: &Value| unhex(value.as_str().unwrap());
    Record {
        head: bytes(&vector["head"]),
        saved: vector["saved"].as_str().map(unhex),
        messages: list(&vector["messages"]).iter().map(bytes).collect(),
    }
}

fn content(vector: &Value) -> Content {
    let fields = Fields(vector);
    match fields.object("session") {
        Some(session) => Content::Session(Box::new(session_from_json(&session))),
        None => Content::Account(account_from_json(&fields.object("account").unwrap())),
    }
}

fn tokens(fields: &Fields<'_>) -> [Option<[u8; 16]>; 2] {
    let token = |index: usize| {
        fields.0["tokens"][index].as_str().map(|token| unhex(token).as_ref().try_into().unwrap())
    };
    [token(0), token(1)]
}

fn session_from_json(fields: &Fields<'_>) -> SessionState {
    let inbound = fields.object("inbound").unwrap();
    let outbound = fields.object("outbound").unwrap();
    let kept = |one: &Value| match one["gap"].as_u64() {
        Some(count) => Unacknowledged::Gap { count },
        None => Unacknowledged::Message(message_from_json(one)),
    };
    let pair = |mark: &Value| (mark[0].as_u64().unwrap(), mark[1].as_u64().unwrap());
    SessionState {
        tokens: tokens(fields),
        id: SessionId(fields.array("id")),
        epoch: fields.integer("epoch"),
        key: fields.array("key"),
        principal: fields.array("principal"),
        instance: Instance(fields.array("instance")),
        attempt: fields.integer("attempt"),
        was_established: fields.flag("was_established"),
        resume_window: fields.duration("resume_window_ms"),
        left: fields.duration("left_ms"),
        inbound: Inbound {
            acknowledged: inbound.integer("acknowledged"),
            window: inbound.window_called("window").unwrap(),
            manual: inbound.flag("manual"),
        },
        outbound: Outbound {
            acknowledged: outbound.integer("acknowledged"),
            written: outbound.integer("written"),
            limit: outbound.window_called("limit").unwrap(),
            peer: outbound.window_called("peer").unwrap(),
            largest: outbound.has("largest").then(|| outbound.integer("largest")),
            drops_oldest: outbound.flag("drops_oldest"),
            dropped: outbound.integer("dropped"),
            kept: list(&outbound.0["kept"]).iter().map(kept).collect(),
        },
        account: fields.account(),
        replaced: list(&fields.0["replaced"]).iter().map(pair).collect(),
    }
}

fn account_from_json(fields: &Fields<'_>) -> AccountState {
    AccountState {
        tokens: tokens(fields),
        id: SessionId(fields.array("id")),
        acknowledged: fields.integer("acknowledged"),
        delivered: fields.integer("delivered"),
        sent: fields.integer("sent"),
        cause: fields.cause(),
        ended: fields.has("ended").then(|| fields.integer("ended")),
        reported_to: fields.has("reported_to").then(|| Instance(fields.array("reported_to"))),
    }
}

#[test]
fn records_decode_to_their_fields_and_encode_to_their_bytes() {
    for vector in list(&vectors("records")["records"]) {
        let (record, expected) = (record(vector), content(vector));
        assert_eq!(record.content(), Ok(expected.clone()), "{}", vector["name"]);
        if vector["only"] != "decode" {
            let encoded = match expected {
                Content::Session(state) => state.to_record(record.saved.clone()),
                Content::Account(state) => state.to_record(),
            };
            // Debug prints sizes only.
            assert!(encoded == record, "{}: {:02x?}", vector["name"], &encoded.head[..]);
        }
    }
}

#[test]
fn a_session_that_is_adopted_and_released_at_once_has_the_same_record() {
    let sessions = Arc::new(server_config());
    for vector in list(&vectors("records")["records"]) {
        let record = record(vector);
        if !vector["session"].is_object() || vector["only"] == "decode" {
            continue;
        }
        let mut registry = Registry::new(start(), RegistryConfig::default(), Arc::clone(&sessions), [1; 32]);
        let mut arena = Arena::default();
        let adopted = registry.adopt(start(), &record, 7, &mut arena).unwrap();
        assert_eq!(adopted, Adopted::Session { session: 0, evicted: None });
        arena.get(0).leave(start());
        let released = registry.release(start(), arena.get(0)).unwrap();
        assert!(released.record == record, "{}", vector["name"]);
        assert_eq!(released.claim, 7);
    }
}

#[test]
fn damaged_records_are_refused_for_what_is_wrong_with_them() {
    for vector in list(&vectors("records")["errors"]) {
        let error = match record(vector).content() {
            Err(BadRecord::Version(_)) => "Version",
            Err(BadRecord::Malformed(_)) => "Malformed",
            Err(BadRecord::Contradiction(_)) => "Contradiction",
            other => panic!("{}: {other:?}", vector["name"]),
        };
        assert_eq!(error, vector["error"], "{}", vector["name"]);
    }
}

#[test]
fn a_record_that_is_cut_anywhere_is_refused() {
    for whole in list(&vectors("records")["truncated"]) {
        let head = unhex(whole.as_str().unwrap());
        let cut = |length| Record { head: head.slice(..length), saved: None, messages: Vec::new() };
        assert!(cut(head.len()).content().is_ok());
        for length in 0..head.len() {
            assert!(matches!(cut(length).content(), Err(BadRecord::Malformed(_))), "cut to {length}");
        }
    }
}

#[test]
fn a_record_of_another_version_names_both_versions() {
    let mut head = vec![0; 32];
    head.push(2);
    let record = Record { head: Bytes::from(head), saved: None, messages: Vec::new() };
    let error = record.content().unwrap_err();
    assert_eq!(error.to_string(), "the record has version 2, and this node reads only version 1");
}
