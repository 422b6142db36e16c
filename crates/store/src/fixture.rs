//! A real etcd for tests: one process on loopback ports that were free, its data in a temporary directory.
//!
//! It is killed when the value is dropped, and also when the test process dies without dropping anything.

mod backup;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketType};
use rustix::process::{Pid, Signal, kill_process};

use crate::EtcdOptions;

/// How long etcd may take to answer after its start, on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no etcd.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// The binary is not installed.
    #[error("no `etcd` binary in PATH: install it (Debian: apt-get install etcd-server) to run this test")]
    Missing,
    /// It ended at once.
    #[error("etcd ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It does not answer.
    #[error("etcd did not answer within {} s; the end of its log:\n{log}", START_DEADLINE.as_secs())]
    Slow {
        /// The end of its log.
        log: String,
    },
    /// `openssl` is missing or failed.
    #[error("openssl (Debian: apt-get install openssl) made no test certificate: {0}")]
    Certificates(String),
    /// `etcdctl` failed.
    #[error("etcdctl made or restored no backup: {0}")]
    Backup(String),
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A running etcd.
#[derive(Debug)]
pub struct EtcdProcess {
    directory: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    /// Answers /health, without TLS.
    health_port: u16,
    tls: Tls,
    running: Option<Running>,
}

/// What clients asked of etcd by one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Calls, streams among them.
    pub calls: u64,
    /// Messages: one a call, any number a stream.
    pub messages: u64,
}

/// How clients reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Off,
    /// Its certificate is signed by a CA of its own.
    Server,
    /// The client must have one as well.
    Mutual,
}

#[derive(Debug)]
struct Running {
    etcd: Child,
    /// A shell that kills etcd as soon as its standard input closes, which happens when this process dies.
    watchdog: Child,
}

impl EtcdProcess {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// [`FixtureError`] says what is missing or what etcd logged.
    pub fn start() -> Result<Self, FixtureError> {
        Self::start_as(Tls::Off)
    }

    /// The same with TLS, its certificate signed by a CA of its own. `client_auth`: clients must have one as well.
    /// [`options`](Self::options) names all files.
    ///
    /// # Errors
    /// As [`start`](Self::start); this needs the `openssl` binary.
    pub fn start_with_tls(client_auth: bool) -> Result<Self, FixtureError> {
        Self::start_as(if client_auth { Tls::Mutual } else { Tls::Server })
    }

    fn start_as(tls: Tls) -> Result<Self, FixtureError> {
        let directory = tempfile::tempdir().map_err(system("make a temporary directory"))?;
        let [client_port, peer_port, health_port] = free_ports().map_err(system("find free ports"))?;
        let mut process = Self {
            directory,
            client_port,
            peer_port,
            health_port,
            tls,
            running: None,
        };
        if tls != Tls::Off {
            process.make_certificates()?;
        }
        process.restart()?;
        Ok(process)
    }

