//! What an engine reports of itself by INFO, and whether a node can work with it.

use super::engine::{Engine, EngineError, Place};

/// The oldest version that the driver was tested with.
const OLDEST: (u32, u32) = (6, 2);

/// The answers to INFO, of one server or of each primary of Redis Cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// The server's address, empty if there is one, and its fields.
    servers: Vec<(String, Vec<(String, String)>)>,
}

impl Info {
    /// Adds the answer of one server.
    pub(super) fn add(&mut self, server: &str, answer: &str) {
        let fields = answer.lines().filter_map(|line| line.trim_end().split_once(':'));
        let fields = fields.map(|(field, value)| (field.to_owned(), value.to_owned()));
        match self.servers.iter_mut().find(|(known, _)| known == server) {
            Some((_, known)) => known.extend(fields),
            None => self.servers.push((server.to_owned(), fields.collect())),
        }
    }

    /// A field of the first server that has it.
    fn get(&self, field: &str) -> Option<&str> {
        self.all(field).next()
    }

    fn all<'a, 'f>(&'a self, field: &'f str) -> impl Iterator<Item = &'a str> + use<'a, 'f> {
        let fields = self.servers.iter().flat_map(|(_, fields)| fields);
        fields.filter(move |(known, _)| known == field).map(|(_, value)| value.as_str())
    }

    /// Returns one lifetime of the engine's primary: the beginnings of `run_id` and `master_replid`. For Redis Cluster it covers all
    /// primaries, in any order.
    pub(super) fn incarnation(&self) -> Option<String> {
        let joined = |field| {
            let beginnings = self.all(field).filter_map(|id| u64::from_str_radix(id.get(..16)?, 16).ok());
            beginnings.reduce(|a, b| a ^ b)
        };
        Some(format!("{:016x}.{:016x}", joined("run_id")?, joined("master_replid")?))
    }

    /// Returns the server and its version, as `Redis 7.0.15`.
    pub(super) fn server(&self) -> String {
        match self.get("valkey_version") {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", self.get("redis_version").unwrap_or("of an unknown version")),
        }
    }

    /// Whether a node can work with this engine, now.
    pub(super) fn judge(&self, engine: &Engine) -> Result<(), EngineError> {
        if let Some(version) = self.all("redis_version").find(|version| is_older(version, OLDEST)) {
            let (major, minor) = OLDEST;
            return Err(EngineError::wrong(format!(
                "{engine} is Redis {version}: {major}.{minor} or later is needed, or Valkey"
            )));
        }
        self.judge_mode(engine)?;
        if self.get("role") == Some("slave") && !matches!(engine.place, Place::Cluster(_)) {
            return Err(self.replica(engine));
        }
        if self.get("loading") == Some("1") {
            return Err(EngineError::away(format!("{engine} is loading its data")));
        }
        Ok(())
    }

    /// Whether the URL is for a server of this kind.
    fn judge_mode(&self, engine: &Engine) -> Result<(), EngineError> {
        let wrong = |words: String| Err(EngineError::wrong(format!("{engine} is {words}")));
        match (self.get("server_mode").or(self.get("redis_mode")), &engine.place) {
            (Some("sentinel"), Place::Server(host)) => {
                wrong(format!("a Sentinel: write redis+sentinel://{host}/ and the name of the master"))
            }
            (Some("cluster"), Place::Server(host)) => {
                wrong(format!("a node of Redis Cluster: write redis+cluster://{host}"))
            }
            (Some("cluster"), Place::Unix(_) | Place::Sentinel { .. }) => {
                wrong("a node of Redis Cluster: write redis+cluster://host:6379".to_owned())
            }
            (Some("standalone"), Place::Cluster(hosts)) => {
                let host = hosts.first().map(ToString::to_string).unwrap_or_default();
                wrong(format!("no Redis Cluster: write redis://{host}"))
            }
            _ => Ok(()),
        }
    }

    fn replica(&self, engine: &Engine) -> EngineError {
        let primary = match (self.get("master_host"), self.get("master_port")) {
            (Some(host), Some(port)) => format!(" of {host}:{port}"),
            _ => String::new(),
        };
        let words = format!("{engine} is a replica{primary}, which takes no writes");
        match engine.place {
            Place::Sentinel { .. } => EngineError::away(format!("{words}: a fail-over is under way")),
            _ => EngineError::wrong(format!("{words}: name the primary, or use redis+sentinel://")),
        }
    }

    /// What the operator should know, a line each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let policy = self.get("maxmemory_policy").filter(|policy| *policy != "noeviction");
        let policy = policy.map(|policy| {
            format!(
                "the engine's maxmemory-policy is {policy}: when its memory is full it may delete released sessions and the table of \
                 nodes; set noeviction"
            )
        });
        let blind = self.incarnation().is_none().then(|| {
            "the engine's INFO has no run_id and master_replid: a fail-over of it may go unnoticed".to_owned()
        });
        policy.into_iter().chain(blind).collect()
    }
}

