//! Fields of the node table and blocks at a peer listener: `conformance/vectors/cluster.json`, and any bytes in any cuts.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::node_info::{BadField, MAX_FIELD};
use mainstay_proto::cluster::peer::{Admit, BlockError, First, Head, Leave, MAX_BLOCK, PeerAnswer, Reply};
use mainstay_proto::cluster::{Mark, NodeInfo, PeerKey};
use mainstay_proto::session::message::{Account, LossCause};
use mainstay_proto::session::{Frame, Malformed, NodeId};
use mainstay_proto::ws::DeflateParams;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::conformance::{list, vectors};
use crate::json::{account_to_json, hex, to_json, unhex};

fn bytes_of(vector: &Value) -> Bytes {
    unhex(vector["hex"].as_str().unwrap())
}

fn info_to_json(info: &NodeInfo) -> Value {
    json!({
        "address": info.address.to_string(),
        "key": hex(&info.key.0),
        "mark": hex(&info.mark.0),
        "url": info.url,
        "count": info.count,
        "left": info.left,
        "notes": info.notes,
    })
}

fn head_to_json(head: &Head) -> Value {
    json!({
        "from": head.from.to_string(),
        "to": head.to.to_string(),
        "key": hex(&head.key.0),
        "path": head.path,
        "principal": hex(&head.principal),
        "client": head.client.to_string(),
        "subprotocol": head.subprotocol,
        "deflate": head.deflate.map(|deflate| json!([
            deflate.server_no_context_takeover,
            deflate.client_no_context_takeover,
            deflate.server_max_window_bits,
            deflate.client_max_window_bits,
        ])),
    })
}

fn leave_to_json(leave: &Leave) -> Value {
    json!({
        "from": leave.from.to_string(),
        "to": leave.to.to_string(),
        "key": hex(&leave.key.0),
        "within_ms": u64::try_from(leave.within.as_millis()).unwrap(),
    })
}

fn answer_to_json(answer: &PeerAnswer) -> Value {
    match answer {
        PeerAnswer::Accepted => json!("accepted"),
        PeerAnswer::Lost(None) => json!("lost"),
        PeerAnswer::Lost(Some(account)) => json!({"lost": account_to_json(*account)}),
        PeerAnswer::Refused(refuse) => json!({"refused": to_json(&Frame::Control(refuse.clone()))}),
        PeerAnswer::OtherNode => json!("other_node"),
        PeerAnswer::Released => json!("released"),
    }
}

fn name_of(error: Malformed) -> &'static str {
    match error {
        Malformed::Empty => "Empty",
        Malformed::UnknownType(_) => "UnknownType",
        Malformed::Truncated => "Truncated",
        Malformed::BadValue => "BadValue",
        Malformed::RepeatedField => "RepeatedField",
        Malformed::IntegerTooLarge => "IntegerTooLarge",
        other => panic!("no vector has {other}"),
    }
}

fn name_of_block(error: BlockError) -> &'static str {
    match error {
        BlockError::NotABlock => "NotABlock",
        BlockError::Version(_) => "Version",
        BlockError::TooLong(_) => "TooLong",
        BlockError::Malformed(error) => name_of(error),
        other => panic!("no decoder reports {other}"),
    }
}

fn name_of_field(error: BadField) -> &'static str {
    match error {
        BadField::Version(_) => "Version",
        BadField::Malformed(error) => name_of(error),
        other => panic!("no vector has {other}"),
    }
}

#[test]
fn fields_of_the_node_table_have_the_bytes_of_the_vectors() {
    for vector in list(&vectors("cluster")["fields"]) {
        let info = NodeInfo::from_bytes(bytes_of(vector)).unwrap();
        assert_eq!(info_to_json(&info), vector["info"], "{}", vector["name"]);
        if vector["only"] != "decode" {
            assert_eq!(hex(&info.to_bytes()), hex(&bytes_of(vector)), "{}", vector["name"]);
        }
    }
}

#[test]
fn bad_fields_of_the_node_table_are_refused_for_what_is_wrong_with_them() {
    for vector in list(&vectors("cluster")["bad_fields"]) {
        let error = NodeInfo::from_bytes(bytes_of(vector)).map_err(name_of_field);
        assert_eq!(error, Err(vector["error"].as_str().unwrap()), "{}", vector["name"]);
    }
    let long = vec![1; MAX_FIELD + 1];
    assert_eq!(NodeInfo::from_bytes(long.into()), Err(BadField::TooLong(MAX_FIELD + 1)));
}

