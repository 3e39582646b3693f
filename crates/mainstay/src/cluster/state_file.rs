//! The bytes of a state file: what one process released, for the process that follows it on the same machine.
//!
//! ```text
//! "MSTNSTAT"  version u32  node 8  written u64 (ms since 1970)  count u32
//! per record: session 8  claim u64  keep u64 (ms)  head  saved  count u32  messages
//! SHA-256 of everything before it, 32 bytes
//! ```
//!
//! Numbers are big-endian. A field of bytes is its length, as u32, and its bytes; `saved` has the length `u32::MAX` if there
//! is none. The file is written and read record by record, so neither costs its size in memory. Each length is compared with
//! what is left of the file before memory is reserved.
//!
//! Not here: the folder, the lock and the file's owner (`state_dir`); what is in a record ([`Record`]).

use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mainstay_proto::session::{NodeId, Record};
use sha2::{Digest, Sha256};

use crate::SessionId;

const MAGIC: &[u8; 8] = b"MSTNSTAT";
const VERSION: u32 = 1;
const HASH: usize = 32;
/// The length of a field that is not there.
const NONE: u32 = u32::MAX;

/// A record as its node released it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) session: SessionId,
    pub(crate) claim: u64,
    pub(crate) record: Record,
    /// How long it may still be claimed.
    pub(crate) keep: Duration,
}

/// The content of a state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The node that released the records.
    pub(crate) node: NodeId,
    /// When it wrote them, by the machine's clock.
    pub(crate) written: SystemTime,
    pub(crate) entries: Vec<Entry>,
}

/// Why a state file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadState {
    #[error("it is no state file of mainstay")]
    Foreign,
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u32),
    #[error("it is damaged: it ends too early, or its hash differs")]
    Damaged,
    #[error("everything in it is older than its sessions may be")]
    TooOld,
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl State {
    /// Writes the file's bytes.
    ///
    /// # Errors
    /// `to` fails, or a part of a record is longer than a length can say.
    pub(crate) fn write(&self, to: impl Write) -> io::Result<()> {
        let mut to = Hashing { to, hash: Sha256::new() };
        to.write_all(MAGIC)?;
        to.write_all(&VERSION.to_be_bytes())?;
        to.write_all(&self.node.0)?;
        let written = self.written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        to.write_all(&millis(written).to_be_bytes())?;
        to.length(self.entries.len())?;
        for entry in &self.entries {
            entry.write(&mut to)?;
        }
        let Hashing { mut to, hash } = to;
        to.write_all(&hash.finalize())?;
        to.flush()
    }

    /// Reads a file of this length. Returns what may still be claimed at `now`, with the time that is left to it, and how
    /// many records were too old.
    ///
    /// # Errors
    /// It is not used: see [`BadState`].
    pub(crate) fn read(from: impl Read, length: u64, now: SystemTime) -> Result<(Self, usize), BadState> {
        let left = length.checked_sub(HASH as u64).ok_or(BadState::Foreign)?;
        let mut from = Reading { from, hash: Sha256::new(), left };
        if from.array::<8>().ok().as_ref() != Some(MAGIC) {
            return Err(BadState::Foreign);
        }
        match from.u32()? {
            VERSION => {}
            other => return Err(BadState::Version(other)),
        }
        let node = NodeId(from.array()?);
        let since = Duration::from_millis(from.u64()?);
        let written = SystemTime::UNIX_EPOCH.checked_add(since).ok_or(BadState::Damaged)?;
        let count = from.u32()?;
        let entries = (0..count).map(|_| Entry::read(&mut from)).collect::<Result<Vec<_>, _>>()?;
        from.finish()?;
        // A clock that was set back makes nothing older.
        let age = now.duration_since(written).unwrap_or_default();
        let entries: Vec<_> = entries.into_iter().filter_map(|entry| entry.aged(age)).collect();
        let expired = count as usize - entries.len();
        if entries.is_empty() && expired > 0 {
            return Err(BadState::TooOld);
        }
        Ok((Self { node, written, entries }, expired))
    }
}

impl Entry {
    fn write(&self, to: &mut Hashing<impl Write>) -> io::Result<()> {
        to.write_all(&self.session.0)?;
        to.write_all(&self.claim.to_be_bytes())?;
        to.write_all(&millis(self.keep).to_be_bytes())?;
        to.field(&self.record.head)?;
        match &self.record.saved {
            Some(saved) => to.field(saved)?,
            None => to.write_all(&NONE.to_be_bytes())?,
        }
        to.length(self.record.messages.len())?;
        self.record.messages.iter().try_for_each(|message| to.field(message))
    }

    fn read(from: &mut Reading<impl Read>) -> Result<Self, BadState> {
        let session = SessionId(from.array()?);
        let (claim, keep) = (from.u64()?, Duration::from_millis(from.u64()?));
        let head = from.field()?.ok_or(BadState::Damaged)?;
        let saved = from.field()?;
        let count = from.u32()?;
        let messages =
            (0..count).map(|_| from.field()?.ok_or(BadState::Damaged)).collect::<Result<_, _>>()?;
        Ok(Self { session, claim, record: Record { head, saved, messages }, keep })
    }

    /// Returns the entry after this time; `None` once it may not be claimed any more.
    fn aged(self, age: Duration) -> Option<Self> {
        let keep = self.keep.checked_sub(age).filter(|keep| !keep.is_zero())?;
        Some(Self { keep, ..self })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Hashes what it writes.
struct Hashing<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.to.write_all(bytes)
    }

    fn field(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length(bytes.len())?;
        self.write_all(bytes)
    }

