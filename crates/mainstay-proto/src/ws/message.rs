//! One message: its kind and its payload. Text that is not UTF-8 cannot be made.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use super::Kind;

/// One message.
///
/// A clone shares the payload. `Debug` shows the kind and the length, never the payload: payloads do not belong in
/// logs.
///
/// ```
/// use mainstay_proto::ws::Message;
///
/// let greeting = Message::from("hello");
/// assert_eq!(greeting.as_text(), Some("hello"));
/// assert_eq!(format!("{greeting:?}"), "Text(5 bytes)");
/// assert_eq!(Message::from(vec![1, 2, 3]), Message::binary([1, 2, 3].as_slice()));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Message {
    /// UTF-8 text.
    Text(Utf8Bytes),
    /// Any bytes.
    Binary(Bytes),
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<Utf8Bytes>) -> Self {
        Self::Text(text.into())
    }

    /// A binary message. `&[u8]` is copied by [`Message::from`], `&'static [u8]` is not here.
    pub fn binary(payload: impl Into<Bytes>) -> Self {
        Self::Binary(payload.into())
    }

    /// A message of this kind.
    ///
    /// # Errors
    /// Text that is not UTF-8.
    pub fn new(kind: Kind, payload: Bytes) -> Result<Self, NotUtf8> {
        match kind {
            Kind::Text => Utf8Bytes::try_from(payload).map(Self::Text),
            Kind::Binary => Ok(Self::Binary(payload)),
        }
    }

    /// Whether it is text or binary.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Binary(_) => Kind::Binary,
        }
    }

    /// The payload of either kind.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        match self {
            Self::Text(text) => &text.0,
            Self::Binary(payload) => payload,
        }
    }

    /// The payload of either kind, without a copy.
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        match self {
            Self::Text(text) => text.0,
            Self::Binary(payload) => payload,
        }
    }

    /// The text of a text message, `None` for a binary one. Costs what [`Utf8Bytes::as_str`] costs.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// The text of a message of either kind, without a copy.
    ///
    /// # Errors
    /// A binary message that is not UTF-8 comes back.
    pub fn into_text(self) -> Result<Utf8Bytes, Self> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Binary(payload) => {
                Utf8Bytes::try_from(payload).map_err(|NotUtf8(bytes)| Self::Binary(bytes))
            }
        }
    }

    /// The length of the payload in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.payload().len()
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.payload().is_empty()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({} bytes)", self.kind(), self.len())
    }
}

impl From<&str> for Message {
    /// A text message with a copy of `text`.
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<Utf8Bytes> for Message {
    fn from(text: Utf8Bytes) -> Self {
        Self::Text(text)
    }
}

impl From<&[u8]> for Message {
    /// A binary message with a copy of `payload`.
    fn from(payload: &[u8]) -> Self {
        Self::Binary(Bytes::copy_from_slice(payload))
    }
}

impl<const LENGTH: usize> From<&[u8; LENGTH]> for Message {
    /// A binary message with a copy of `payload`.
    fn from(payload: &[u8; LENGTH]) -> Self {
        Self::from(payload.as_slice())
    }
}

impl From<Vec<u8>> for Message {
    fn from(payload: Vec<u8>) -> Self {
        Self::binary(payload)
    }
}

impl From<Bytes> for Message {
    /// A binary message. For text, make a [`Utf8Bytes`] of the bytes first.
    fn from(payload: Bytes) -> Self {
        Self::Binary(payload)
    }
}

/// UTF-8 text in [`Bytes`]: a clone shares it.
///
/// `Debug` shows the length, never the text.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Utf8Bytes(Bytes);

/// Bytes that are not UTF-8. They come back with the error; its `Debug` shows how many they are.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} bytes that are not UTF-8", .0.len())]
pub struct NotUtf8(pub Bytes);

impl Utf8Bytes {
    /// Text that lies in the program; nothing is copied.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// What the codec has checked.
    pub(super) fn checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The text. Reads it once from end to end, since safe code cannot show that it was checked before: keep the
    /// `&str` rather than ask twice. `Deref` does the same.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Checked where it was made: there is no other way to make one.
        simdutf8::basic::from_utf8(&self.0).unwrap_or_default()
    }

