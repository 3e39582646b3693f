//! The figures of a server, kept in atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mainstay_proto::admission::Refused;
use mainstay_proto::heartbeat::Evidence;
use mainstay_proto::session::Leave;

/// Upper bounds of the buckets of the heartbeat's round-trip times, in seconds.
pub const RTT_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters of a server; every connection adds to them.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            rtt_buckets: [AtomicU64; RTT_BUCKETS.len()],
            rtt_micros: AtomicU64,
            rtt_count: AtomicU64,
        }

        /// The figures of a server at one moment, as [`Server::stats`](crate::Server::stats) returns them.
        ///
        /// ```
        /// let server = mainstay::Server::default();
        /// assert_eq!(server.stats().sessions, 0);
        /// ```
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Round trips of heartbeats at or below each of [`RTT_BUCKETS`], not cumulated. An answer without a probe
            /// does not count, nor does an answer to a probe whose time is unknown.
            pub rtt_buckets: [u64; RTT_BUCKETS.len()],
            /// Sum of all round-trip times.
            pub rtt_sum: Duration,
            /// Number of round trips.
            pub rtt_count: u64,
        }

        impl Counters {
            /// Reads all figures.
            #[must_use]
            pub(crate) fn snapshot(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Relaxed),)*
                    rtt_buckets: std::array::from_fn(|n| self.rtt_buckets[n].load(Relaxed)),
                    rtt_sum: Duration::from_micros(self.rtt_micros.load(Relaxed)),
                    rtt_count: self.rtt_count.load(Relaxed),
                }
            }
        }
    };
}

figures! {
    /// Connections open now.
    connections,
    /// Connections ever opened.
    connections_opened,
    /// Sessions alive now, attached or parked.
    sessions,
    /// HELLOs that made a new session.
    attached_new,
    /// HELLOs that found their session.
    attached_resumed,
    /// HELLOs that asked for a lost session and got a fresh one.
    attached_lost,
    /// HELLOs that were refused.
    attach_refused,
    /// Opening handshakes that were refused or not finished in time.
    openings_failed,
    /// Connections that were refused because the server has too many.
    refused_full,
    /// Connections that were refused because their address has too many.
    refused_address,
    /// WebSockets that were refused because their principal has too many.
    refused_principal,
    /// WebSockets that were refused because their address opens too many a minute.
    refused_address_rate,
    /// WebSockets that were refused because their principal opens too many a minute.
    refused_principal_rate,
    /// WebSockets that were refused because too many clients open one at the same time.
    refused_rate,
    /// WebSockets that were refused by a limit of their route ([`Group`](super::Group)) alone.
    refused_route,
    /// Times that a connection was not read for a while because its client sends too fast.
    throttled,
    /// Connections that were closed because their client kept sending too fast.
    throttled_closed,
    /// Upgrades that were refused because pages of their origin may not open a WebSocket here.
    refused_origin,
    /// Upgrades that were refused because the server is draining.
    refused_draining,
    /// Connections that were ended because no message passed for the idle timeout.
    left_idle,
    /// Connections that were asked to leave because their lifetime was over.
    left_old,
    /// Connections whose credentials expired and whose clients were asked for others.
    credentials_expired,
    /// Sessions and plain connections that were ended because their clients presented no other credentials.
    left_unauthorized,
    /// Peers that were called dead because no byte came from them.
    dead_silent,
    /// Peers that were called dead because their kernel accepted bytes and no byte came back.
    dead_frozen,
    /// Peers that were called dead because they accepted no bytes.
    dead_stalled,
    /// Peers that sent bytes and answered no probe for the answer limit. They are not dead.
    not_listening,
    /// Connections that ended because of invalid frames.
    protocol_errors,
    /// Connections that ended because of invalid session messages.
    session_errors,
    /// Application messages read.
    messages_in,
    /// Application messages written, replayed ones included.
    messages_out,
    /// Payload bytes of application messages read.
    bytes_in,
    /// Payload bytes of application messages written.
    bytes_out,
    /// Application messages written again after a resume.
    replayed,
    /// Gaps in the stream that were reported to a handler.
    gaps,
    /// Sessions that expired.
    expired,
    /// Sessions that were evicted for a new one while their client was away.
    evicted,
    /// Sessions that were evicted for another resource that every session takes, such as a local port.
    evicted_resource,
    /// Sessions that were evicted for their memory.
    evicted_memory,
    /// Plain connections that were refused because the memory budget is used up.
    refused_memory,
    /// Connections of trusted proxies that were closed because their PROXY header was missing, wrong or late.
    proxy_headers_refused,
    /// TLS handshakes with clients that were completed, with a certificate and its signature.
    tls_full,
    /// TLS handshakes with clients that continued an earlier one by its ticket.
    tls_resumed,
    /// TLS handshakes with clients that failed.
    tls_failed,
    /// TLS handshakes with clients that were not completed in time.
    tls_timed_out,
    /// Connections of HTTP/2 that were closed because their clients cancelled requests, or sent frames of no use, without end.
    http2_floods,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        if amount > 0 {
            counter.fetch_add(amount, Relaxed);
        }
    }

    pub(crate) fn subtract(counter: &AtomicU64, amount: u64) {
        counter.fetch_sub(amount, Relaxed);
    }

    pub(crate) fn dead(&self, evidence: Evidence) -> &AtomicU64 {
        match evidence {
            Evidence::Silent => &self.dead_silent,
            Evidence::Frozen => &self.dead_frozen,
            Evidence::Stalled => &self.dead_stalled,
        }
    }

    pub(crate) fn refused(&self, why: Refused) -> &AtomicU64 {
        match why {
            Refused::Full => &self.refused_full,
            Refused::Address => &self.refused_address,
            Refused::Principal => &self.refused_principal,
            Refused::AddressRate => &self.refused_address_rate,
            Refused::PrincipalRate => &self.refused_principal_rate,
            Refused::Rate => &self.refused_rate,
        }
    }

    pub(crate) fn left(&self, why: Leave) -> &AtomicU64 {
        match why {
            Leave::Idle => &self.left_idle,
            Leave::Old => &self.left_old,
            Leave::Expiring => &self.credentials_expired,
            Leave::Unauthorized => &self.left_unauthorized,
        }
    }

    pub(crate) fn rtt(&self, sample: Duration) {
        let seconds = sample.as_secs_f64();
        if let Some(bucket) = RTT_BUCKETS.iter().position(|bound| seconds <= *bound) {
            Self::add(&self.rtt_buckets[bucket], 1);
        }
        Self::add(&self.rtt_micros, u64::try_from(sample.as_micros()).unwrap_or(u64::MAX));
        Self::add(&self.rtt_count, 1);
    }
}
