//! The example of a chat does what its page says.

use std::net::SocketAddr;

use mainstay::{Client, Message, Server};
use tokio::net::TcpListener;

use crate::support::Proxy;

#[allow(dead_code, unreachable_pub, reason = "an example is a program")]
#[path = "../../examples/chat.rs"]
mod example;

async fn serve() -> (SocketAddr, Server) {
    let chat = example::Chat::default();
    let mainstay = chat.mainstay.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, example::app(chat), &mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    (address, mainstay)
}

fn member(address: SocketAddr, name: &str) -> Client {
    Client::builder(&format!("ws://{address}/chat/lobby?name={name}")).unwrap().connect()
}

async fn hears(member: &mut Client, line: &str) {
    assert_eq!(member.recv().await.as_ref().and_then(Message::as_text), Some(line));
}

#[tokio::test]
async fn members_see_who_comes_speaks_is_away_and_leaves() {
    let (address, _mainstay) = serve().await;
    let proxy = Proxy::to(address).await;
    let mut ada = member(address, "ada");
    hears(&mut ada, "* ada is here").await;
    let mut bob = member(proxy.address, "bob");
    hears(&mut ada, "* bob is here").await;
    hears(&mut bob, "* bob is here").await;
    proxy.close();
    hears(&mut ada, "* bob is away").await;
    ada.send("hello bob").await.unwrap();
    hears(&mut ada, "ada: hello bob").await;
    proxy.open();
    hears(&mut bob, "ada: hello bob").await;
    bob.send("/leave").await.unwrap();
    hears(&mut ada, "* bob left (closed)").await;
    assert_eq!(bob.recv().await, None);
}