    /// Starts it again after [`kill`](Self::kill), with the data that it had.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), FixtureError> {
        self.kill();
        let log = File::create(self.log_path()).map_err(system("create etcd's log"))?;
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let health = format!("http://127.0.0.1:{}", self.health_port);
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.data_path())
            .args(["--name", "test", "--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--listen-metrics-urls", &health])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(self.tls_arguments())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let etcd = command.spawn().map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => FixtureError::Missing,
            _ => FixtureError::System {
                doing: "start etcd",
                source: cause,
            },
        })?;
        let watchdog = Command::new("sh")
            .arg("-c")
            .arg(format!("cat; kill -KILL {}", etcd.id()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(system("start sh"))?;
        self.running = Some(Running { etcd, watchdog });
        self.wait_until_it_answers()
    }

    /// Ends it as `kill -9` does; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // The watchdog goes first, so that it cannot kill a later process with the same number.
            let _ = running.watchdog.kill();
            let _ = running.watchdog.wait();
            let _ = running.etcd.kill();
            let _ = running.etcd.wait();
        }
    }

    /// Deletes its data; only while it is killed.
    ///
    /// # Errors
    /// The directory cannot be deleted.
    pub fn wipe(&self) -> Result<(), FixtureError> {
        std::fs::remove_dir_all(self.data_path()).map_err(system("delete etcd's data"))
    }

    /// Freezes it (SIGSTOP) and waits until all its threads stand still, which takes a moment on a busy machine.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.stands_still().unwrap_or(true) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether every thread is in the state T (proc(5), stat).
    fn stands_still(&self) -> io::Result<bool> {
        let Some(running) = &self.running else {
            return Ok(true);
        };
        for task in std::fs::read_dir(format!("/proc/{}/task", running.etcd.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if !state.starts_with('T') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets it go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Its endpoint, such as `http://127.0.0.1:40001`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls == Tls::Off { "http" } else { "https" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Options that reach it.
    pub fn options(&self) -> EtcdOptions {
        let file = |name: &str| (self.tls != Tls::Off).then(|| self.file(name));
        EtcdOptions {
            endpoints: vec![self.endpoint()],
            ca_file: file("ca.pem"),
            cert_file: file("node.pem"),
            key_file: file("node.key"),
            ..EtcdOptions::default()
        }
    }

    fn tls_arguments(&self) -> Vec<String> {
        let argument = |flag: &str, name: &str| format!("{flag}={}", self.file(name).display());
        let mut arguments = Vec::new();
        if self.tls != Tls::Off {
            arguments.push(argument("--cert-file", "node.pem"));
            arguments.push(argument("--key-file", "node.key"));
        }
        if self.tls == Tls::Mutual {
            arguments.push(argument("--trusted-ca-file", "ca.pem"));
            arguments.push("--client-cert-auth".to_owned());
        }
        arguments
    }

    /// A CA and one certificate that serves both sides.
    fn make_certificates(&self) -> Result<(), FixtureError> {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(self.file("extensions"), extensions).map_err(system("write a file for openssl"))?;
        for command in [
            format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=test-ca -days 2"),
            format!("req {key} -keyout node.key -out node.csr -subj /CN=node"),
            "x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2 -extfile extensions"
                .to_owned(),
        ] {
            let output = Command::new("openssl")
                .args(command.split(' '))
                .current_dir(self.directory.path())
                .output();
            let output = output.map_err(|cause| FixtureError::Certificates(cause.to_string()))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(FixtureError::Certificates(said));
            }
        }
        Ok(())
    }

    /// Whether it has a leader and answers reads. An open port alone says nothing: etcd opens it first of all, and killed in the
    /// middle of its first start it may leave data behind with which it never finds a leader.
    fn is_healthy(&self) -> io::Result<bool> {
        let answer = self.ask("/health")?;
        Ok(answer.contains(r#""health":"true""#))
    }

    fn ask(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.health_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What clients asked of it so far, by its own count.
    ///
    /// # Errors
    /// It does not answer.
    pub fn asked(&self, method: &str) -> Result<Asked, FixtureError> {
        let answer = self.ask("/metrics").map_err(system("read etcd's metrics"))?;
        let count = |metric: &str| {
            let of_method = format!("grpc_method=\"{method}\"");
            let values = answer
                .lines()
                .filter(|line| line.starts_with(metric) && line.contains(&of_method))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            // A counter of whole numbers, printed as 1 or 1.5e+06.
            values.sum::<f64>() as u64
        };
        Ok(Asked {
            calls: count("grpc_server_started_total{"),
            messages: count("grpc_server_msg_received_total{"),
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.running.as_ref().map(|running| running.etcd.id());
        let pid = pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<(), FixtureError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(running) = &mut self.running
                && let Some(status) = running.etcd.try_wait().map_err(system("wait for etcd"))?
            {
                return Err(FixtureError::Ended {
                    status,
                    log: self.log_end(),
                });
            }
            if self.is_healthy().unwrap_or(false) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(FixtureError::Slow { log: self.log_end() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn data_path(&self) -> PathBuf {
        self.file("data")
    }

    fn log_path(&self) -> PathBuf {
        self.file("log")
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(15).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address on loopback that swallows every attempt to connect, as a firewall that drops does: a listener that accepts
/// nothing and whose queue is full.
#[derive(Debug)]
pub struct BlackHole {
    listener: OwnedFd,
    queued: Vec<TcpStream>,
}

impl BlackHole {
    /// Opens one.
    ///
    /// # Errors
    /// The system refuses a socket, or its queue never fills.
    pub fn open() -> Result<Self, FixtureError> {
        let story = "open a socket that accepts nothing";
        let refused = |cause: Errno| system(story)(cause.into());
        let listener = net::socket(AddressFamily::INET, SocketType::STREAM, None).map_err(refused)?;
        net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
        net::listen(&listener, 0).map_err(refused)?;
        let mut hole = Self {
            listener,
            queued: Vec::new(),
        };
        let address = hole.address()?;
        // A backlog of 0 takes one connection (net/core: the queue is full when it holds more than the backlog).
        for _ in 0..16 {
            match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                Ok(queued) => hole.queued.push(queued),
                Err(_) => return Ok(hole),
            }
        }
        let endless = io::Error::other("its queue does not fill");
        Err(system(story)(endless))
    }

    /// Its endpoint for [`EtcdOptions`].
    ///
    /// # Errors
    /// The socket has no address.
    pub fn endpoint(&self) -> Result<String, FixtureError> {
        Ok(format!("http://{}", self.address()?))
    }

    fn address(&self) -> Result<SocketAddr, FixtureError> {
        let name = net::getsockname(&self.listener);
        let address = name.and_then(SocketAddr::try_from);
        address.map_err(|cause| system("read a socket's address")(cause.into()))
    }
}

/// Ports that were free a moment ago.
fn free_ports() -> io::Result<[u16; 3]> {
    let port = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let all = [port()?, port()?, port()?];
    let [a, b, c] = &all;
    Ok([
        a.local_addr()?.port(),
        b.local_addr()?.port(),
        c.local_addr()?.port(),
    ])
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> FixtureError {
    move |source| FixtureError::System { doing, source }
}
