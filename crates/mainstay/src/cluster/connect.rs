//! One connection to an engine, and what the engine reports of itself on it.
//!
//! A connection comes about the same way at the start, after a loss, and in a check: a stream, the login, INFO, the scripts. Each
//! step has an error that names what to do. The crate `redis` speaks the protocol, and for Redis Cluster it finds the servers; it
//! does not reconnect, because the incarnation must be read at each connect.

use std::pin::Pin;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, Value, cmd,
};
use tokio::time::timeout;

use super::engine::{Engine, EngineError, Host, Place};
use super::fault;
use super::info::Info;
use super::scripts::Scripts;
use crate::client::Connector;

/// How long one server may take to accept a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(1);

/// How long the login and the questions behind it may take.
const LOGIN: Duration = Duration::from_secs(1);

/// How many commands wait for room in the connection's buffer.
const PIPELINE: usize = 256;

/// A connection that is ready for requests.
pub(super) struct Link {
    pub(super) commands: Commands,
    /// Moves the bytes; ends when the connection is lost.
    pub(super) moving: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// `None`: the engine does not allow INFO.
    pub(super) info: Option<Info>,
    /// The server behind it, where Sentinel named it.
    pub(super) master: Option<Host>,
}

/// What takes commands. Cheap to clone.
#[derive(Clone)]
pub(super) enum Commands {
    /// One server.
    One(MultiplexedConnection),
    /// Redis Cluster.
    Cluster(ClusterConnection),
}

impl ConnectionLike for Commands {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(command),
            Self::Cluster(cluster) => cluster.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(one) => one.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// Connects to the engine and makes the connection ready.
pub(super) async fn connect(engine: &Engine, scripts: &Scripts) -> Result<Link, EngineError> {
    match &engine.place {
        Place::Server(host) => to_server(engine, host, scripts).await,
        Place::Unix(path) => {
            let stream = Connector::default().unix(path.clone());
            let link = open(engine, &stream, &Host { name: "localhost".to_owned(), port: 1 }).await?;
            ready(engine, link, scripts).await
        }
        Place::Sentinel { hosts, master } => {
            let host = ask_sentinels(engine, hosts, master).await?;
            let link = to_server(engine, &host, scripts).await.map_err(|error| {
                let words = format!("{error} (Sentinel names {host} as the master {master})");
                if error.is_permanent() { EngineError::wrong(words) } else { EngineError::away(words) }
            })?;
            Ok(Link { master: Some(host), ..link })
        }
        Place::Cluster(hosts) => to_cluster(engine, hosts, scripts).await,
    }
}

async fn to_server(engine: &Engine, host: &Host, scripts: &Scripts) -> Result<Link, EngineError> {
    let link = open(engine, &Connector::default(), host).await?;
    ready(engine, link, scripts).await
}

/// Opens a stream on which nothing was said yet.
async fn open(engine: &Engine, connector: &Connector, host: &Host) -> Result<Link, EngineError> {
    let failed = |words: String| EngineError::away(format!("{engine}: {words}"));
    let connector = connector.clone().timeout(CONNECT).map_err(|error| failed(error.to_string()))?;
    let url = format!("{}://{host}/", if engine.tls { "https" } else { "http" });
    let url = url.parse().map_err(|_| EngineError::wrong(format!("{engine}: {host} is not a host")))?;
    let stream = connector.connect(&url).await.map_err(|failure| fault::of_connecting(engine, &failure))?;
    // The login is ours: the crate's own reports every refusal in the same words.
    let nothing = RedisConnectionInfo::default().set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(PIPELINE);
    let made = MultiplexedConnection::new_with_config(&nothing, stream, config).await;
    let (connection, moving) = made.map_err(|error| fault::of(engine, &error))?;
    Ok(Link { commands: Commands::One(connection), moving: Box::pin(moving), info: None, master: None })
}

/// Logs in, reads what the server reports of itself, and loads the scripts.
async fn ready(engine: &Engine, mut link: Link, scripts: &Scripts) -> Result<Link, EngineError> {
    let mut commands = link.commands.clone();
    let login = async {
        log_in(engine, &mut commands).await?;
        let info = greet(engine, scripts, &mut commands).await?;
        give_name(engine, &mut commands).await?;
        Ok(info)
    };
    link.info = link.run(engine, login).await?;
    Ok(link)
}

impl Link {
    /// Runs the first commands of a connection, which moves its bytes meanwhile.
    async fn run<T>(
        &mut self,
        engine: &Engine,
        commands: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let commands = timeout(LOGIN, commands);
        tokio::pin!(commands);
        let done = tokio::select! {
            biased;
            done = &mut commands => done,
            // The command that was under way knows why.
            () = &mut self.moving => commands.await,
        };
        done.unwrap_or_else(|_| Err(EngineError::away(format!("{engine}: no answer within {LOGIN:?}"))))
    }

