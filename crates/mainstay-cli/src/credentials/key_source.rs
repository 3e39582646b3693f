//! Where the keys come from: a file, or a JWKS URL.

use std::path::Path;
use std::sync::Arc;

use super::jwks::{Jwks, Undecided};
use super::keys::{KeySet, Signing};
use super::refusal::{Reason, Refusal};

/// See the module.
pub(crate) enum KeySource {
    File(Arc<KeySet>),
    Url(Arc<Jwks>),
}

impl KeySource {
    /// Reads a file.
    ///
    /// # Errors
    /// One line that names the field.
    pub(crate) fn file(path: &Path, allowed: &[Signing]) -> Result<Self, String> {
        Ok(Self::File(Arc::new(read(path, allowed)?)))
    }

    /// Returns the keys.
    ///
    /// # Errors
    /// The issuer never answered, or has not for too long.
    pub(crate) async fn keys(&self) -> Result<Arc<KeySet>, Refusal> {
        match self {
            Self::File(keys) => Ok(Arc::clone(keys)),
            Self::Url(jwks) => jwks.keys().await.ok_or_else(|| {
                Refusal::new(Reason::KeysUnavailable, "no keys of the issuer are known; the log says why")
            }),
        }
    }

    /// Returns newer keys for a token that none of the known ones has signed.
    ///
    /// # Errors
    /// `unknown`, or a temporary refusal while that is not certain.
    pub(crate) async fn newer(&self, known: &Arc<KeySet>, unknown: Refusal) -> Result<Arc<KeySet>, Refusal> {
        let Self::Url(jwks) = self else { return Err(unknown) };
        jwks.newer(known).await.map_err(|undecided| match undecided {
            Undecided::NotThere => unknown,
            Undecided::NotNow => {
                let detail = format!("{}, and the issuer's keys cannot be fetched again now", unknown.detail);
                Refusal::new(Reason::KeysUnavailable, detail)
            }
        })
    }
}

fn read(path: &Path, allowed: &[Signing]) -> Result<KeySet, String> {
    let wrong = |why: String| format!("keys-file: {}: {why}", path.display());
    let content = std::fs::read(path).map_err(|error| wrong(format!("{error}; name a readable file")))?;
    KeySet::of_file(&content, allowed).map_err(wrong)
}
