//! How often which connections are probed: one interval for all, and others for routes that need them.

use mainstay::HeartbeatConfig;

use crate::values;

/// Flags of `mainstay serve` that say how often.
#[derive(clap::Args, Clone)]
pub(crate) struct Heartbeats {
    /// How often to probe, on both legs. A dead peer is found within this plus 5 to 20 s.
    #[arg(long, value_name = "DURATION", value_parser = values::heartbeat, default_value = "25s")]
    heartbeat: HeartbeatConfig,
    /// Another --heartbeat for this path and what is below it, for example /prices=5s. May be repeated; the longest path
    /// that fits counts.
    #[arg(long, value_name = "PATH=DURATION", value_parser = values::route_heartbeat)]
    route_heartbeat: Vec<RouteHeartbeat>,
}

/// A path, and how often its connections are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteHeartbeat {
    pub(crate) path: Box<str>,
    pub(crate) heartbeat: HeartbeatConfig,
}

impl Heartbeats {
    /// How often all others are.
    pub(crate) fn default(&self) -> HeartbeatConfig {
        self.heartbeat
    }

    /// How often a connection at this path is probed.
    pub(crate) fn of(&self, path: &str) -> HeartbeatConfig {
        let fits = self.route_heartbeat.iter().filter(|route| route.holds(path));
        fits.max_by_key(|route| route.path.len()).map_or(self.heartbeat, |route| route.heartbeat)
    }
}

impl RouteHeartbeat {
    /// Whether it is for this path: whole segments count, as `/prices` holds `/prices/eur` and not `/prices-old`.
    fn holds(&self, path: &str) -> bool {
        let own = self.path.trim_end_matches('/');
        path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(path: &str, routes: &[&str]) -> u64 {
        let route_heartbeat = routes.iter().map(|route| values::route_heartbeat(route).unwrap()).collect();
        let heartbeats = Heartbeats { heartbeat: HeartbeatConfig::default(), route_heartbeat };
        heartbeats.of(path).interval().as_secs()
    }

    #[test]
    fn the_longest_path_that_fits_counts_and_whole_segments_do() {
        let routes = ["/prices=5s", "/prices/eur/=7s", "/a=b=9s"];
        for (path, expected) in [
            ("/", 25),
            ("/prices", 5),
            ("/prices/", 5),
            ("/prices/usd", 5),
            ("/prices-old", 25),
            ("/prices/eur", 7),
            ("/prices/eur/x", 7),
            ("/a=b", 9),
        ] {
            assert_eq!(seconds(path, &routes), expected, "{path}");
        }
        assert_eq!(seconds("/anything", &["/=3s"]), 3);
    }
}
