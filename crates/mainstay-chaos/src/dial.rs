//! Connecting to the upstream, but not to the proxy itself: each connection would open another one, without an end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long the upstream may take to accept a connection.
const LIMIT: Duration = Duration::from_secs(10);

/// Connects a proxy that listens at `listen` to `upstream`.
pub(crate) async fn dial(upstream: String, listen: SocketAddr) -> io::Result<TcpStream> {
    let began = Instant::now();
    timeout(LIMIT, connect(&upstream, listen)).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", began.elapsed().as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    })
}

async fn connect(upstream: &str, listen: SocketAddr) -> io::Result<TcpStream> {
    let others: Vec<_> = lookup_host(upstream).await?.filter(|address| !leads_to(*address, listen)).collect();
    if others.is_empty() {
        return Err(io::Error::other("this is the address of the proxy itself; name the server's"));
    }
    TcpStream::connect(&others[..]).await
}

/// Whether a connection to `address` arrives at what listens at `listen`.
fn leads_to(address: SocketAddr, listen: SocketAddr) -> bool {
    // A system connects `0.0.0.0` and `[::]` to itself.
    let to = match address.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let takes_any = listen.ip().is_unspecified() && (listen.is_ipv6() || to.is_ipv4());
    address.port() == listen.port()
        && (to == listen.ip().to_canonical() || takes_any && is_of_this_machine(to))
}

/// Whether an interface of this machine has the address: the system reaches it from itself. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    ip.is_loopback() || source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, listen: &str, expected: bool) {
        let (to, at) = (address.parse().unwrap(), listen.parse().unwrap());
        assert_eq!(leads_to(to, at), expected, "{address} to {listen}");
    }

    #[test]
    fn a_proxy_knows_its_own_address_in_every_form() {
        check("127.0.0.1:80", "127.0.0.1:80", true);
        check("127.0.0.1:81", "127.0.0.1:80", false);
        check("127.0.0.2:80", "127.0.0.1:80", false);
        check("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true);
        check("0.0.0.0:80", "127.0.0.1:80", true);
        check("0.0.0.0:80", "127.0.0.2:80", false);
        check("127.9.9.9:80", "0.0.0.0:80", true);
        check("192.0.2.1:80", "0.0.0.0:80", false);
    }

    #[test]
    fn a_listener_of_all_addresses_of_one_family_has_not_those_of_the_other() {
        check("[::1]:80", "0.0.0.0:80", false);
        check("127.0.0.1:80", "[::]:80", true);
        if is_of_this_machine(Ipv6Addr::LOCALHOST.into()) {
            check("[::1]:80", "[::]:80", true);
        }
    }

    #[test]
    fn a_listener_of_all_addresses_has_those_of_every_interface() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // A documentation prefix; a machine without a route to it has perhaps loopback alone.
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(leads_to((own, 80).into(), "0.0.0.0:80".parse().unwrap()), "{own}");
            assert!(leads_to((own, 80).into(), "[::]:80".parse().unwrap()), "{own}");
        }
    }
}
