//! The files that an inbound message crosses, from the socket to the handler: each does one thing to it, and none comes
//! twice. The list is checked against the code, so that it stays true.

use std::collections::BTreeSet;
use std::fs;

use crate::Result;

/// Files on the way, in order, each with the code that passes the message on.
const WAY: [(&str, &str); 10] = [
    ("crates/mainstay/src/transport.rs", "stream.read(buffer)"),
    ("crates/mainstay/src/driver.rs", "self.codec.receive(&mut input)"),
    ("crates/mainstay-proto/src/ws/connection.rs", "pub fn receive"),
    ("crates/mainstay/src/server/task.rs", "inner.peer.handle_message("),
    ("crates/mainstay/src/server/peer.rs", "Frame::decode(message)"),
    ("crates/mainstay-proto/src/session/codec.rs", "pub fn decode(message: Message)"),
    ("crates/mainstay-proto/src/session/server/frames.rs", "self.flow.read_message("),
    ("crates/mainstay-proto/src/session/flow.rs", "self.inbox.receive(message)"),
    ("crates/mainstay-proto/src/session/inbox.rs", "fn receive(&mut self, message: Message)"),
    ("crates/mainstay/src/server/session.rs", "inner.peer.deliver(now())"),
];

/// Prints the way. Returns complaints: a file that does not pass the message on as listed, or that comes twice.
pub(crate) fn check() -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for (path, code) in WAY {
        if !fs::read_to_string(path).is_ok_and(|text| text.contains(code)) {
            complaints.push(format!(
                "{path}: `{code}` is not there: correct the way of a message in xtask/src/path.rs"
            ));
        }
    }
    let files: BTreeSet<_> = WAY.iter().map(|(path, _)| path).collect();
    if files.len() < WAY.len() {
        complaints.push("an inbound message crosses a file twice: see xtask/src/path.rs".to_owned());
    }
    println!("an inbound message crosses {} files from the socket to the handler", WAY.len());
    Ok(complaints)
}
