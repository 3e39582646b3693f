//! `wss://`, to a server behind a TLS terminator.

use std::net::SocketAddr;
use std::sync::Arc;

use mainstay::client::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use mainstay::client::rustls::{ClientConfig, RootCertStore, ServerConfig};
use mainstay::client::{ConnectFailure, Connector, FailureKind};
use mainstay::server::Config;
use mainstay::{Client, CloseCode, Link, Message};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::echo_server;

/// Terminates TLS as `localhost` and forwards the bytes. Returns its address, and its self-signed certificate.
async fn tls_in_front_of(to: SocketAddr) -> (SocketAddr, CertificateDer<'static>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (down, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut down) = acceptor.accept(down).await else { return };
                let mut up = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
            });
        }
    });
    (address, cert.der().clone())
}

fn trusting(certificate: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

#[tokio::test]
async fn messages_go_over_tls_to_a_server_whose_certificate_is_trusted() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let (secure, certificate) = tls_in_front_of(address).await;
    let url = format!("wss://localhost:{}/echo", secure.port());
    let trusts = trusting(certificate);
    let mut client = Client::builder(&url).unwrap().tls(Arc::clone(&trusts)).connect_once().await.unwrap();
    let mut link = Link::builder(&url).unwrap().tls(trusts).connect_once().await.unwrap();
    // More than one TLS record, and more than one write.
    for message in [Message::text("x"), Message::binary(vec![7; 60_000])] {
        client.send(message.clone()).await.unwrap();
        assert_eq!(client.recv().await.as_ref(), Some(&message));
        link.send(message.clone()).await.unwrap();
        assert_eq!(link.recv().await.as_ref(), Some(&message));
    }
    client.close(CloseCode::NORMAL, "").await;
    assert_eq!(client.recv().await, None);
}

/// The failure of a client at a server with this certificate.
async fn distrust(params: rcgen::CertificateParams, trusts: bool) -> ConnectFailure {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let acceptor =
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![cert.der().clone()], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let _ = acceptor.accept(socket).await;
    });
    let connector =
        if trusts { Connector::default().tls(trusting(cert.der().clone())) } else { Connector::default() };
    connector.connect(&format!("wss://localhost:{port}/").parse().unwrap()).await.unwrap_err()
}

#[tokio::test]
async fn a_failure_for_a_certificate_states_why_it_is_not_trusted() {
    let of = |name: &str| rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    let (mut old, mut future, mut issuer) = (of("localhost"), of("localhost"), of("localhost"));
    old.not_after = rcgen::date_time_ymd(2001, 1, 1);
    future.not_before = rcgen::date_time_ymd(4000, 1, 1);
    issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    for (params, trusts, words) in [
        (of("localhost"), false, "self-signed, or its issuer is unknown"),
        (old, true, "expired"),
        (future, true, "not valid yet"),
        (of("other.example"), true, "another name: other.example"),
        (issuer, true, "CA:TRUE"),
    ] {
        let failure = distrust(params, trusts).await;
        assert_eq!(failure.kind, FailureKind::Certificate, "{failure}");
        let begins = "TLS: the certificate of localhost is not trusted";
        assert!(failure.to_string().starts_with(begins) && failure.to_string().contains(words), "{failure}");
    }
}

#[tokio::test]
async fn a_failure_at_a_server_without_tls_states_that_it_speaks_none() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("wss://{}/", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut hello = [0; 16];
            tokio::io::AsyncReadExt::read_exact(&mut socket, &mut hello).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut socket, answer).await.unwrap();
        });
        let failure = Connector::default().connect(&url).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Tls, "{failure}");
        assert!(failure.to_string().contains("no TLS"), "{failure}");
    }
}

#[tokio::test]
async fn a_certificate_may_be_for_the_server_name_of_the_connector() {
    let (address, _mainstay) = echo_server(Config::default()).await;
    let (secure, certificate) = tls_in_front_of(address).await;
    let url = format!("wss://{secure}/echo");
    let connector = Connector::default().tls(trusting(certificate));
    assert!(Client::builder(&url).unwrap().connector(connector.clone()).connect_once().await.is_err());
    let named = connector.server_name("localhost").unwrap();
    assert!(Client::builder(&url).unwrap().connector(named).connect_once().await.is_ok());
    assert!(Connector::default().server_name("not a name").is_err());
}

#[tokio::test]
async fn a_server_with_an_unknown_issuer_or_another_name_is_refused() {
    let (address, mainstay) = echo_server(Config::default()).await;
    let (secure, certificate) = tls_in_front_of(address).await;
    let unknown = Client::builder(&format!("wss://localhost:{}/echo", secure.port())).unwrap();
    let renamed = Client::builder(&format!("wss://127.0.0.1:{}/echo", secure.port())).unwrap();
    for builder in [unknown, renamed.tls(trusting(certificate))] {
        let error = builder.connect_once().await.unwrap_err();
        assert!(error.code().is_none() && error.to_string().starts_with("TLS: "), "{error:?}");
    }
    assert_eq!(mainstay.stats().connections_opened, 0);
}
