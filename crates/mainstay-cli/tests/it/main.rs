//! The real binary, with the clients and backends that use it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod addresses;
mod admin;
mod admin_tls;
mod bench;
mod chaos;
mod client_certificates;
mod client_limits;
mod client_tls;
mod config;
mod connect;
mod credentials;
mod credentials_end;
mod doctor;
mod doctor_measure;
mod flags;
mod frames;
mod guarded;
mod handshake;
mod hibernation;
mod hostile;
mod http;
mod jwks;
mod limits;
mod listeners;
mod loss;
mod losses;
mod moving;
mod operate;
mod operator;
mod packaging;
mod page;
mod profiles;
mod promises;
mod proxy_protocol;
mod real_proxies;
mod restart;
mod resume;
mod routes;
mod secrets;
mod smuggling;
#[cfg(feature = "otlp")]
mod spans;
mod supervisor;
mod support;
mod tls;
#[path = "../../src/credentials/test_tokens.rs"]
mod tokens;
mod trace_context;
mod upstream;
