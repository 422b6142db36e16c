//! A service manager in small: it keeps descriptors for a service and starts it again when it ends (sd_notify(3), sd_listen_fds(3)).

use std::fs::OpenOptions;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How often it is looked whether the service has ended.
const LOOK: Duration = Duration::from_millis(20);
/// The first descriptor that a service is given (SD_LISTEN_FDS_START).
const FIRST: i32 = 3;
/// Above whatever is open already.
const OUT_OF_THE_WAY: i32 = 200;

/// Runs `argv` for ever, `pause` milliseconds after it ended again; its process id is in `FILES.pid`, what it said in `FILES.said`.
///
/// # Errors
/// When the service cannot be started, or a file cannot be written.
pub fn supervise(pause: &str, files: &str, argv: &[&str]) -> Result<()> {
    let pause = Duration::from_millis(pause.parse().context("bad number of milliseconds")?);
    let path = format!("{files}.notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(LOOK))?;
    let mut said = OpenOptions::new()
        .create(true)
        .append(true)
        .open(format!("{files}.said"))?;
    let mut kept = Vec::new();
    loop {
        let mut child = start(argv, &path, &kept)?;
        std::fs::write(format!("{files}.pid"), child.id().to_string())?;
        while child.try_wait()?.is_none() {
            listen(&socket, &mut kept, &mut said)?;
        }
        std::thread::sleep(pause);
    }
}

fn start(argv: &[&str], path: &str, kept: &[(String, OwnedFd)]) -> Result<Child> {
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let copies = kept
        .iter()
        .map(|(_, descriptor)| fcntl_dupfd_cloexec(descriptor, OUT_OF_THE_WAY))
        .collect::<Result<Vec<OwnedFd>, _>>()?;
    let mut command = Command::new("sh");
    // LISTEN_PID is the service's own number, which only it knows in time.
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).args(argv);
    command.env("NOTIFY_SOCKET", path).env("FDSTORE", "512");
    if !kept.is_empty() {
        command.env("LISTEN_FDS", kept.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
    }
    let place = move || {
        for (number, copy) in (FIRST..).zip(&copies) {
            // SAFETY: dup2 only looks at numbers of descriptors, and is allowed between fork and exec.
            if unsafe { libc::dup2(copy.as_raw_fd(), number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(place) };
    command.spawn().context("cannot start the service")
}

/// One message, if one comes in time.
fn listen(socket: &UnixDatagram, kept: &mut Vec<(String, OwnedFd)>, said: &mut impl Write) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let length = match received {
        Ok(received) => received.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    writeln!(said, "{text}")?;
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let name = value("FDNAME").unwrap_or("stored").to_owned();
    if value("FDSTOREREMOVE") == Some("1") {
        kept.retain(|(of, _)| *of != name);
    }
    let stores = value("FDSTORE") == Some("1");
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message
            && stores
        {
            kept.extend(rights.map(|descriptor| (name.clone(), descriptor)));
        }
    }
    Ok(())
}
