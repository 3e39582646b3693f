//! The secrets of a session, and the names they are looked up by.
//!
//! A server never stores a secret: it stores a [`Name`], the SHA-256 of the secret together with the
//! principal that presents it. A token stolen by another principal therefore names nothing at all,
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

/// What a session or a tombstone is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name([u8; 16]);

impl Name {
    /// The name of `secret` as presented by `principal` (empty when nobody is authenticated).
    pub(super) fn of(principal: &[u8], secret: &[u8]) -> Self {
        let digest = Sha256::new()
            .chain_update((principal.len() as u64).to_be_bytes())
            .chain_update(principal)
            .chain_update(secret)
            .finalize();
        Self(prefix(&digest))
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
    fn another_principal_gives_another_name() {
        assert_ne!(Name::of(b"alice", b"token"), Name::of(b"bob", b"token"));
        assert_ne!(Name::of(b"ab", b"c"), Name::of(b"a", b"bc"), "the boundary counts");
        assert_eq!(Name::of(b"alice", b"token"), Name::of(b"alice", b"token"));
    }

    #[test]
    fn no_two_secrets_are_alike_and_the_public_name_is_none_of_them() {
        let mut secrets = Secrets::new([7; 32]);
        let (token, id) = (secrets.token(), secrets.session_id());
        assert_ne!(token, secrets.token());
        assert!(!token.0.starts_with(&id.0));
    }
}