    /// Reads the incarnation again. An engine that does not allow INFO has none, and has answered.
    pub(super) async fn incarnation(
        engine: Engine,
        mut commands: Commands,
    ) -> Result<Option<String>, EngineError> {
        match info(&mut commands, &["server", "replication"]).await {
            Ok(info) => info.judge(&engine).map(|()| info.incarnation()),
            Err(error) if fault::is_forbidden(&error) => Ok(None),
            Err(error) => Err(fault::of(&engine, &error)),
        }
    }
}

async fn log_in(engine: &Engine, commands: &mut Commands) -> Result<(), EngineError> {
    let failed = |error| fault::of(engine, &error);
    if let Some(password) = &engine.password {
        let mut auth = cmd("AUTH");
        auth.arg(&engine.user).arg(password);
        auth.exec_async(commands).await.map_err(failed)?;
    } else if let Some(user) = &engine.user {
        return Err(EngineError::wrong(format!(
            "{engine}: the user {user} has no password: redis://{user}:password@host"
        )));
    }
    if engine.database != 0 {
        cmd("SELECT").arg(engine.database).exec_async(commands).await.map_err(failed)?;
    }
    Ok(())
}

/// Operators see the name in CLIENT LIST. Servers before 7.2 refuse it, or a user may not do it: no reason to serve without them.
async fn give_name(engine: &Engine, commands: &mut Commands) -> Result<(), EngineError> {
    match cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("mainstay").exec_async(commands).await {
        Err(error) if !fault::is_answer(&error) => Err(fault::of(engine, &error)),
        _ => Ok(()),
    }
}

/// Reads what the engine reports of itself, and loads the scripts.
async fn greet(
    engine: &Engine,
    scripts: &Scripts,
    commands: &mut Commands,
) -> Result<Option<Info>, EngineError> {
    let info = all_info(engine, commands).await?;
    if let Some(info) = &info {
        info.judge(engine)?;
    }
    scripts.load(commands).await.map_err(|error| fault::of(engine, &error))?;
    Ok(info)
}

/// Everything that the engine reports of itself; `None` if it does not allow INFO.
async fn all_info(engine: &Engine, commands: &mut Commands) -> Result<Option<Info>, EngineError> {
    match info(commands, &["default"]).await {
        Ok(info) => Ok(Some(info)),
        Err(error) if fault::is_forbidden(&error) => Ok(None),
        Err(error) => Err(fault::of(engine, &error)),
    }
}

/// These sections of INFO, each in a command of its own: servers before 7 take one.
async fn info(commands: &mut Commands, sections: &[&str]) -> Result<Info, RedisError> {
    let mut info = Info::default();
    for section in sections {
        match cmd("INFO").arg(section).query_async(commands).await? {
            // Redis Cluster: each primary with its answer.
            Value::Map(answers) => {
                for (server, answer) in answers {
                    info.add(&text(server)?, &text(answer)?);
                }
            }
            answer => info.add("", &text(answer)?),
        }
    }
    Ok(info)
}

fn text(value: Value) -> Result<String, RedisError> {
    match value {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text),
        _ => Err((ErrorKind::UnexpectedReturnType, "INFO was answered by something else than text").into()),
    }
}

