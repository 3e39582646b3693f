//! Messages that carry JSON. Needs the feature `json`.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Utf8Bytes;
use super::message::Message;

impl Message {
    /// Creates a text message of `value` as JSON.
    ///
    /// # Errors
    /// `value` has no form in JSON: its `Serialize` failed, or a map of it has keys that are no strings.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        let json = serde_json::to_string(value)?;
        Ok(Self::Text(Utf8Bytes::from(json)))
    }

    /// Parses the payload as JSON, whether the message is text or binary.
    ///
    /// # Errors
    /// The payload is no JSON, or not of this type.
    pub fn parse_json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        let payload: &Bytes = self.payload();
        serde_json::from_slice(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_from_a_json_message_as_it_was() {
        let message = Message::json(&(1, "a")).unwrap();
        assert_eq!(message, Message::text("[1,\"a\"]"));
        assert_eq!(message.parse_json::<(u8, String)>().unwrap(), (1, "a".to_owned()));
        assert_eq!(Message::from(Bytes::from_static(b"[2]")).parse_json::<[u8; 1]>().unwrap(), [2]);
        assert!(Message::text("{").parse_json::<u8>().is_err());
    }
}
