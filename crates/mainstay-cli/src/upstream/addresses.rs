//! The addresses of a backend, as the operator wrote them.

use mainstay::client::{Connector, Place};

use crate::upstream::Address;

/// Maximum number of addresses of one backend.
const MAX_ADDRESSES: usize = 256;

/// Pairs each place with its connector.
///
/// # Errors
/// Begins with the field. The places cannot be addresses of one backend: a path or a scheme differs, or one of them is there
/// twice.
pub(crate) fn addresses<'a>(
    places: impl Iterator<Item = &'a Place>,
    connectors: Vec<Connector>,
) -> Result<Vec<Address>, String> {
    if connectors.len() > MAX_ADDRESSES {
        return Err(format!("addresses: must be at most {MAX_ADDRESSES}; these are {}", connectors.len()));
    }
    let mut addresses: Vec<Address> = Vec::with_capacity(connectors.len());
    for (place, connector) in places.zip(connectors) {
        let address = Address { name: place.to_string().into(), url: place.url.clone(), connector };
        if let Some(first) = addresses.first() {
            check(first, &address)?;
        }
        if addresses.iter().any(|other| other.name == address.name) {
            return Err(format!("addresses: {} is there twice; remove one", address.name));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// The addresses of one backend get the same requests.
fn check(first: &Address, other: &Address) -> Result<(), String> {
    let (one, another) = (&first.name, &other.name);
    if first.url.path() != other.url.path() {
        return Err(format!("addresses: {another} must have the same path as {one}"));
    }
    if first.url.scheme() != other.url.scheme() {
        return Err(format!("addresses: {another} must have TLS if {one} has it, and none otherwise"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(places: &[&str]) -> Result<usize, String> {
        let places: Vec<Place> = places.iter().map(|place| crate::values::upstream(place).unwrap()).collect();
        addresses(places.iter(), vec![Connector::default(); places.len()]).map(|addresses| addresses.len())
    }

    #[test]
    fn several_addresses_differ_in_host_port_or_socket_only() {
        assert_eq!(check(&[]), Ok(0));
        assert_eq!(check(&["ws://a:1/x", "ws://a:2/x", "http://b:1/x"]), Ok(3));
        assert_eq!(check(&["ws://a:1", "unix:/run/app.sock"]), Ok(2));
        for (places, words) in [
            (&["ws://a/x", "ws://b/y"][..], "ws://b/y must have the same path as ws://a/x"),
            (&["ws://a", "wss://b"], "must have TLS if ws://a/ has it"),
            (&["ws://a", "ws://b", "ws://a"], "is there twice; remove one"),
        ] {
            let error = check(places).unwrap_err();
            assert!(error.contains(words), "{places:?}: {error}");
        }
    }
}
