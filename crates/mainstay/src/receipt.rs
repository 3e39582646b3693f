//! What became of a message that was sent with `send_tracked`, on either side.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The peer acknowledged it: its application (`mainstay.v1`), or its WebSocket stack (plain servers).
    Delivered,
    /// It was not delivered, and will not be.
    NotDelivered,
    /// It may or may not have been delivered.
    Unknown,
}

/// A future that resolves to what became of one message. A drop of it changes nothing.
///
/// ```no_run
/// use mainstay::{Client, Outcome};
///
/// # async fn run(client: Client) -> Result<(), mainstay::SendError> {
/// let receipt = client.send_tracked("order 17").await?;
/// match receipt.await {
///     Outcome::Delivered => println!("the server has it"),
///     Outcome::NotDelivered => println!("send it again"),
///     _ => println!("ask the server"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "await it; `send` sends without a receipt"]
pub struct Receipt(pub(crate) oneshot::Receiver<Outcome>);

/// The other end of a [`Receipt`].
pub(crate) type Settle = oneshot::Sender<Outcome>;

impl Receipt {
    pub(crate) fn new() -> (Settle, Self) {
        let (settle, receiver) = oneshot::channel();
        (settle, Self(receiver))
    }
}

impl Future for Receipt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        // A sender that is gone cannot report any more.
        Pin::new(&mut self.0).poll(cx).map(|settled| settled.unwrap_or(Outcome::Unknown))
    }
}
