//! No secret of a client or an operator appears in what the gateway writes, at any level of the log.

use std::time::Duration;

use mainstay::Client;

use crate::frames::Frames;
use crate::guarded::{Folder, bearer, telling_backend, told};
use crate::operator::ask;
use crate::support::{Gateway, mainstay, run, until};
use crate::tokens::{SECRET, Signer, claims_of};

/// Words that stand for passwords of clients. No other part of a test contains them.
const PASSWORDS: [&str; 5] =
    ["planted-in-header", "planted-in-cookie", "planted-in-query", IN_SUBPROTOCOL, "planted-in-basic"];
/// Some clients put a token there, and the backend has to agree to it.
const IN_SUBPROTOCOL: &str = "planted-in-subprotocol.and-as-long-as-a-token-is";
const OF_THE_HOOK: &str = "planted-in-the-hook";

fn settings(folder: &Folder, backend: std::net::SocketAddr) -> String {
    let keys = folder.write("secret", SECRET);
    let hook = format!("http://{backend}/no-such-hook");
    format!(
        "listen = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [routes.chat]\npath = \"/chat\"\n[routes.chat.upstream]\naddresses = [\"ws://{backend}\"]\n\
         [routes.chat.credentials]\nfrom = [\"session\", \"header:Authorization\", \"cookie:jwt\", \"query:token\"]\n\
         [routes.chat.credentials.jwt]\nkeys-file = {keys:?}\n\
         [routes.down]\npath = \"/down\"\n[routes.down.upstream]\naddresses = [\"ws://127.0.0.1:1\"]\nwait = \"100ms\"\n\
         [routes.down.credentials.connect-hook]\nurl = {hook:?}\nallow-on-failure = true\nheaders = {{ Authorization = \"Bearer {OF_THE_HOOK}\" }}\n"
    )
}

/// Presents each token and password in its place, accepted and refused, to a backend that is up and to one that is down.
/// Returns the clients, which stay.
async fn present(gateway: &Gateway, tokens: &[String]) -> (Client, Vec<Frames>) {
    let [header, cookie, query, session, wrong] = tokens else { panic!("{tokens:?}") };
    let mut open = Vec::new();
    let subprotocol = format!("Sec-WebSocket-Protocol: {IN_SUBPROTOCOL}\r\n");
    let [in_header, in_cookie, in_query, _, basic] = PASSWORDS;
    for path in ["/chat", "/down"] {
        for (query, headers) in [
            (
                format!("?password={in_query}"),
                format!("{}X-Password: {in_header}\r\n{subprotocol}", bearer(header)),
            ),
            (String::new(), format!("Cookie: a={in_cookie}; jwt={cookie}\r\n{subprotocol}")),
            (format!("?token={query}&password={in_query}"), String::new()),
            (String::new(), bearer(wrong)),
            (format!("?token={wrong}"), String::new()),
            (String::new(), format!("Authorization: Basic {basic}\r\n")),
        ] {
            open.push(Frames::connect(gateway.address(), &format!("{path}{query}"), &headers).await.1);
        }
    }
    let connected = |token: &str| {
        let url = format!("{}/chat?password={in_query}", gateway.url);
        Client::builder(&url).unwrap().credentials(token.to_owned()).connect()
    };
    let mut client = connected(session);
    told(&mut client).await;
    let mut refused = connected(wrong);
    while refused.recv().await.is_some() {}
    assert!(client.authenticate(wrong.clone()).await.is_err());
    (client, open)
}

#[tokio::test]
async fn planted_tokens_and_passwords_are_in_no_log_line_metric_list_timeline_or_shown_setting() {
    for format in ["text", "json"] {
        let (folder, backend) = (Folder::new(), telling_backend().await);
        let file = folder.write("mainstay.toml", &settings(&folder, backend));
        let mut command = mainstay(&["serve", "--config", &file, "--log-format", format]);
        command.env("MAINSTAY_LOG", "trace");
        let gateway = Gateway::begin(command);
        let of = |subject: &str| Signer::secret().token(&claims_of(subject));
        let wrong = Signer::Hmac("another secret of thirty-two byte".into()).token(&claims_of("mallory"));
        let tokens = ["ann", "bob", "cid", "dan"].map(of).into_iter().chain([wrong]).collect::<Vec<_>>();
        let (client, open) = present(&gateway, &tokens).await;

        let id = client.id().unwrap().to_string();
        let mut outputs = vec![("config show", output(&["config", "show", &file]))];
        let paths = ["/metrics", "/healthz", "/readyz", "/sessions", "/sessions?search=planted", "/"];
        outputs.extend(paths.map(|path| (path, ask(&gateway, "GET", path, "").1)));
        outputs.push(("the timeline", ask(&gateway, "GET", &format!("/sessions/{id}"), "").1));
        drop((client, open));
        until("a client has ended", || gateway.log().contains("client ended")).await;
        gateway.signal("TERM");
        tokio::time::sleep(Duration::from_millis(200)).await;
        outputs.push(("the log", gateway.log()));
        assert!(
            outputs[4].1.contains("\"subject\":\"dan\""),
            "the list is that of this gateway: {}",
            outputs[4].1
        );

        let signatures = tokens.iter().map(|token| token.rsplit('.').next().unwrap());
        let mut found = Vec::new();
        for secret in signatures.chain(PASSWORDS).chain([OF_THE_HOOK, SECRET]) {
            for (name, text) in &outputs {
                found.extend(
                    text.lines().find(|line| line.contains(secret)).map(|line| format!("{name}: {line}")),
                );
            }
        }
        assert!(found.is_empty(), "{format}: {}", found.join("\n"));
    }
}

fn output(arguments: &[&str]) -> String {
    let output = run(arguments, b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}
