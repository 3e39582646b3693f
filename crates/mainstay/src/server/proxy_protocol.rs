//! The step before all others on a connection of a trusted proxy: its PROXY header, which names the client.
//!
//! A header of anyone else would let that client choose its address, so their bytes are never read as one.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mainstay_proto::proxy_header::{Header, HeaderError, Parsed, Versions, parse};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::paced_log::PacedLog;
use super::stats::Counters;

type Trusts = dyn Fn(Option<IpAddr>) -> bool + Send + Sync;

/// The proxies that send PROXY headers, and the versions, for [`Serve::proxy_protocol`](super::Serve::proxy_protocol).
///
/// ```
/// use mainstay::server::{ProxyProtocol, Versions};
///
/// let balancer: std::net::IpAddr = [10, 0, 0, 1].into();
/// let proxies = ProxyProtocol::new(Versions::Two, move |peer| peer == Some(balancer));
/// ```
#[derive(Clone)]
pub struct ProxyProtocol {
    versions: Versions,
    trusts: Arc<Trusts>,
    log: Arc<PacedLog>,
}

impl ProxyProtocol {
    /// Accepts headers of these versions from each peer that `trusts` returns true for, and requires one from it. The peer
    /// of a Unix socket has no address: the mode of the socket's file decides who that can be.
    pub fn new(versions: Versions, trusts: impl Fn(Option<IpAddr>) -> bool + Send + Sync + 'static) -> Self {
        Self { versions, trusts: Arc::new(trusts), log: Arc::default() }
    }

    /// Whether connections of this peer begin with a header.
    pub(super) fn expects(&self, peer: Option<SocketAddr>) -> bool {
        (self.trusts)(peer.map(|peer| peer.ip().to_canonical()))
    }

    /// Reads the header and not one byte more. `None`: there is no valid one before `deadline`, which was counted and
    /// logged; the connection must be closed.
    pub(super) async fn read(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        peer: Option<SocketAddr>,
        deadline: Instant,
        stats: &Counters,
    ) -> Option<Header> {
        let reading = read_header(stream, self.versions);
        let refused = match tokio::time::timeout_at(deadline, reading).await {
            Ok(Ok(header)) => return Some(header),
            // A health check of the proxy: it connects, and that is all.
            Ok(Err(Refused::Absent)) => return None,
            Ok(Err(refused)) => refused,
            Err(_) => Refused::Late,
        };
        Counters::add(&stats.proxy_headers_refused, 1);
        self.report(peer, &refused);
        None
    }

    fn report(&self, peer: Option<SocketAddr>, refused: &Refused) {
        let Some(more) = self.log.due() else { return };
        let peer = peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
        tracing::warn!(
            peer,
            more,
            "a connection of a trusted proxy was closed: {refused}; have the proxy send that header, or do not \
             expect it"
        );
    }
}

impl fmt::Debug for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyProtocol").field("versions", &self.versions).finish_non_exhaustive()
    }
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("it ended in the PROXY header ({0})")]
    Ended(io::Error),
    #[error("no PROXY header came in time")]
    Late,
    /// Not one byte came.
    #[error("it ended without a byte")]
    Absent,
}

async fn read_header(stream: &mut (impl AsyncRead + Unpin), versions: Versions) -> Result<Header, Refused> {
    let mut bytes = Vec::new();
    loop {
        let missing = match parse(&bytes, versions)? {
            Parsed::Complete(header) => return Ok(header),
            Parsed::Needs(missing) => missing,
        };
        let read = stream.take(missing as u64).read_buf(&mut bytes).await;
        match read {
            Ok(0) | Err(_) if bytes.is_empty() => return Err(Refused::Absent),
            Ok(0) => return Err(Refused::Ended(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(Refused::Ended(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";

    async fn read(stream: &mut DuplexStream, versions: Versions) -> (Option<Header>, u64) {
        let (proxies, stats) = (ProxyProtocol::new(versions, |_| true), Counters::default());
        let deadline = Instant::now() + Duration::from_secs(5);
        let header = proxies.read(stream, None, deadline, &stats).await;
        (header, stats.snapshot().proxy_headers_refused)
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_comes_byte_by_byte_is_read_and_nothing_behind_it() {
        let (mut ours, mut theirs) = duplex(1);
        let sending = tokio::spawn(async move {
            theirs.write_all(LINE).await.unwrap();
            theirs.write_all(b"GET").await.unwrap();
        });
        let (header, refused) = read(&mut ours, Versions::Any).await;
        assert_eq!((header.unwrap().client, refused), (Some("192.0.2.7:56324".parse().unwrap()), 0));
        let mut rest = [0; 3];
        ours.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"GET");
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_is_wrong_late_or_cut_off_is_refused_and_counted() {
        for (bytes, stays) in
            [(&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], true), (&LINE[..20], true), (&LINE[..20], false)]
        {
            let (mut ours, mut theirs) = duplex(1024);
            theirs.write_all(bytes).await.unwrap();
            let held = stays.then_some(theirs);
            assert_eq!(read(&mut ours, Versions::Any).await, (None, 1));
            drop(held);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_only_connects_is_closed_and_not_counted() {
        let (mut ours, theirs) = duplex(1024);
        drop(theirs);
        assert_eq!(read(&mut ours, Versions::Any).await, (None, 0));
    }

    #[test]
    fn a_peer_is_compared_by_its_canonical_address() {
        let balancer: IpAddr = [10, 0, 0, 1].into();
        let proxies = ProxyProtocol::new(Versions::Any, move |peer| peer == Some(balancer));
        assert!(proxies.expects(Some("[::ffff:10.0.0.1]:9".parse().unwrap())));
        assert!(!proxies.expects(Some("10.0.0.2:9".parse().unwrap())) && !proxies.expects(None));
    }
}
