//! The folder of a node without an engine: through it, sessions reach the process that follows on the same machine.
//!
//! One process uses a folder at a time: it holds a lock on the file `lock`, which names the process. A process that drains
//! says so there; the next process may then start already and serves new clients. A process that finds the lock held by one
//! that does not drain was started by mistake.
//!
//! A process writes one file as soon as its sessions are released, and a second one at its end, with what was left: accounts,
//! and sessions whose handlers took their time. The next process takes the first file when it is there, and the second one once
//! the lock is free. Each file is written once and taken once, so no file replaces another.
//!
//! A state file that is not used (damaged, of another version, of another user, too old) keeps its content under another
//! name, for the operator; it is never deleted. The sessions in it then begin anew, each with an account.
//!
//! Not here: the bytes of the file (`state_file`).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use super::state_file::{BadState, Entry, State};

const SESSIONS: &str = "sessions.state";
/// What a process still had when it ended, after it had written the first file.
const LATE: &str = "sessions-late.state";
const TEMPORARY: &str = "sessions.state.tmp";
const LOCK: &str = "lock";
/// Behind the number of the process in the lock file, once it drains.
const DRAINING: &str = " draining";

/// How long a running process may take to start draining after SIGTERM.
const DRAIN_START: Duration = Duration::from_secs(1);
/// How often a process tries to get a lock that another one holds.
pub(crate) const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// A folder for the state file of a node, checked at its start.
#[derive(Debug)]
pub(crate) struct StateDir {
    folder: PathBuf,
    lock: File,
    is_held: bool,
    /// This process has written its first file.
    has_put: bool,
    /// This process has found the first file of the one before.
    has_found: bool,
}

/// Why a folder cannot keep the sessions of a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// It is not there, or is no folder.
    #[error("{}: {error}; create the folder, and let the user of this process write in it", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What failed.
        #[source]
        error: io::Error,
    },
    /// Another process uses it and does not drain.
    #[error("{}: process {process} uses it; choose another folder, or send that process SIGTERM first", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other process.
        process: String,
    },
}

