//! Session tickets with keys from a file, so that a client may continue at any gateway that has the same file.
//!
//! A ticket is the state of a session, encrypted by AES-256-GCM; nothing of it is kept here. The first key encrypts, each
//! decrypts: a new key is put in front, and an old one removed once no ticket of it is in use. Tickets are bound to the
//! files that decide which clients are accepted: a certificate that was accepted by others does not come back in a ticket.

use std::fmt;
use std::path::Path;

use mainstay::server::rustls::server::ProducesTickets;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};

/// The most keys of a file.
const MOST_KEYS: usize = 16;
/// Bytes of a key.
const KEY: usize = 32;
/// Bytes in front of a ticket that name its key.
const NAME: usize = 16;
/// The lifetime that clients are told, in seconds. The keys of the file decide.
const LIFETIME: u32 = 12 * 60 * 60;
/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;

/// Makes and reads tickets.
pub(super) struct Tickets {
    /// Never empty.
    keys: Vec<Key>,
    /// What every ticket is bound to.
    bound_to: [u8; 32],
}

struct Key {
    name: [u8; NAME],
    key: LessSafeKey,
}

impl Tickets {
    /// Reads the keys of a file. `bound_to`: a ticket that was made with other bytes is not accepted.
    ///
    /// # Errors
    /// One line that names the file and the line, and never what is in it.
    pub(super) fn read(file: &Path, bound_to: &[u8]) -> Result<Self, String> {
        let wrong = |why: &str| format!("ticket-keys: {}: {why}", file.display());
        let length = std::fs::metadata(file).map_err(|error| wrong(&error.to_string()))?.len();
        if length > LONGEST_FILE {
            return Err(wrong("must be at most 64 KiB"));
        }
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error.to_string()))?;
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|(at, line)| {
            let key = from_hex(line).and_then(|bytes| Key::new(&bytes));
            key.ok_or_else(|| {
                wrong(&format!(
                    "line {at} must be 64 hexadecimal digits, as `openssl rand -hex 32` prints them"
                ))
            })
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() || keys.len() > MOST_KEYS {
            return Err(wrong("must hold 1 to 16 keys, each a line of 64 hexadecimal digits"));
        }
        Ok(Self { keys, bound_to: Sha256::digest(bound_to).into() })
    }

    /// Makes a random key that only this process has.
    pub(super) fn random(bound_to: &[u8]) -> Self {
        let mut bytes = [0; KEY];
        // Without randomness there are no tickets: every handshake is a full one.
        let key = getrandom::fill(&mut bytes).ok().and_then(|()| Key::new(&bytes));
        Self { keys: key.into_iter().collect(), bound_to: Sha256::digest(bound_to).into() }
    }
}

impl Key {
    fn new(bytes: &[u8; KEY]) -> Option<Self> {
        let mut name = [0; NAME];
        let hash = Sha256::new().chain_update(b"mainstay ticket key").chain_update(bytes).finalize();
        name.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
        Some(Self { name, key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?) })
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let Key { name, key } = self.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let nonce_for_key = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_for_key, Aad::from(self.bound_to), &mut sealed).ok()?;
        Some([&name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let Key { key, .. } = self.keys.iter().find(|key| key.name == *name)?;
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(self.bound_to), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({} keys)", self.keys.len())
    }
}

fn from_hex(line: &str) -> Option<[u8; KEY]> {
    let digits: Vec<u8> =
        line.chars().map(|digit| digit.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    bytes.try_into().ok().filter(|_| digits.len() == 2 * KEY)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    fn tickets(text: &str, bound_to: &[u8]) -> Result<Tickets, String> {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let name = format!("mainstay-tickets-{}-{}", std::process::id(), FILES.fetch_add(1, Relaxed));
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, text).unwrap();
        let read = Tickets::read(&file, bound_to);
        std::fs::remove_file(&file).unwrap();
        read
    }

    fn key(digit: char) -> String {
        digit.to_string().repeat(64) + "\n"
    }

    #[test]
    fn a_ticket_is_read_by_every_process_with_its_key_until_that_is_removed() {
        let (old, both, new) = (key('a'), key('b') + &key('a'), "# rotated\n\n".to_owned() + &key('b'));
        let [old, both, new] = [old, both, new].map(|text| tickets(&text, b"").unwrap());
        let ticket = old.encrypt(b"session").unwrap();
        assert_eq!(both.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(new.decrypt(&ticket), None);
        let ticket = both.encrypt(b"next").unwrap();
        assert_eq!((new.decrypt(&ticket).as_deref(), old.decrypt(&ticket)), (Some(&b"next"[..]), None));
    }

    #[test]
    fn a_ticket_is_bound_to_the_files_that_judge_clients() {
        let (one, other) = (tickets(&key('c'), b"ca 1").unwrap(), tickets(&key('c'), b"ca 2").unwrap());
        let ticket = one.encrypt(b"session").unwrap();
        assert!(one.decrypt(&ticket).is_some() && other.decrypt(&ticket).is_none());
    }

    #[test]
    fn a_forged_or_cut_ticket_is_none() {
        let tickets = tickets(&key('d'), b"").unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None);
        }
        for at in 0..ticket.len() {
            let mut forged = ticket.clone();
            forged[at] ^= 1;
            assert_eq!(tickets.decrypt(&forged), None, "{at}");
        }
    }

    #[test]
    fn a_wrong_file_is_refused_by_line_and_its_content_is_not_quoted() {
        let short = "e".repeat(63);
        for (text, words) in [
            (String::new(), "1 to 16 keys"),
            (key('e').repeat(17), "1 to 16 keys"),
            (key('e') + &short, "line 2 must be 64 hexadecimal digits"),
            ("g".repeat(64), "line 1"),
            ("+1".repeat(32), "line 1"),
            ("x".repeat(70_000), "at most 64 KiB"),
        ] {
            let error = tickets(&text, b"").unwrap_err();
            assert!(error.contains(words) && !error.contains("eee") && !error.contains("ggg"), "{error}");
        }
    }
}
