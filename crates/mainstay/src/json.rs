//! What both sides need to send and receive typed JSON. Needs the feature `json`.

use mainstay_proto::session::Message;
use serde::de::DeserializeOwned;

use crate::SendError;

/// A value that was not sent as JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendJsonError {
    /// The value has no form in JSON.
    #[error("the value cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The message was not accepted.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// Parses a received message; `None` at the end of the stream.
pub(crate) fn parse<T: DeserializeOwned>(message: Option<Message>) -> Option<Result<T, serde_json::Error>> {
    message.map(|message| message.parse_json())
}
