//! Requests that a page of another site makes a browser send: by its own name for our address (DNS rebinding), or in the name
//! of the user (CSRF). For listeners that are open to this machine.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, Version, header};
use http::uri::Authority;

/// Returns whether the body is JSON: a page of another site may send that only after a preflight, which we refuse.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = content_type.split(';').next().unwrap_or("").trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Returns whether the Origin, if there is one, is the host of the request.
pub(crate) fn is_same_site(headers: &HeaderMap, names: &[Authority]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some_and(|origin| names.iter().all(|name| name.as_str().eq_ignore_ascii_case(origin)))
}

/// Returns the hosts of a request: its Host header, and the authority of its target if that is a URL. Only HTTP/1.0
/// requests may have none. `None`: the request violates RFC 9112 section 3.2.
pub(crate) fn hosts(request: &Request) -> Option<Vec<Authority>> {
    let target = request.uri();
    let is_right =
        target.path().starts_with('/') && target.authority().is_some() == target.scheme().is_some();
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts: Vec<Authority> = hosts.map(|host| host.to_str().ok()?.parse().ok()).collect::<Option<_>>()?;
    let is_enough = hosts.len() == 1 || (hosts.is_empty() && request.version() == Version::HTTP_10);
    (is_right && is_enough).then(|| hosts.into_iter().chain(target.authority().cloned()).collect())
}

/// Returns a host as certificates write it: in lower case, without brackets and without the dot of the root.
pub(crate) fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase()
}

/// Returns whether a host can only mean this machine: a loopback address, the local address of the connection, or a name
/// under `localhost`, which no name server resolves (RFC 6761 section 6.3).
pub(crate) fn is_local(host: &str, local: Option<IpAddr>) -> bool {
    let host = bare(host);
    match host.parse::<IpAddr>() {
        Ok(address) => {
            let address = address.to_canonical();
            address.is_loopback() || local.is_some_and(|local| local.to_canonical() == address)
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_name_server_may_resolve_is_not_local() {
        let check = |host: &str, expected| {
            let local = Some("10.0.0.7".parse().unwrap());
            assert_eq!(is_local(host, local), expected, "{host}");
        };
        for ours in
            ["127.0.0.1", "127.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST", "localhost."]
        {
            check(ours, true);
        }
        check("mainstay.localhost", true);
        check("10.0.0.7", true);
        for other in ["rebound.example", "10.0.0.8", "localhost.example", "127.0.0.1.example", "", "0.0.0.0"]
        {
            check(other, false);
        }
    }
}
