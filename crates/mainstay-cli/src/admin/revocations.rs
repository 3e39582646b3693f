//! Revocations that all nodes must know, also those that start later: each is a note in the engine, with the subject as its key
//! and the time as its value.

use mainstay::Server;
use mainstay::cluster::{Note, NoteOutcome};

use crate::credentials::Subjects;

/// Precedes the subject in the key of a note.
const KIND: &[u8] = b"revoked:";

/// Leaves a revocation for the other nodes, and for those that start later. Returns whether the engine has it.
pub(super) async fn keep(server: &Server, subject: &str, at: u64) -> bool {
    let key = [KIND, subject.as_bytes()].concat();
    match server.keep_note(key.into(), at.to_string().into()).await {
        Ok(NoteOutcome::Stored) => true,
        Ok(_) => {
            tracing::warn!(
                subject,
                "the engine has not got a revocation yet: nodes that start now do not know it"
            );
            false
        }
        Err(error) => {
            tracing::warn!(subject, %error, "the engine cannot keep a revocation");
            false
        }
    }
}

/// Takes the revocations of all nodes.
pub(super) fn learn(subjects: &Subjects, notes: &[Note]) {
    let ended: usize =
        notes.iter().filter_map(revocation).map(|(subject, at)| subjects.learn(subject, at)).sum();
    if ended > 0 {
        tracing::info!(ended, "other nodes revoked credentials of clients that were open here");
    }
}

/// Returns the subject and the time of a revocation; `None`: the note is about something else.
fn revocation(note: &Note) -> Option<(&str, u64)> {
    let subject = std::str::from_utf8(note.key.strip_prefix(KIND)?).ok()?;
    Some((subject, std::str::from_utf8(&note.value).ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_is_no_revocation_is_left_alone() {
        let check = |key: &'static [u8], value: &'static [u8], expected| {
            let note = Note { key: key.into(), value: value.into() };
            assert_eq!(revocation(&note), expected, "{note:?}");
        };
        check(b"revoked:alice", b"10", Some(("alice", 10)));
        check(b"revoked:", b"0", Some(("", 0)));
        check(b"alice", b"10", None);
        check(b"revoked:alice", b"", None);
        check(b"revoked:alice", b"-1", None);
        check(b"revoked:\xff", b"10", None);
        check(b"revoked:alice", b"99999999999999999999", None);
    }
}
