//! Ten thousand guesses of the admin token.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::admin::TokenFile;
use crate::frames::head;
use crate::support::{Gateway, until};

const RIGHT: &str = "0123456789abcdef";

async fn connect_from(local: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{local}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Requests a page with a token on a connection that stays open; returns the status.
async fn ask(stream: &mut TcpStream, token: &str) -> String {
    let request = format!("GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(stream).await.unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head[9..12].to_owned()
}

#[tokio::test]
async fn ten_thousand_guesses_of_the_admin_token_lock_their_address_and_no_other() {
    let file = TokenFile::holding(&format!("{RIGHT}\n"));
    let gateway = Gateway::start(&["--admin", "127.0.0.1:0", "--admin-token-file", file.path()]);
    let admin = gateway.admin.unwrap();
    let mut hostile = connect_from("127.0.0.2", admin).await;
    let mut statuses = std::collections::BTreeMap::new();
    for guess in 0..10_000 {
        *statuses.entry(ask(&mut hostile, &format!("{guess:016}")).await).or_insert(0) += 1;
    }
    let (compared, refused) = (statuses["401"], statuses["429"]);
    // Ten at once, and one every 6 s of the test.
    assert!(compared < 100 && compared + refused == 10_000, "{statuses:?}");
    assert_eq!(ask(&mut hostile, RIGHT).await, "429", "a right one among many guesses is not compared");
    let mut operator = connect_from("127.0.0.3", admin).await;
    assert_eq!(ask(&mut operator, RIGHT).await, "200");
    assert!(gateway.get("/healthz", "").starts_with("HTTP/1.1 200"));
    let token = format!("Authorization: Bearer {RIGHT}\r\n");
    let metrics = gateway.get("/metrics", &token);
    let counted = |reason: &str| -> u32 {
        let name = format!("mainstay_admin_refused_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    assert_eq!((counted("token"), counted("guesses")), (compared, refused + 1));
    let lines = || gateway.log().lines().filter(|line| line.contains("wrong tokens")).count();
    until("the log has it", || lines() > 0).await;
    assert!(lines() < 10, "a line a minute: {}", gateway.log());
}
