//! The example of a chat does what its page describes.

use std::net::SocketAddr;

use mainstay::{Client, CloseCode, Message, Server};
use tokio::net::TcpListener;

use crate::support::Proxy;

#[allow(dead_code, reason = "an example is a program")]
#[path = "../../../../examples/chat/main.rs"]
mod example;

async fn serve() -> (SocketAddr, Server) {
    let mainstay = Server::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = mainstay::serve(listener, example::app(), &mainstay);
    tokio::spawn(async move { server.await.unwrap() });
    (address, mainstay)
}

fn member(address: SocketAddr, name: &str) -> Client {
    Client::builder(&format!("ws://{address}/chat/lobby/{name}")).unwrap().connect()
}

async fn reads(member: &mut Client, line: &str) {
    assert_eq!(member.recv().await.as_ref().and_then(Message::as_text), Some(line));
}

#[tokio::test]
async fn members_see_other_members_come_speak_go_away_and_leave() {
    let (address, _mainstay) = serve().await;
    let proxy = Proxy::to(address).await;
    let mut ada = member(address, "ada");
    reads(&mut ada, "* ada is here").await;
    let mut bob = member(proxy.address, "bob");
    reads(&mut ada, "* bob is here").await;
    reads(&mut bob, "* ada is here").await;
    reads(&mut bob, "* bob is here").await;
    proxy.close();
    reads(&mut ada, "* bob is away").await;
    ada.send("hello bob").await.unwrap();
    reads(&mut ada, "ada: hello bob").await;
    proxy.open();
    reads(&mut bob, "* bob is away").await;
    reads(&mut bob, "ada: hello bob").await;
    bob.close(CloseCode::NORMAL, "").await;
    reads(&mut ada, "* bob left").await;
}