    fn length(&mut self, length: usize) -> io::Result<()> {
        let length = u32::try_from(length).ok().filter(|length| *length != NONE);
        let length =
            length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "4 GiB in one record"))?;
        self.write_all(&length.to_be_bytes())
    }
}

/// Hashes what it reads, and reads no more than the file has in front of its hash.
struct Reading<R> {
    from: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Reading<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BadState> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(BadState::Damaged)?;
        self.from.read_exact(bytes).map_err(torn)?;
        self.hash.update(bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadState> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, BadState> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadState> {
        self.array().map(u64::from_be_bytes)
    }

    fn field(&mut self) -> Result<Option<Bytes>, BadState> {
        let length = match self.u32()? {
            NONE => return Ok(None),
            length => length,
        };
        if u64::from(length) > self.left {
            return Err(BadState::Damaged);
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(Some(bytes.into()))
    }

    /// Compares the hash behind the last record, where the file must end.
    fn finish(mut self) -> Result<(), BadState> {
        let mut hash = [0; HASH];
        self.from.read_exact(&mut hash).map_err(torn)?;
        let is_whole = self.left == 0 && self.hash.finalize().as_slice() == hash;
        is_whole.then_some(()).ok_or(BadState::Damaged)
    }
}

fn torn(error: io::Error) -> BadState {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BadState::Damaged,
        _ => BadState::Unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const WRITTEN: Duration = Duration::from_millis(1_700_000_000_123);

    fn bytes(of: &State) -> Vec<u8> {
        let mut bytes = Vec::new();
        of.write(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8], after: Duration) -> Result<(State, usize), BadState> {
        State::read(bytes, bytes.len() as u64, SystemTime::UNIX_EPOCH + WRITTEN + after)
    }

    fn payload() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..40).prop_map(Bytes::from)
    }

    prop_compose! {
        fn entry()(
            session in any::<[u8; 8]>(),
            claim in any::<u64>(),
            keep in 1..=86_400_000_u64,
            head in payload(),
            saved in proptest::option::of(payload()),
            messages in vec(payload(), 0..4),
        ) -> Entry {
            let record = Record { head, saved, messages };
            Entry { session: SessionId(session), claim, record, keep: Duration::from_millis(keep) }
        }
    }

    prop_compose! {
        fn state()(node in any::<[u8; 8]>(), entries in vec(entry(), 0..5)) -> State {
            State { node: NodeId(node), written: SystemTime::UNIX_EPOCH + WRITTEN, entries }
        }
    }

    proptest! {
        #[test]
        fn a_state_is_read_as_it_was_written(state in state()) {
            let (found, expired) = read(&bytes(&state), Duration::ZERO).unwrap();
            prop_assert_eq!((found, expired), (state, 0));
        }

        #[test]
        fn a_file_with_one_changed_byte_is_refused(state in state(), at in any::<prop::sample::Index>(), by in 1..=255_u8) {
            let mut bytes = bytes(&state);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(read(&bytes, Duration::ZERO).is_err());
        }

        #[test]
        fn a_file_that_was_cut_or_continued_is_refused(state in state(), at in any::<prop::sample::Index>(), more in vec(any::<u8>(), 1..9)) {
            let whole = bytes(&state);
            prop_assert!(read(&whole[..at.index(whole.len())], Duration::ZERO).is_err());
            prop_assert!(read(&[whole, more].concat(), Duration::ZERO).is_err());
        }

        #[test]
        fn any_bytes_are_refused_and_reserve_no_more_memory_than_they_have(noise in vec(any::<u8>(), 0..200)) {
            prop_assert!(matches!(read(&noise, Duration::ZERO), Err(BadState::Foreign)));
            let ours = [&MAGIC[..], &VERSION.to_be_bytes(), &noise].concat();
            prop_assert!(read(&ours, Duration::ZERO).is_err());
        }
    }

    /// One record for each of these times to keep it, in seconds.
    fn kept_for(seconds: &[u64]) -> State {
        let record = Record { head: Bytes::from_static(&[7; 40]), saved: None, messages: vec![] };
        let entry = |seconds: &u64| {
            let keep = Duration::from_secs(*seconds);
            Entry { session: SessionId([1; 8]), claim: 1, record: record.clone(), keep }
        };
        let entries = seconds.iter().map(entry).collect();
        State { node: NodeId([2; 8]), written: SystemTime::UNIX_EPOCH + WRITTEN, entries }
    }

    #[test]
    fn a_record_keeps_the_rest_of_its_time_and_a_file_of_expired_records_is_too_old() {
        let bytes = bytes(&kept_for(&[60, 100]));
        let (state, expired) = read(&bytes, Duration::from_secs(60)).unwrap();
        assert_eq!((state.entries.len(), expired), (1, 1));
        assert_eq!(state.entries[0].keep, Duration::from_secs(40));
        assert!(matches!(read(&bytes, Duration::from_secs(100)), Err(BadState::TooOld)));
    }

    #[test]
    fn a_clock_that_was_set_back_expires_nothing() {
        let bytes = bytes(&kept_for(&[60]));
        let (state, _) = State::read(&bytes[..], bytes.len() as u64, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(state.entries[0].keep, Duration::from_secs(60));
    }

    #[test]
    fn a_file_of_another_version_is_named_as_such() {
        let mut bytes = bytes(&kept_for(&[60]));
        bytes[11] = 2;
        assert!(matches!(read(&bytes, Duration::ZERO), Err(BadState::Version(2))));
        assert_eq!(BadState::Version(2).to_string(), "it has version 2, and this program reads version 1");
    }
}
