//! Programs that run to their end: with a deadline, and with an error that shows what they said.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a finished program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for error texts.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Its standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The standard output of a program that must have succeeded.
    pub fn ok(self) -> Result<String> {
        if !self.success() {
            bail!(
                "`{}` failed ({}): {} {}",
                self.command,
                self.status,
                self.stdout.trim(),
                self.stderr.trim()
            );
        }
        Ok(self.stdout)
    }

    /// The standard output of a program that must have succeeded, as JSON. No output counts as an empty list: that is how
    /// iproute2 prints "none".
    pub fn json(self) -> Result<serde_json::Value> {
        let command = self.command.clone();
        let text = self.ok()?;
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("`{command}` printed no JSON: {text}"))
    }
}

/// Runs `argv` to its end with `stdin` as its input, and kills it when it takes longer than `within`.
pub fn run(argv: &[String], stdin: &[u8], within: Duration, env: &Environment) -> Result<Output> {
    let command = argv.join(" ");
    let mut child = env
        .apply(argv)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{command}`"))?;
    feed(&mut child, stdin);
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, within);
    if status.is_err() {
        child.kill().ok();
        child.wait().ok();
    }
    let (stdout, stderr) = (join(stdout), join(stderr));
    let status =
        status.with_context(|| format!("`{command}`; it said: {} {}", stdout.trim(), stderr.trim()))?;
    Ok(Output {
        command,
        status,
        stdout,
        stderr,
    })
}

/// Waits for `child` for at most `within`.
pub fn wait(child: &mut Child, within: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() >= within {
            bail!("still running after {:.1} s", within.as_secs_f64());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What a program sees as its environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Variables set on top of, or instead of, the inherited ones.
    pub set: Vec<(String, String)>,
    /// Start from nothing but PATH, so that a FLANNELD_ variable of the machine's cannot change a test.
    pub clean: bool,
}

impl Environment {
    /// The inherited environment and these variables.
    pub fn with(set: &[(&str, &str)]) -> Self {
        Self {
            set: set
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            clean: false,
        }
    }

    pub(crate) fn apply(&self, argv: &[String]) -> Result<Command> {
        let (program, arguments) = argv.split_first().context("no program to run")?;
        let mut command = Command::new(program);
        command.args(arguments);
        if self.clean {
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        }
        command.envs(self.set.iter().map(|(k, v)| (k, v)));
        Ok(command)
    }
}

/// Writes the input from a thread of its own: a program that does not read must not block us.
fn feed(child: &mut Child, input: &[u8]) {
    if let Some(mut pipe) = child.stdin.take() {
        if input.is_empty() {
            return;
        }
        let input = input.to_owned();
        // A program may end before it has read everything; its own status says whether that was an error.
        std::thread::spawn(move || pipe.write_all(&input).ok());
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn join(reader: JoinHandle<String>) -> String {
    reader.join().unwrap_or_default()
}