/// Asks one Sentinel after the other where the master is.
pub(super) async fn ask_sentinels(
    engine: &Engine,
    hosts: &[Host],
    master: &str,
) -> Result<Host, EngineError> {
    let mut unknown = 0;
    let mut failure = None;
    for host in hosts {
        match ask_sentinel(engine, host, master).await {
            Ok(Some(host)) => return Ok(host),
            Ok(None) => unknown += 1,
            Err(error) if error.is_permanent() => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    let unknown = (unknown > 0).then(|| {
        EngineError::wrong(format!(
            "{engine}: Sentinel knows no master {master}: SENTINEL MASTERS lists those that it knows"
        ))
    });
    Err(failure.or(unknown).unwrap_or_else(|| EngineError::away(format!("{engine}: no Sentinel answers"))))
}

async fn ask_sentinel(engine: &Engine, host: &Host, master: &str) -> Result<Option<Host>, EngineError> {
    let mut link = open(engine, &Connector::default(), host).await?;
    let mut commands = link.commands.clone();
    let asking = async {
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let mut answer = question.query_async(&mut commands).await;
        if answer.as_ref().is_err_and(|error: &RedisError| error.code() == Some("NOAUTH"))
            && engine.password.is_some()
        {
            let plain = Engine { database: 0, ..engine.clone() };
            log_in(&plain, &mut commands).await?;
            answer = question.query_async(&mut commands).await;
        }
        let answer: Option<(String, u16)> =
            answer.map_err(|error| fault::of_sentinel(engine, host, &error))?;
        Ok(answer.map(|(name, port)| Host { name, port }))
    };
    link.run(engine, asking).await
}

async fn to_cluster(engine: &Engine, hosts: &[Host], scripts: &Scripts) -> Result<Link, EngineError> {
    meet(engine, hosts).await?;
    if engine.tls {
        // The crate asks for the process's provider and panics if two are possible and none was chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let failed = |error: RedisError| fault::of(engine, &error);
    let seeds =
        hosts.iter().map(|host| address(engine, host)).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let client = ClusterClientBuilder::new(seeds).connection_timeout(CONNECT).response_timeout(LOGIN);
    let client = client.build().map_err(failed)?;
    let late = || EngineError::away(format!("{engine}: no answer within {:?}", CONNECT + LOGIN));
    let connected = timeout(CONNECT + LOGIN, client.get_async_connection()).await.map_err(|_| late())?;
    let mut commands = Commands::Cluster(connected.map_err(failed)?);
    let info = timeout(LOGIN, greet(engine, scripts, &mut commands)).await.map_err(|_| late())??;
    Ok(Link { commands, moving: Box::pin(std::future::pending()), info, master: None })
}

/// Talks to one of these servers. Its errors are exact, where the crate reports that a connection was closed.
async fn meet(engine: &Engine, hosts: &[Host]) -> Result<(), EngineError> {
    let mut failure = None;
    for host in hosts {
        let meeting = async {
            let mut link = open(engine, &Connector::default(), host).await?;
            let mut commands = link.commands.clone();
            let talk = async {
                log_in(engine, &mut commands).await?;
                if let Some(info) = all_info(engine, &mut commands).await? {
                    info.judge(engine)?;
                }
                let slots = cmd("CLUSTER").arg("SLOTS").exec_async(&mut commands).await;
                slots.map_err(|error| fault::of(engine, &error))
            };
            link.run(engine, talk).await
        };
        match meeting.await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_permanent() => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| EngineError::away(format!("{engine}: no server answers"))))
}

/// What the crate needs to connect to a server by itself.
fn address(engine: &Engine, host: &Host) -> Result<ConnectionInfo, RedisError> {
    let Host { name, port } = host.clone();
    let address = if engine.tls {
        ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(name, port)
    };
    let mut settings = RedisConnectionInfo::default().set_lib_name("mainstay", env!("CARGO_PKG_VERSION"));
    if let Some(user) = &engine.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &engine.password {
        settings = settings.set_password(password);
    }
    Ok(address.into_connection_info()?.set_redis_settings(settings))
}
