//! Servers that a test starts on loopback, and ends by their process ids.

use std::env;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mainstay::cluster::Engine;
use redis::aio::MultiplexedConnection;
use redis::{Client, FromRedisValue, RedisResult};
use tokio::time::sleep;

/// How long a server may take to start, or to become what a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The name of the cluster in every test.
pub(crate) const NAME: &str = "test";

/// A running server. Dropping it kills the process and deletes its folder.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    /// Where the test's own commands go: the same, or a port without TLS.
    plain: SocketAddr,
    options: Vec<String>,
    home: PathBuf,
}

impl Server {
    /// Starts a server that keeps nothing on disk. `options` are lines of its configuration, as arguments.
    pub(crate) async fn start(options: &[&str]) -> Self {
        Self::start_at(free_address(), options).await
    }

    /// The same at a known address.
    pub(crate) async fn start_at(address: SocketAddr, options: &[&str]) -> Self {
        let port = address.port().to_string();
        let memory = ["--port", &port, "--save", "", "--appendonly", "no"];
        Self::spawned(address, home(address), &[&memory[..], options].concat()).await
    }

    /// The same with TLS at its address, and another one for the test's own commands.
    pub(crate) async fn start_tls(options: &[&str]) -> Self {
        let (address, plain) = (free_address(), free_address());
        let (tls, port) = (address.port().to_string(), plain.port().to_string());
        let memory = ["--port", &port, "--tls-port", &tls, "--save", "", "--appendonly", "no"];
        let server = Self::spawned(address, home(address), &[&memory[..], options].concat()).await;
        server.at(plain)
    }

    /// Starts Sentinel, which watches `master` under the name `main` and calls it dead after 1 s. Both have the same password, or none.
    pub(crate) async fn sentinel(master: SocketAddr, password: &str) -> Self {
        let (address, port) = (free_address(), master.port());
        let home = home(address);
        let configuration = home.join("sentinel.conf");
        let mut lines = format!(
            "sentinel monitor main 127.0.0.1 {port} 1\nsentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 3000\n"
        );
        if !password.is_empty() {
            lines += &format!("sentinel auth-pass main {password}\nrequirepass {password}\n");
        }
        fs::write(&configuration, lines).unwrap();
        let port = address.port().to_string();
        let options = [configuration.to_str().unwrap(), "--sentinel", "--port", &port];
        Self::spawned(address, home.clone(), &options).await
    }

    async fn spawned(address: SocketAddr, home: PathBuf, options: &[&str]) -> Self {
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let server = Self { process: spawn(&home, &options), address, plain: address, options, home };
        server.wait_ready().await;
        server
    }

    fn at(mut self, plain: SocketAddr) -> Self {
        self.plain = plain;
        self
    }

    /// Kills the process and starts it anew at the same address. What it had in memory is gone.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.home, &self.options);
        self.wait_ready().await;
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends the process a signal, for example `STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::parse(&self.url()).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// A connection for the test's own commands.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(format!("redis://{}", self.plain)).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// The same with a login.
    pub(crate) async fn connection_as(&self, user: Option<&str>, password: &str) -> MultiplexedConnection {
        let url = format!("redis://{}:{password}@{}", user.unwrap_or_default(), self.address);
        Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// Runs a command, as it is typed in redis-cli.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &str) -> T {
        self.try_run(command).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub(crate) async fn try_run<T: FromRedisValue>(&self, command: &str) -> RedisResult<T> {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        let client = Client::open(format!("redis://{}", self.plain)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await?;
        command.query_async(&mut connection).await
    }

    async fn wait_ready(&self) {
        let home = self.home.clone();
        wait_until(
            || async { self.is_listening() },
            || fs::read_to_string(home.join("log")).unwrap_or_default(),
        )
        .await;
    }

    fn is_listening(&self) -> bool {
        std::net::TcpStream::connect(self.address).is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Waits until `ready`; the test fails after [`LIMIT`], with what `why` returns.
pub(crate) async fn wait_until<F: Future<Output = bool>>(
    mut ready: impl FnMut() -> F,
    why: impl Fn() -> String,
) {
    let started = Instant::now();
    while !ready().await {
        assert!(started.elapsed() < LIMIT, "{}", why());
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A folder of its own for a server.
fn home(address: SocketAddr) -> PathBuf {
    let home = env::temp_dir().join(format!("mainstay-engine-{}-{}", std::process::id(), address.port()));
    fs::create_dir_all(&home).unwrap();
    home
}

fn spawn(home: &Path, options: &[String]) -> Child {
    let program = env::var_os("MAINSTAY_ENGINE")
        .expect("MAINSTAY_ENGINE names no redis-server or valkey-server: cargo xtask test cluster sets it");
    let log = fs::File::create(home.join("log")).unwrap();
    let mut command = Command::new(program);
    if let Some(libraries) = env::var_os("MAINSTAY_ENGINE_LIBRARIES") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.args(options).args(["--bind", "127.0.0.1", "--dir"]).arg(home);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}