impl StateDir {
    /// Opens a folder and locks it, or finds it held by a process that drains. Blocks its thread, for up to a second if the
    /// holder does not drain: it may have received SIGTERM just now.
    ///
    /// # Errors
    /// The folder cannot be used, or another process uses it.
    pub(crate) fn open(folder: &Path) -> Result<Self, StateDirError> {
        let unusable = |error| StateDirError::Unusable { folder: folder.to_owned(), error };
        check_writable(folder).map_err(unusable)?;
        let lock = owned().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK));
        let mut opened = Self {
            folder: folder.to_owned(),
            lock: lock.map_err(unusable)?,
            is_held: false,
            has_put: false,
            has_found: false,
        };
        let begun = Instant::now();
        loop {
            if opened.try_hold().map_err(unusable)? || opened.holder().ends_with(DRAINING) {
                return Ok(opened);
            }
            if begun.elapsed() >= DRAIN_START {
                return Err(StateDirError::InUse { folder: folder.to_owned(), process: opened.holder() });
            }
            std::thread::sleep(LOCK_INTERVAL);
        }
    }

    /// Tries to lock the folder; returns whether this process holds it. The lock ends with this value, or its process.
    ///
    /// # Errors
    /// The file system has no locks, or fails.
    pub(crate) fn try_hold(&mut self) -> io::Result<bool> {
        if self.is_held {
            return Ok(true);
        }
        match self.lock.try_lock() {
            Ok(()) => {
                self.is_held = true;
                self.name_process("");
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(self.is_held)
    }

    /// Announces that this process drains: from now on its successor may start.
    pub(crate) fn announce_drain(&self) {
        if self.is_held {
            self.name_process(DRAINING);
        }
    }

    /// Reads and removes the state files of the process before: the first one, and the last one once this process holds the
    /// lock. Returns nothing for a file that is not there or is not used: one log line says why, and its content stays under
    /// another name.
    pub(crate) fn take(&mut self, now: SystemTime) -> Vec<Entry> {
        // Once is enough while the other process lives: a file that cannot be moved away is still there.
        let first = if self.is_held || !self.has_found { self.take_file(SESSIONS, now) } else { None };
        self.has_found |= first.is_some();
        let late = if self.is_held { self.take_file(LATE, now) } else { None };
        first.into_iter().chain(late).flatten().collect()
    }

    /// Returns `None` if there is no such file.
    fn take_file(&self, name: &str, now: SystemTime) -> Option<Vec<Entry>> {
        let path = self.folder.join(name);
        let read = match open_own(&path) {
            Ok(file) => read(&file, now),
            Err(Unowned::Missing) => return None,
            Err(Unowned::Not(why)) => Err(why),
        };
        Some(match read {
            Ok((state, expired)) => self.used(&path, state, expired),
            Err(why) => {
                refuse(&path, name, now, &why);
                Vec::new()
            }
        })
    }

    /// Writes a state file: to a temporary file that then gets its name, each of them made durable. The first call writes the
    /// first file, the second one the last. Call it with the lock held.
    ///
    /// # Errors
    /// The file system fails, or has no room. The state file is not there then.
    pub(crate) fn put(&mut self, state: &State) -> io::Result<()> {
        let temporary = self.folder.join(TEMPORARY);
        let name = if self.has_put { LATE } else { SESSIONS };
        let written = self.write_durably(&temporary, name, state);
        self.has_put |= written.is_ok();
        if written.is_err() {
            // What is left would only take room; the next process overwrites it anyway.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn write_durably(&self, temporary: &Path, name: &str, state: &State) -> io::Result<()> {
        // A process that was killed while it wrote leaves one.
        match fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = owned().write(true).create_new(true).open(temporary)?;
        state.write(BufWriter::new(&file))?;
        file.sync_all()?;
        fs::rename(temporary, self.folder.join(name))?;
        self.sync()
    }

    /// Removes a state file that was read. One that stays would give the same sessions to the next process again, so it is
    /// not used then.
    fn used(&self, path: &Path, state: State, expired: usize) -> Vec<Entry> {
        if let Err(error) = fs::remove_file(path).and_then(|()| self.sync()) {
            tracing::error!(
                file = %path.display(), %error,
                "the state file cannot be removed, so it is not used; its sessions begin anew"
            );
            return Vec::new();
        }
        tracing::info!(records = state.entries.len(), expired, node = %state.node, "state file read");
        state.entries
    }

    /// Makes the names in the folder durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// Writes this process into the lock file. It is for messages only, so a failure changes nothing.
    fn name_process(&self, state: &str) {
        let line = format!("{}{state}", std::process::id());
        let _ = self.lock.set_len(0).and_then(|()| {
            let mut lock = &self.lock;
            lock.rewind()?;
            lock.write_all(line.as_bytes())
        });
    }

    /// Returns what the lock file says about its holder.
    fn holder(&self) -> String {
        let (mut lock, mut line) = (&self.lock, String::new());
        let _ = lock.rewind().and_then(|()| lock.take(64).read_to_string(&mut line));
        line
    }
}

/// Options for files that only this user may read and write. A link is not followed, and a pipe blocks nobody.
fn owned() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Writes and removes a file.
fn check_writable(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!("probe-{}", std::process::id()));
    owned().write(true).create_new(true).open(&probe)?;
    fs::remove_file(&probe)
}

/// Why a file was not opened.
enum Unowned {
    Missing,
    Not(String),
}

/// Opens a regular file that belongs to this user, and that nobody else may read or write.
fn open_own(path: &Path) -> Result<File, Unowned> {
    let not = |why: &str| Unowned::Not(why.to_owned());
    let opened = owned().read(true).open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unowned::Missing,
        _ => not(&format!("it cannot be opened: {error}")),
    })?;
    if !metadata.is_file() {
        return Err(not("it is no regular file"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(not("it belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(not("other users may read or write it"));
    }
    Ok(file)
}

fn read(file: &File, now: SystemTime) -> Result<(State, usize), String> {
    let read = || State::read(BufReader::new(file), file.metadata()?.len(), now);
    read().map_err(|error: BadState| error.to_string())
}

/// Gives a state file that is not used another name, and logs why.
fn refuse(path: &Path, name: &str, now: SystemTime, why: &str) {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let names = (seconds..).map(|number| path.with_file_name(format!("{name}.refused-{number}")));
    let free = names.into_iter().find(|name| fs::symlink_metadata(name).is_err());
    let kept = free.ok_or(io::ErrorKind::AlreadyExists.into());
    match kept.and_then(|kept| fs::rename(path, &kept).map(|()| kept)) {
        Ok(kept) => tracing::error!(
            file = %path.display(), kept = %kept.display(), why,
            "the state file is not used; its sessions begin anew"
        ),
        Err(error) => tracing::error!(
            file = %path.display(), why, %error,
            "the state file is not used and cannot be renamed; its sessions begin anew"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use bytes::Bytes;
    use mainstay_proto::session::{NodeId, Record};

    use super::*;
    use crate::SessionId;

    /// A new folder; removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("mainstay-state-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != LOCK);
            names
        }

        fn sessions(&self) -> PathBuf {
            self.0.join(SESSIONS)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn state() -> State {
        let record = Record { head: Bytes::from_static(&[7; 40]), saved: None, messages: vec![] };
        let entry = Entry { session: SessionId([1; 8]), claim: 1, record, keep: Duration::from_secs(60) };
        State { node: NodeId([2; 8]), written: SystemTime::now(), entries: vec![entry] }
    }

    #[test]
    fn the_next_process_takes_what_the_one_before_put_once() {
        let folder = Folder::new("taken-once");
        let mut old = StateDir::open(&folder.0).unwrap();
        old.put(&state()).unwrap();
        let mode = fs::metadata(folder.sessions()).unwrap().mode();
        assert_eq!((mode & 0o777, folder.names()), (0o600, vec![SESSIONS.to_owned()]));
        drop(old);
        let mut new = StateDir::open(&folder.0).unwrap();
        assert_eq!(new.take(SystemTime::now()).len(), 1);
        assert!(new.take(SystemTime::now()).is_empty() && folder.names().is_empty());
    }

    #[test]
    fn the_first_file_is_taken_while_its_process_lives_and_the_last_one_when_it_has_ended() {
        let folder = Folder::new("two-files");
        let mut old = StateDir::open(&folder.0).unwrap();
        old.announce_drain();
        let mut new = StateDir::open(&folder.0).unwrap();
        assert!(new.take(SystemTime::now()).is_empty());
        old.put(&state()).unwrap();
        assert_eq!(new.take(SystemTime::now()).len(), 1);
        old.put(&state()).unwrap();
        assert!(new.take(SystemTime::now()).is_empty(), "the old process may still write it");
        assert_eq!(folder.names(), [LATE]);
        drop(old);
        assert!(new.try_hold().unwrap());
        assert_eq!((new.take(SystemTime::now()).len(), folder.names().len()), (1, 0));
    }

    #[test]
    fn a_process_that_starts_when_the_one_before_has_ended_takes_both_files() {
        let folder = Folder::new("both-files");
        let mut old = StateDir::open(&folder.0).unwrap();
        old.put(&state()).unwrap();
        old.put(&state()).unwrap();
        drop(old);
        let mut new = StateDir::open(&folder.0).unwrap();
        assert_eq!((new.take(SystemTime::now()).len(), folder.names().len()), (2, 0));
    }

    #[test]
    fn a_temporary_file_that_a_killed_process_left_is_overwritten() {
        let folder = Folder::new("temporary");
        fs::write(folder.0.join(TEMPORARY), "half").unwrap();
        let mut state_dir = StateDir::open(&folder.0).unwrap();
        assert!(state_dir.take(SystemTime::now()).is_empty());
        state_dir.put(&state()).unwrap();
        assert_eq!(folder.names(), [SESSIONS]);
    }

    #[test]
    fn a_file_that_is_not_used_keeps_its_content_under_another_name() {
        let folder = Folder::new("refused");
        let mut state_dir = StateDir::open(&folder.0).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        fs::write(folder.0.join("elsewhere"), "secret").unwrap();
        let plant: [(&str, &dyn Fn()); 5] = [
            ("foreign", &|| private(&folder.sessions(), b"no state file at all, and long enough for a hash")),
            ("torn", &|| {
                put_anew(&folder);
                let whole = fs::read(folder.sessions()).unwrap();
                fs::write(folder.sessions(), &whole[..whole.len() - 1]).unwrap();
            }),
            ("readable by others", &|| {
                put_anew(&folder);
                fs::set_permissions(folder.sessions(), fs::Permissions::from_mode(0o644)).unwrap();
            }),
            ("a link", &|| symlink(folder.0.join("elsewhere"), folder.sessions()).unwrap()),
            ("a folder", &|| fs::create_dir(folder.sessions()).unwrap()),
        ];
        for (number, (what, plant)) in (1_700_000_000..).zip(plant) {
            plant();
            assert!(state_dir.take(now).is_empty(), "{what}");
            assert!(fs::symlink_metadata(folder.sessions()).is_err(), "{what}");
            assert!(
                folder.names().contains(&format!("{SESSIONS}.refused-{number}")),
                "{what}: {:?}",
                folder.names()
            );
        }
        assert_eq!(fs::read(folder.0.join("elsewhere")).unwrap(), b"secret");
    }

    /// Writes the first file as another process does.
    fn put_anew(folder: &Folder) {
        let lock = File::open(folder.0.join(LOCK)).unwrap();
        let mut other =
            StateDir { folder: folder.0.clone(), lock, is_held: true, has_put: false, has_found: false };
        other.put(&state()).unwrap();
    }

    fn private(path: &Path, content: &[u8]) {
        owned().write(true).create_new(true).open(path).unwrap().write_all(content).unwrap();
    }

    #[test]
    fn a_second_process_is_refused_unless_the_first_drains_and_gets_the_lock_when_that_ends() {
        let folder = Folder::new("second");
        let first = StateDir::open(&folder.0).unwrap();
        let refused = StateDir::open(&folder.0).unwrap_err().to_string();
        let process = std::process::id();
        assert!(refused.contains(&format!("process {process} uses it")), "{refused}");
        first.announce_drain();
        let mut second = StateDir::open(&folder.0).unwrap();
        assert!(!second.try_hold().unwrap());
        drop(first);
        assert!(second.try_hold().unwrap());
        assert_eq!(second.holder(), process.to_string());
    }

    #[test]
    fn a_folder_that_is_missing_or_no_folder_is_an_error_that_names_it() {
        let folder = Folder::new("missing");
        let file = folder.0.join("file");
        fs::write(&file, "").unwrap();
        for path in [folder.0.join("missing"), file] {
            let error = StateDir::open(&path).unwrap_err().to_string();
            assert!(
                error.starts_with(path.to_str().unwrap()) && error.contains("create the folder"),
                "{error}"
            );
        }
    }
}
