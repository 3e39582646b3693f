//! What a check at the start finds, in one line that names what to do; and whether waiting helps.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mainstay::cluster::{Engine, EngineError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::node::{A, Node, heartbeat};
use crate::server::{NAME, Server, free_address, wait_until};
use mainstay_proto::cluster::request::Response;

/// What the documentation of `Engine` demands of an operator.
pub(crate) const RULES: &str = "~mainstay:test:* +hset +hgetall +hdel +hmget +exists +del +rpush +ltrim +llen +lrange +pexpire +eval +evalsha \
                     +script|load +info";

#[track_caller]
fn says(error: Option<EngineError>, words: &str, permanent: bool) {
    let error = error.expect("the check fails");
    let line = error.to_string();
    assert!(line.contains(words), "{line}");
    assert!(!line.contains('\n') && !line.contains("hunter2"), "{line}");
    assert_eq!(error.is_permanent(), permanent, "{line}");
}

async fn failure(url: &str) -> Option<EngineError> {
    Engine::parse(url).unwrap().check(NAME).await.err()
}

#[tokio::test]
async fn a_check_returns_the_server_and_leaves_nothing_behind() {
    let server = Server::start(&[]).await;
    let facts = server.engine().check(NAME).await.unwrap();
    let named = facts.server.unwrap();
    assert!(named.starts_with("Redis ") || named.starts_with("Valkey "), "{named}");
    let (_node, incarnation) = Node::connected(server.engine()).await;
    assert_eq!(facts.incarnation, incarnation);
    assert_eq!(facts.warnings, Vec::<String>::new());
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(server.run::<u64>("DBSIZE").await, 0);
}

#[tokio::test]
async fn a_name_that_cannot_be_part_of_a_key_is_refused() {
    let engine = Engine::parse("redis://127.0.0.1:1").unwrap();
    for name in ["", "a b", "{a}", "a:b", &"a".repeat(65)] {
        says(engine.check(name).await.err(), "the cluster's name", true);
    }
}

#[tokio::test]
async fn a_wrong_login_is_permanent() {
    let server =
        Server::start(&["--requirepass", "hunter2", "--user", "node", "on", ">hunter2", "~*", "+@all"]).await;
    let address = server.address;
    says(failure(&format!("redis://{address}")).await, "asks for a password", true);
    says(failure(&format!("redis://:wrong@{address}")).await, "refuses the user or the password", true);
    says(
        failure(&format!("redis://nobody:hunter2@{address}")).await,
        "refuses the user or the password",
        true,
    );
    says(failure(&format!("redis://node@{address}")).await, "the user node has no password", true);
    says(
        failure(&format!("redis+cluster://:wrong@{address}")).await,
        "refuses the user or the password",
        true,
    );
    assert_eq!(failure(&format!("redis://:hunter2@{address}")).await, None);
    assert_eq!(failure(&format!("redis://node:hunter2@{address}")).await, None);
    let engine = Engine::parse(&format!("redis://node:wrong@{address}")).unwrap().password("hunter2");
    assert_eq!(engine.check(NAME).await.err(), None);

    let open = Server::start(&[]).await;
    says(
        failure(&format!("redis://:hunter2@{}", open.address)).await,
        "no password for its default user",
        true,
    );
}

