//! The kinds of faults, as people write them: names, words and parameters.

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The name in files, in the API and in the timeline.
    pub name: &'static str,
    /// What happens, in one sentence.
    pub about: &'static str,
    /// The parameters that it has; those in [`Kind::required`] have no default.
    pub parameters: &'static [&'static str],
    /// The parameters that it needs.
    pub required: &'static [&'static str],
    /// What it strikes.
    pub strikes: Strikes,
}

/// What a kind of fault strikes, and whether it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strikes {
    /// A connection, in one moment: it has no end.
    Once,
    /// A connection, until the fault ends.
    Lasting,
    /// The listener, until the fault ends: new connections meet it.
    Listener,
    /// The opening handshake of new connections, until the fault ends.
    Opening,
}

const BOTH_WAYS: &[&str] = &["direction"];

impl Kind {
    /// All kinds, in the order of [`Fault::NAMES`](crate::Fault::NAMES).
    pub const ALL: [Self; 20] = [
        once("reset", "both sides receive a TCP reset; bytes in transit are lost", &[]),
        once("fin", "both sides receive the end of the TCP stream, without a closing handshake", &[]),
        lasting(
            "black-hole",
            "bytes are lost, and neither side is notified; with one direction: half-open",
            BOTH_WAYS,
            &[],
        ),
        lasting("stall", "bytes stand still, and arrive when the fault ends", BOTH_WAYS, &[]),
        lasting("jam", "the proxy reads nothing, so that the writer's socket fills", BOTH_WAYS, &[]),
        lasting(
            "delay",
            "each byte arrives later, in order",
            &["direction", "latency", "jitter"],
            &["latency"],
        ),
        lasting(
            "bandwidth",
            "at most so many bytes pass each second",
            &["direction", "bytes-per-second"],
            &["bytes-per-second"],
        ),
        lasting(
            "trickle",
            "bytes are written a few at a time, each in a packet of its own",
            &["direction", "bytes"],
            &[],
        ),
        once(
            "corrupt",
            "one bit of the next bytes is inverted: TLS refuses it, ws:// receives it",
            BOTH_WAYS,
        ),
        once("cut-in-frame", "the connection is reset within the payload of the next data frame", BOTH_WAYS),
        lasting(
            "cut-after",
            "the connection is reset after so many bytes, counted from its beginning",
            &["direction", "bytes"],
            &["bytes"],
        ),
        listener("refuse", "nothing listens: new connections are refused"),
        listener("mute", "new connections are accepted, and nothing is read or sent until it ends"),
        lasting("swallow-close", "Close frames are dropped", BOTH_WAYS, &[]),
        lasting("drop-pings", "Pings are dropped", BOTH_WAYS, &[]),
        lasting("drop-pongs", "Pongs are dropped", BOTH_WAYS, &[]),
        lasting(
            "idle-cut",
            "a connection on which nothing passed for so long is cut, as proxies do; silent: as a NAT does",
            &["direction", "idle", "silent"],
            &["idle"],
        ),
        lasting("lifetime-cut", "a connection of this age is cut", &["age"], &["age"]),
        Self {
            name: "status",
            about: "the opening handshake is answered with this HTTP status, and does not reach the upstream",
            parameters: &["code", "retry-after"],
            required: &["code"],
            strikes: Strikes::Opening,
        },
        once(
            "ghost",
            "the client is cut off and the upstream is not; its last bytes arrive once a new connection is up",
            &[],
        ),
    ];

    /// Returns the kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        static ALL: [Kind; 20] = Kind::ALL;
        ALL.iter().find(|kind| kind.name == name)
    }
}

const fn once(name: &'static str, about: &'static str, parameters: &'static [&'static str]) -> Kind {
    Kind { name, about, parameters, required: &[], strikes: Strikes::Once }
}

const fn lasting(
    name: &'static str,
    about: &'static str,
    parameters: &'static [&'static str],
    required: &'static [&'static str],
) -> Kind {
    Kind { name, about, parameters, required, strikes: Strikes::Lasting }
}

const fn listener(name: &'static str, about: &'static str) -> Kind {
    Kind { name, about, parameters: &[], required: &[], strikes: Strikes::Listener }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fault;

    #[test]
    fn every_fault_has_a_kind_in_the_same_order() {
        assert_eq!(Kind::ALL.map(|kind| kind.name), Fault::NAMES);
        assert!(Kind::ALL.iter().all(|kind| kind.required.iter().all(|name| kind.parameters.contains(name))));
    }
}