#[test]
fn blocks_have_the_bytes_of_the_vectors_and_leave_what_follows_them() {
    let vectors = vectors("cluster");
    for vector in list(&vectors["heads"]) {
        let head = check(vector, Head::decode);
        assert_eq!(head_to_json(&head), vector["head"], "{}", vector["name"]);
        assert_eq!(check(vector, First::decode), First::Head(head.clone()), "{}", vector["name"]);
        if vector["only"] != "decode" {
            assert_eq!(hex(&head.encode().unwrap()), hex(&bytes_of(vector)), "{}", vector["name"]);
        }
    }
    for vector in list(&vectors["leaves"]) {
        let First::Leave(leave) = check(vector, First::decode) else { panic!("{}", vector["name"]) };
        assert_eq!(leave_to_json(&leave), vector["leave"], "{}", vector["name"]);
        if vector["only"] != "decode" {
            assert_eq!(hex(&leave.encode()), hex(&bytes_of(vector)), "{}", vector["name"]);
        }
    }
    for vector in list(&vectors["answers"]) {
        let answer = check(vector, PeerAnswer::decode);
        assert_eq!(answer_to_json(&answer), vector["answer"], "{}", vector["name"]);
        assert_eq!(hex(&answer.encode()), hex(&bytes_of(vector)), "{}", vector["name"]);
    }
}

/// Decodes a vector byte by byte, with other bytes behind it.
fn check<T>(vector: &Value, decode: fn(&mut BytesMut) -> Result<Option<T>, BlockError>) -> T {
    let whole = bytes_of(vector);
    let mut buffer = BytesMut::new();
    for byte in &whole {
        let taken = decode(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", vector["name"]));
        assert!(taken.is_none(), "{}: {} bytes are not the whole block", vector["name"], buffer.len());
        buffer.extend([*byte]);
    }
    buffer.extend(b"stream");
    let block = decode(&mut buffer).unwrap().unwrap();
    assert_eq!(&buffer[..], b"stream", "{}", vector["name"]);
    block
}

#[test]
fn bad_blocks_are_refused_as_soon_as_their_bytes_show_it() {
    for vector in list(&vectors("cluster")["bad_blocks"]) {
        let mut buffer = BytesMut::from(&bytes_of(vector)[..]);
        let error = match vector["block"].as_str().unwrap() {
            "head" => Head::decode(&mut buffer).map(|_| ()),
            "first" => First::decode(&mut buffer).map(|_| ()),
            _ => PeerAnswer::decode(&mut buffer).map(|_| ()),
        };
        let error = error.map_err(name_of_block);
        assert_eq!(error, Err(vector["error"].as_str().unwrap()), "{}", vector["name"]);
    }
}

fn head(principal: usize) -> Head {
    Head {
        from: NodeId([1; 8]),
        to: NodeId([2; 8]),
        key: PeerKey([3; 16]),
        path: "/chat".into(),
        principal: vec![b'p'; principal].into(),
        subprotocol: None,
        deflate: None,
        client: "127.0.0.1:4000".parse().unwrap(),
        expiry: None,
    }
}

#[test]
fn a_head_of_128_kib_passes_and_a_longer_one_is_not_sent() {
    let rest = head(0x4000).encode().unwrap().len() - 0x4000;
    let longest = head(MAX_BLOCK - rest);
    let mut bytes = BytesMut::from(&longest.encode().unwrap()[..]);
    assert_eq!(bytes.len(), MAX_BLOCK);
    assert_eq!(Head::decode(&mut bytes), Ok(Some(longest)));
    let too_long = head(MAX_BLOCK - rest + 1).encode();
    assert_eq!(too_long, Err(BlockError::TooLong(MAX_BLOCK as u64 + 1)));
}

#[test]
fn a_peer_listener_reports_another_node_before_it_looks_at_the_key() {
    let head = head(0);
    assert_eq!(head.admit(NodeId([2; 8]), &PeerKey([3; 16])), Ok(Admit::Hello));
    assert_eq!(head.admit(NodeId([2; 8]), &PeerKey([4; 16])), Err(BlockError::WrongKey));
    assert_eq!(head.admit(NodeId([9; 8]), &PeerKey([4; 16])), Ok(Admit::OtherNode));
}

#[test]
fn keys_and_principals_do_not_show_in_debug_output() {
    assert_eq!(format!("{:?}", PeerKey([7; 16])), "PeerKey(..)");
    assert!(!format!("{:?}", head(0)).contains("[3, 3"));
}

#[test]
fn a_mark_depends_on_every_part_and_on_their_boundaries() {
    let of = |parts: &[&str]| Mark::of(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
    assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
    assert_ne!(of(&["a", "b"]), of(&["a", "c"]));
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&[]), of(&[""]));
}

fn any_info() -> impl Strategy<Value = NodeInfo> {
    let url = proptest::option::of("[a-z:/.]{0,40}");
    let numbers = (any::<std::net::SocketAddr>(), 0..1_u64 << 53, 0..1_u64 << 53);
    (numbers, any::<[u8; 16]>(), any::<[u8; 8]>(), url, any::<bool>()).prop_map(
        |((address, count, notes), key, mark, url, left)| {
            let address = std::net::SocketAddr::new(address.ip(), address.port());
            NodeInfo { address, key: PeerKey(key), mark: Mark(mark), url, count, left, notes }
        },
    )
}

