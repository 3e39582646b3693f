//! Two services, and a receipt for each message: `billing` acknowledges an invoice once it is stored, and `orders`
//! learns the outcome of each, over as many connections as it takes.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Router, routing::any};
use mainstay::{Client, CloseCode, Outcome, Server, Session, SessionUpgrade};

/// Stands for billing's database.
type Ledger = Arc<Mutex<Vec<String>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ledger = Ledger::default();
    let url = start_billing(ledger.clone()).await?;

    let billing = Client::builder(&url)?.connect();
    let mut receipts = Vec::new();
    for number in 1..=3 {
        let invoice = format!("invoice {number}");
        receipts.push((invoice.clone(), billing.send_tracked(invoice).await?));
        billing.reconnect(); // the connection is lost under each of them
    }
    for (invoice, receipt) in receipts {
        match receipt.await {
            Outcome::Delivered => println!("orders: {invoice} is stored"),
            Outcome::NotDelivered => println!("orders: {invoice} was not stored, and can be sent again"),
            // Only if billing's process died, or stayed away for longer than the resume window.
            outcome => println!("orders: {invoice}: {outcome:?}, compare the ledgers"),
        }
    }
    billing.close(CloseCode::NORMAL, "").await;
    println!("billing: {:?}", ledger.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

async fn start_billing(ledger: Ledger) -> std::io::Result<String> {
    let server = Server::default();
    let route = any(async |upgrade: SessionUpgrade| {
        upgrade.manual_ack().on_session(move |session| store(ledger, session))
    });
    let app = Router::new().route("/billing", route);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}/billing", listener.local_addr()?);
    tokio::spawn(mainstay::serve(listener, app, &server).into_future());
    Ok(url)
}

async fn store(ledger: Ledger, mut session: Session) {
    while let Some(message) = session.recv().await {
        let invoice = message.as_text().unwrap_or_default().to_owned();
        ledger.lock().unwrap_or_else(PoisonError::into_inner).push(invoice);
        session.ack(); // stored: `Delivered` at the sender
    }
}