    /// The bytes of the text; this reads nothing.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The length in bytes; this reads nothing.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Deref for Utf8Bytes {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Utf8Bytes {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<[u8]> for Utf8Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Utf8Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Utf8Bytes({} bytes)", self.len())
    }
}

impl fmt::Debug for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NotUtf8({} bytes)", self.0.len())
    }
}

impl PartialEq<str> for Utf8Bytes {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for Utf8Bytes {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl From<&str> for Utf8Bytes {
    /// Copies the text; [`Utf8Bytes::from_static`] does not.
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<&String> for Utf8Bytes {
    /// Copies the text.
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Utf8Bytes {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl From<Utf8Bytes> for String {
    fn from(text: Utf8Bytes) -> Self {
        text.as_str().to_owned()
    }
}

impl From<Utf8Bytes> for Bytes {
    fn from(text: Utf8Bytes) -> Self {
        text.0
    }
}

impl TryFrom<Bytes> for Utf8Bytes {
    type Error = NotUtf8;

    /// Checks the bytes and copies nothing.
    fn try_from(bytes: Bytes) -> Result<Self, NotUtf8> {
        match simdutf8::basic::from_utf8(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(_) => Err(NotUtf8(bytes)),
        }
    }
}

impl TryFrom<Vec<u8>> for Utf8Bytes {
    type Error = NotUtf8;

    /// Checks the bytes and copies nothing.
    fn try_from(bytes: Vec<u8>) -> Result<Self, NotUtf8> {
        Self::try_from(Bytes::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_made_of_what_applications_have() {
        let check = |message: Message, kind, payload: &[u8]| {
            assert_eq!((message.kind(), &**message.payload(), message.len()), (kind, payload, payload.len()));
        };
        check("hällo".into(), Kind::Text, "hällo".as_bytes());
        check(String::from("a").into(), Kind::Text, b"a");
        check(Utf8Bytes::from_static("a").into(), Kind::Text, b"a");
        check(vec![1, 2].into(), Kind::Binary, &[1, 2]);
        check([1, 2].as_slice().into(), Kind::Binary, &[1, 2]);
        check(b"ab".into(), Kind::Binary, b"ab");
        check(Bytes::from_static(b"a").into(), Kind::Binary, b"a");
    }

    #[test]
    fn text_that_is_not_utf8_cannot_be_made() {
        let bad = Bytes::from_static(b"ab\xff");
        assert_eq!(Utf8Bytes::try_from(bad.clone()), Err(NotUtf8(bad.clone())));
        assert_eq!(NotUtf8(bad.clone()).to_string(), "3 bytes that are not UTF-8");
        assert_eq!(Message::from(bad.clone()).into_text(), Err(Message::Binary(bad)));
        assert_eq!(Message::from(b"ab").into_text().unwrap(), "ab");
    }

    #[test]
    fn a_clone_shares_the_text() {
        let text = Utf8Bytes::from(String::from("hello"));
        assert_eq!(text.clone().as_bytes().as_ptr(), text.as_bytes().as_ptr());
        let payload = Bytes::from(text.clone());
        assert_eq!(payload.as_ptr(), text.as_bytes().as_ptr());
    }

    #[test]
    fn debug_shows_no_payload() {
        let secret = "hunter2";
        for shown in [
            format!("{:?}", Message::text(secret)),
            format!("{:?}", Message::from(secret.as_bytes())),
            format!("{:?}", Utf8Bytes::from(secret)),
            format!("{:?}", NotUtf8(secret.into())),
        ] {
            assert!(!shown.contains(secret) && shown.contains("7 bytes"), "{shown}");
        }
    }
}
