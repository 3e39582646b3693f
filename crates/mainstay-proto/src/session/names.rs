//! The secrets of a session, and the names they are looked up by.
//!
//! A server never stores a secret: it stores a [`Name`], the SHA-256 of the secret together with the
//! [`Presenter`] of it. A token stolen by another principal therefore names nothing at all,
//! with the same answer and the same timing as one that was never issued; and since what is compared
//! are hashes that the peer cannot choose, the comparison tells nothing about the secret.
//!
//! Secrets are drawn from a seed that the driver takes from the operating system: the n-th secret is
//! the SHA-256 of seed and n. Nothing here asks for randomness, so a run can be repeated.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::message::{ClientKey, Instance, ResumeToken, SessionId};

/// Who presents a secret, and where. A session opens only to the one who opened it, at the path where it
/// was opened: another path has other rules about who may come in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Presenter<'a> {
    /// As what it is authenticated; empty: nobody in particular.
    pub principal: &'a [u8],
    /// The path of the opening request, without its query, in which tokens change.
    pub path: &'a str,
}

impl Presenter<'_> {
    /// The name of `secret` as presented here.
    pub(super) fn name(&self, secret: &[u8]) -> Name {
        Name::of(&[self.principal, self.path.as_bytes(), secret])
    }

    /// The name of the principal alone.
    pub(super) fn principal(&self) -> Name {
        Name::of_principal(self.principal)
    }
}

/// What a session or a tombstone is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name([u8; 16]);

impl Name {
    pub(super) fn of_principal(principal: &[u8]) -> Self {
        Self::of(&[principal])
    }

    /// Each part with its length, so that what ends one part cannot begin the next.
    fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self(prefix(&digest.finalize()))
    }
}

/// Draws secrets and public names, one after the other, from one seed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secrets {
    seed: [u8; 32],
    drawn: u64,
}

impl Secrets {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    pub(super) fn token(&mut self) -> ResumeToken {
        ResumeToken(Bytes::copy_from_slice(&self.draw::<24>()))
    }

    pub(super) fn client_key(&mut self) -> ClientKey {
        ClientKey(self.draw())
    }

    pub(super) fn instance(&mut self) -> Instance {
        Instance(self.draw())
    }

    pub(super) fn session_id(&mut self) -> SessionId {
        SessionId(self.draw())
    }

    /// Where to begin to look around.
    pub(super) fn name(&mut self) -> Name {
        Name(self.draw())
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        self.drawn += 1;
        prefix(&Sha256::new().chain_update(self.seed).chain_update(self.drawn.to_be_bytes()).finalize())
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

fn prefix<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_principal_or_path_gives_another_name() {
        let name = |principal: &str, path, secret: &str| {
            Presenter { principal: principal.as_bytes(), path }.name(secret.as_bytes())
        };
        assert_eq!(name("alice", "/chat", "token"), name("alice", "/chat", "token"));
        assert_ne!(name("alice", "/chat", "token"), name("bob", "/chat", "token"));
        assert_ne!(name("alice", "/chat", "token"), name("alice", "/admin", "token"));
        assert_ne!(name("ab", "c", "d"), name("a", "bc", "d"), "the boundary counts");
        assert_ne!(name("a", "bc", "d"), name("a", "b", "cd"), "the boundary counts");
    }

    #[test]
    fn no_two_secrets_are_alike_and_the_public_name_is_none_of_them() {
        let mut secrets = Secrets::new([7; 32]);
        let (token, id) = (secrets.token(), secrets.session_id());
        assert_ne!(token, secrets.token());
        assert!(!token.0.starts_with(&id.0));
    }
}