fn any_head() -> impl Strategy<Value = Head> {
    let deflate = (any::<bool>(), any::<bool>(), 8..=15_u8, 8..=15_u8);
    let ids = (any::<[u8; 8]>(), any::<[u8; 8]>(), any::<[u8; 16]>());
    let texts = ("[a-zé/]{0,40}", proptest::option::of("[a-z.0-9]{0,20}"));
    let times = proptest::option::of((0..1_u64 << 50, 0..1_u64 << 50));
    let rest = (any::<Vec<u8>>(), proptest::option::of(deflate), any::<std::net::SocketAddr>(), times);
    (ids, texts, rest).prop_map(
        |((from, to, key), (path, subprotocol), (principal, deflate, client, times))| Head {
            from: NodeId(from),
            to: NodeId(to),
            key: PeerKey(key),
            path,
            principal: principal.into(),
            subprotocol,
            deflate: deflate.map(|(server, client, server_bits, client_bits)| DeflateParams {
                server_no_context_takeover: server,
                client_no_context_takeover: client,
                server_max_window_bits: server_bits,
                client_max_window_bits: client_bits,
            }),
            client: std::net::SocketAddr::new(client.ip(), client.port()),
            expiry: times.map(|(expires_in, grace)| mainstay_proto::session::Expiry {
                expires_in: Duration::from_millis(expires_in),
                grace: Duration::from_millis(grace),
            }),
        },
    )
}

fn any_leave() -> impl Strategy<Value = Leave> {
    let ids = (any::<[u8; 8]>(), any::<[u8; 8]>(), any::<[u8; 16]>());
    (ids, 0..1_u64 << 53).prop_map(|((from, to, key), within)| Leave {
        from: NodeId(from),
        to: NodeId(to),
        key: PeerKey(key),
        within: Duration::from_millis(within),
    })
}

fn any_answer() -> impl Strategy<Value = PeerAnswer> {
    let account = (0..1_u64 << 53, 0..1_u64 << 53, 0..1_u64 << 53, 0..1_u64 << 53).prop_map(
        |(acknowledged, delivered, first_lost, count)| Account {
            acknowledged,
            delivered,
            first_lost,
            count,
            cause: LossCause::Restarted,
        },
    );
    prop_oneof![
        Just(PeerAnswer::Accepted),
        proptest::option::of(account).prop_map(PeerAnswer::Lost),
        Just(PeerAnswer::Refused(mainstay_proto::cluster::lookup::wait())),
        Just(PeerAnswer::OtherNode),
        Just(PeerAnswer::Released),
    ]
}

proptest! {
    #[test]
    fn a_field_of_the_node_table_survives_its_bytes(info in any_info()) {
        prop_assert_eq!(NodeInfo::from_bytes(info.to_bytes()), Ok(info));
    }

    #[test]
    fn blocks_survive_their_bytes_in_any_cuts(
        head in any_head(),
        leave in any_leave(),
        answer in any_answer(),
        cuts in proptest::collection::vec(1..80_usize, 1..40),
    ) {
        let (mut buffer, mut bytes) = (BytesMut::new(), BytesMut::from(&head.encode().unwrap()[..]));
        let mut cuts = cuts.iter().cycle();
        let decoded = loop {
            if let Some(decoded) = Head::decode(&mut buffer).unwrap() {
                break decoded;
            }
            prop_assert!(!bytes.is_empty());
            let cut = bytes.split_to((*cuts.next().unwrap()).min(bytes.len()));
            buffer.extend(cut);
        };
        prop_assert_eq!(decoded, head);
        let mut bytes = BytesMut::from(&leave.encode()[..]);
        prop_assert_eq!(First::decode(&mut bytes), Ok(Some(First::Leave(leave))));
        let mut bytes = BytesMut::from(&answer.encode()[..]);
        prop_assert_eq!(PeerAnswer::decode(&mut bytes), Ok(Some(answer)));
    }

    #[test]
    fn any_bytes_are_a_block_or_an_error_and_never_more_than_the_buffer_holds(
        bytes in any::<Vec<u8>>(),
        magic in prop_oneof![Just(b"MSTN"), Just(b"MSTL"), Just(b"MSTA"), Just(b"MSTQ"), Just(b"MSTR")],
        body in any::<Vec<u8>>(),
    ) {
        let _ = NodeInfo::from_bytes(bytes.clone().into());
        let _ = NodeInfo::from_bytes([&[1], &bytes[..]].concat().into());
        let block = [&magic[..], &[1], &(body.len() as u32).to_be_bytes(), &body, &bytes].concat();
        for bytes in [bytes, block] {
            let mut buffer = BytesMut::from(&bytes[..]);
            let before = buffer.len();
            let whole = First::decode(&mut buffer).is_ok_and(|first| first.is_some());
            prop_assert!(!whole || buffer.len() < before);
            let _ = PeerAnswer::decode(&mut BytesMut::from(&bytes[..]));
            let _ = Reply::decode(&mut BytesMut::from(&bytes[..]));
        }
    }
}
