//! Heartbeat intervals: one default, and others for single routes.

use mainstay::HeartbeatConfig;

use crate::config::heartbeat::Section;
use crate::values;

/// Flags of `mainstay serve` for heartbeats.
#[derive(clap::Args, Clone)]
pub(crate) struct HeartbeatFlags {
    /// Interval of heartbeats, towards clients and the backend. A dead peer is detected within the interval plus 5 to 20 s.
    /// Range: 100ms to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::heartbeat, default_value = "25s")]
    heartbeat: HeartbeatConfig,
    /// Another --heartbeat for a path and everything below it, for example /prices=5s. May be repeated; the longest
    /// matching path wins.
    #[arg(long, value_name = "PATH=DURATION", value_parser = route_heartbeat)]
    route_heartbeat: Vec<RouteHeartbeat>,
}

/// The heartbeats of a route's connections.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeats {
    heartbeat: HeartbeatConfig,
    paths: Vec<RouteHeartbeat>,
}

/// A path and the heartbeat of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteHeartbeat {
    path: Box<str>,
    heartbeat: HeartbeatConfig,
}

/// Parses a path and its heartbeat, as in `/prices=5s`.
fn route_heartbeat(text: &str) -> Result<RouteHeartbeat, String> {
    let (path, interval) =
        text.rsplit_once('=').ok_or("write a path and an interval, for example /prices=5s")?;
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err(format!(
            "{path:?} is not a path; a path begins with / and has no query, for example /prices=5s"
        ));
    }
    Ok(RouteHeartbeat { path: path.into(), heartbeat: values::heartbeat(interval)? })
}

impl Heartbeats {
    /// Builds the heartbeats of a section.
    ///
    /// # Errors
    /// An interval is out of range.
    pub(crate) fn new(section: &Section) -> Result<Self, String> {
        let heartbeat = HeartbeatConfig::every(section.interval)
            .map_err(|error| format!("interval: must be {}", error.bound))?;
        let paths = section
            .paths
            .iter()
            .map(|(path, heartbeat)| RouteHeartbeat { path: path.as_str().into(), heartbeat: **heartbeat });
        Ok(Self { heartbeat, paths: paths.collect() })
    }

    /// Returns the heartbeat of a connection at this path.
    pub(crate) fn for_path(&self, path: &str) -> HeartbeatConfig {
        let matching = self.paths.iter().filter(|route| route.matches(path));
        matching.max_by_key(|route| route.path.len()).map_or(self.heartbeat, |route| route.heartbeat)
    }
}

impl RouteHeartbeat {
    /// Returns whether a path matches. Whole segments are compared: `/prices` matches `/prices/eur`, not `/prices-old`.
    fn matches(&self, path: &str) -> bool {
        let own = self.path.trim_end_matches('/');
        path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(path: &str, routes: &[&str]) -> u64 {
        let paths = routes.iter().map(|route| super::route_heartbeat(route).unwrap()).collect();
        let heartbeats = Heartbeats { heartbeat: HeartbeatConfig::default(), paths };
        heartbeats.for_path(path).interval().as_secs()
    }

    #[test]
    fn the_longest_matching_path_wins_and_whole_segments_are_compared() {
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