#[tokio::test]
async fn the_documented_rules_are_enough_and_each_is_needed() {
    let server = Server::start(&[]).await;
    let url = format!("redis://node:pw@{}", server.address);
    let set = |rules: String| {
        let server = &server;
        async move {
            let command = format!("ACL SETUSER node reset on >pw {rules}");
            server.run::<()>(command.trim_end()).await;
        }
    };
    set(RULES.to_owned()).await;
    let facts = Engine::parse(&url).unwrap().check(NAME).await.unwrap();
    assert_eq!(facts.warnings, Vec::<String>::new());
    for rule in RULES.split(' ') {
        set(RULES.split(' ').filter(|kept| *kept != rule).collect::<Vec<_>>().join(" ")).await;
        let checked = Engine::parse(&url).unwrap().check(NAME).await;
        match rule {
            "+info" => assert!(checked.unwrap().warnings[0].contains("+info")),
            // For a commit that has not the whole session, and for scripts that were flushed.
            "+ltrim" | "+eval" => assert!(checked.is_ok()),
            _ => says(checked.err(), "allows the user too little", true),
        }
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_permanent() {
    let server = Server::start(&[]).await;
    says(failure(&format!("{}/99", server.url())).await, "fewer databases", true);
    assert_eq!(failure(&format!("{}/3", server.url())).await, None);
}

#[tokio::test]
async fn a_replica_is_permanent_and_a_primary_that_is_away_is_not() {
    let primary = Server::start(&[]).await;
    let (host, port) = (primary.address.ip(), primary.address.port());
    let replica = Server::start(&["--replicaof", &format!("{host} {port}")]).await;
    says(failure(&replica.url()).await, &format!("a replica of {host}:{port}"), true);
    says(failure(&format!("redis://{}", free_address())).await, "is the engine running there?", false);
    says(failure("redis://no-such-host.invalid").await, "no-such-host.invalid", false);
    primary.signal("STOP");
    says(failure(&primary.url()).await, "no answer within", false);
    primary.signal("CONT");
}

#[tokio::test]
async fn an_engine_that_may_evict_is_a_warning_and_one_that_is_full_is_away() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let facts = server.engine().check(NAME).await.unwrap();
    assert!(facts.warnings[0].contains("allkeys-lru"), "{:?}", facts.warnings);
    let full = Server::start(&["--maxmemory", "1"]).await;
    says(failure(&full.url()).await, "raise maxmemory", false);
}

#[tokio::test]
async fn a_unix_socket_is_reached() {
    let folder = env::temp_dir().join(format!("mainstay-sock-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("engine.sock");
    let server = Server::start(&["--unixsocket", socket.to_str().unwrap()]).await;
    let url = format!("redis+unix://{}?db=2", socket.display());
    assert_eq!(failure(&url).await, None);
    let (mut node, _) = Node::connected(Engine::parse(&url).unwrap()).await;
    node.ask(heartbeat(A, "1")).await;
    assert!(server.run::<String>("INFO keyspace").await.contains("db2:"));
    drop(server);
    says(failure(&format!("redis+unix://{}", folder.join("none").display())).await, "none", false);
    fs::remove_dir_all(folder).unwrap();
}

/// Makes an authority and a certificate for `127.0.0.1` in `folder`.
fn certificates(folder: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    for (file, kind, content) in [
        ("ca.pem", "CERTIFICATE", authority.der().to_vec()),
        ("cert.pem", "CERTIFICATE", certificate.der().to_vec()),
        ("key.pem", "PRIVATE KEY", key.serialize_der()),
    ] {
        let content = BASE64_STANDARD.encode(content);
        let pem = format!("-----BEGIN {kind}-----\n{content}\n-----END {kind}-----\n");
        fs::write(folder.join(file), pem).unwrap();
    }
}

/// A server that speaks TLS alone, with its own authority.
async fn tls_server(folder: &Path, more: &[&str]) -> Server {
    fs::create_dir_all(folder).unwrap();
    certificates(folder);
    let file = |name: &str| folder.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let options = [
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    Server::start_tls(&[&options[..], more].concat()).await
}

/// Runs a test in a process of its own: the variable that names the authority is read once, at the start.
async fn in_a_process_that_trusts(folder: &Path, test: &str, url: &str) {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env("MAINSTAY_ENGINE_URL", url);
    let status = child.env("SSL_CERT_FILE", folder.join("ca.pem")).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn tls_is_spoken_with_an_engine_whose_authority_is_trusted() {
    if let Ok(url) = env::var("MAINSTAY_ENGINE_URL") {
        assert_eq!(failure(&url).await, None);
        let (mut node, _) = Node::connected(Engine::parse(&url).unwrap()).await;
        assert!(matches!(node.ask(heartbeat(A, "1")).await, Response::Table(_)));
        return;
    }
    let folder = env::temp_dir().join(format!("mainstay-tls-{}", std::process::id()));
    let server = tls_server(&folder, &[]).await;
    let test = "checks::tls_is_spoken_with_an_engine_whose_authority_is_trusted";
    in_a_process_that_trusts(&folder, test, &format!("rediss://{}", server.address)).await;

    let clustered = tls_server(&folder, &["--cluster-enabled", "yes", "--tls-cluster", "yes"]).await;
    let _: () = clustered.run("CLUSTER ADDSLOTSRANGE 0 16383").await;
    let ready = || async { clustered.run::<String>("CLUSTER INFO").await.contains("cluster_state:ok") };
    wait_until(ready, || "the cluster does not form".to_owned()).await;
    in_a_process_that_trusts(&folder, test, &format!("rediss+cluster://{}", clustered.address)).await;

    // Here it is not trusted; and without TLS nothing comes about.
    says(failure(&format!("rediss://{}", server.address)).await, "SSL_CERT_FILE", true);
    says(failure(&format!("redis://{}", server.address)).await, "speaks TLS: write rediss://", true);
    says(
        failure(&format!("redis+cluster://{}", server.address)).await,
        "speaks TLS: write rediss+cluster://",
        true,
    );
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn tls_towards_an_engine_without_it_is_permanent() {
    let server = Server::start(&[]).await;
    says(failure(&format!("rediss://{}", server.address)).await, "speaks no TLS: write redis://", true);
}
