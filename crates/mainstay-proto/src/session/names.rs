//! The secrets of a session, and the names under which the registry finds them.
//!
//! A server never stores a secret. It stores a [`Name`]: the SHA-256 of the secret and its [`Presenter`]. A token
//! that another principal stole names nothing, with the same answer and the same timing as a token that was never
//! issued. The server compares hashes that the peer cannot choose, so the comparison reveals nothing about the
//! secret.
//!
//! Secrets are derived from a seed that the driver gets from the operating system: the n-th secret is the SHA-256 of
//! seed and n. Nothing here asks for randomness, so a run can be repeated.
//!
//! Source: `docs/PROTOCOL.md` "Attaching".

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::message::{ClientKey, Instance, ResumeToken, SessionId};
use super::route::Route;

/// The principal that presents a secret, and the place. A session opens only to the principal that opened it, at the
/// place where it was opened: another place may admit other clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Presenter<'a> {
    /// The authenticated principal; empty: none.
    pub principal: &'a [u8],
    /// The path of the opening request, without its query, because tokens in a query change; or the server's own name for
    /// the place, such as a route and the path.
    pub path: &'a str,
}

impl Presenter<'_> {
    /// Returns the name of `secret` as presented here.
    pub(super) fn name(&self, secret: &[u8]) -> Name {
        Name::of(&[self.principal, self.path.as_bytes(), secret])
    }

    /// Returns the name of a resume token as presented here: by it the engine and the nodes compare what a client
    /// presents, and none of them needs the token itself.
    #[must_use]
    pub fn token_name(&self, token: &ResumeToken) -> [u8; 16] {
        self.name(&token.0).0
    }

    /// Returns the name of the principal alone.
    pub(super) fn principal(&self) -> Name {
        Name::of_principal(self.principal)
    }
}

/// The name under which a session or a tombstone is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(pub(super) [u8; 16]);

impl Name {
    pub(super) fn of_principal(principal: &[u8]) -> Self {
        Self::of(&[principal])
    }

    /// Hashes each part with its length, so that bytes cannot move from one part to the next.
    fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self(prefix(&digest.finalize()))
    }
}

/// Derives secrets and public names from one seed, one after the other.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secrets {
    seed: [u8; 32],
    drawn: u64,
}

impl Secrets {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, drawn: 0 }
    }

    /// Returns a fresh token; with a route in front, where the server has one.
    pub(super) fn token(&mut self, route: Option<Route>) -> ResumeToken {
        let secret = self.draw::<24>();
        ResumeToken(match route {
            None => Bytes::copy_from_slice(&secret),
            Some(route) => Bytes::from([route.to_bytes().as_slice(), &secret].concat()),
        })
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

    /// Returns a random name, at which eviction starts sampling.
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
        let (token, id) = (secrets.token(None), secrets.session_id());
        assert_ne!(token, secrets.token(None));
        assert!(!token.0.starts_with(&id.0));
    }
}