fn is_older(version: &str, (major, minor): (u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(u32::MAX));
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0)) < (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:0123456789abcdef0123456789abcdef01234567\r\n\
        # Replication\r\nrole:master\r\nmaster_replid:fedcba9876543210fedcba9876543210fedcba98\r\n";

    fn info(answers: &[(&str, &str)]) -> Info {
        let mut info = Info::default();
        answers.iter().for_each(|(server, answer)| info.add(server, answer));
        info
    }

    #[test]
    fn the_incarnation_of_one_server_begins_as_its_ids_do() {
        let one = info(&[("", ONE)]);
        assert_eq!(one.incarnation().as_deref(), Some("0123456789abcdef.fedcba9876543210"));
        assert_eq!(one.server(), "Redis 7.0.15");
    }

    #[test]
    fn the_incarnation_of_a_cluster_changes_with_any_primary_and_with_no_order() {
        let (a, b) = (ONE, &ONE.replace("run_id:01", "run_id:77"));
        let both = info(&[("a", a), ("b", b)]).incarnation();
        assert_eq!(both, info(&[("b", b), ("a", a)]).incarnation());
        assert_ne!(both, info(&[("a", a), ("b", &b.replace("run_id:77", "run_id:78"))]).incarnation());
        assert_ne!(both, info(&[("a", a)]).incarnation());
    }

    #[test]
    fn an_engine_that_reports_no_ids_has_no_incarnation() {
        assert_eq!(info(&[]).incarnation(), None);
        assert_eq!(info(&[("", "run_id:xyz\r\nmaster_replid:é\r\n")]).incarnation(), None);
        assert_eq!(info(&[("", "run_id:0123456789abcdef\r\n")]).incarnation(), None);
    }

    #[test]
    fn an_engine_is_judged_by_its_version_its_role_and_its_mode() {
        #[track_caller]
        fn check(url: &str, more: &str, expected: Result<(), (&str, bool)>) {
            let judged = info(&[("", &format!("{more}{ONE}"))]).judge(&Engine::parse(url).unwrap());
            match (judged, expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err((words, permanent))) => {
                    assert!(error.to_string().contains(words), "{error}");
                    assert_eq!(error.is_permanent(), permanent, "{error}");
                }
                (judged, _) => panic!("{judged:?}"),
            }
        }
        check("redis://h", "", Ok(()));
        check("redis://h", "valkey_version:9.1.2\r\nserver_mode:standalone\r\nloading:0\r\n", Ok(()));
        check("redis://h", "redis_mode:cluster\r\n", Err(("write redis+cluster://h:6379", true)));
        check("redis://h", "redis_mode:sentinel\r\n", Err(("write redis+sentinel://h:6379/", true)));
        check("redis+cluster://h", "server_mode:cluster\r\n", Ok(()));
        check("redis+cluster://h", "redis_mode:standalone\r\n", Err(("write redis://h:6379", true)));
        check("redis+sentinel://h/m", "redis_mode:cluster\r\n", Err(("redis+cluster://", true)));
        check("redis://h", "redis_version:5.0.14\r\n", Err(("6.2 or later", true)));
        check("redis://h", "redis_version:6.0.9\r\n", Err(("6.2 or later", true)));
        check("redis://h", "redis_version:255.255.255\r\n", Ok(()));
        check("redis://h", "loading:1\r\n", Err(("loading", false)));
        let replica = "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:7000\r\n";
        check("redis://h", replica, Err(("a replica of 10.0.0.1:7000", true)));
        check("redis+sentinel://h/m", replica, Err(("fail-over", false)));
        check("redis+cluster://h", replica, Ok(()));
    }

    #[test]
    fn an_engine_that_may_evict_is_warned_of() {
        let warnings = |more: &str| info(&[("", &format!("{ONE}{more}"))]).warnings();
        assert_eq!(warnings(""), Vec::<String>::new());
        assert_eq!(warnings("maxmemory_policy:noeviction\r\n"), Vec::<String>::new());
        let [warning] = &warnings("maxmemory_policy:allkeys-lru\r\n")[..] else { panic!() };
        assert!(warning.contains("allkeys-lru") && warning.contains("set noeviction"), "{warning}");
    }

    #[test]
    fn an_engine_without_an_incarnation_is_warned_of() {
        let [warning] = &info(&[("", "redis_version:7.0.0\r\n")]).warnings()[..] else { panic!() };
        assert!(warning.contains("unnoticed"), "{warning}");
    }
}
