//! `kill-at NUMBER REPORT PROGRAM [ARGUMENT…]` runs a program and kills it, by SIGKILL, as it begins its call NUMBER of the kernel.
//!
//! What counts is every call by which a program can change or learn something outside of itself; those of memory, signals and
//! waiting for its own threads are left out, since a kill there leaves what a kill at the next counted call leaves. Threads and
//! children count along. A killed program's children run on to their end, as they do when a runtime kills a plugin. REPORT becomes
//! a file that says `killed NR`, the number by the kernel's table of the call that was not made, or `ran COUNT`, the number of calls.
//! NUMBER 0 kills never. The status is the program's, or 137.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Calls that change nothing outside of the program.
const OWN: &[libc::c_long] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["--traced", program, rest @ ..] => become_traced(program, rest),
        [number, report, program @ ..] if !program.is_empty() => run(number, report, program),
        _ => Err(anyhow::anyhow!(
            "usage: kill-at NUMBER REPORT PROGRAM [ARGUMENT…]"
        )),
    };
    result.unwrap_or_else(|error| {
        eprintln!("kill-at: {error:#}");
        ExitCode::from(125)
    })
}

/// The traced side: becomes the program, once the tracer has it in hand.
fn become_traced(program: &str, arguments: &[&str]) -> Result<ExitCode> {
    ptrace::traceme()?;
    raise(Signal::SIGSTOP)?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| program.to_owned())
}

fn run(number: &str, report: &str, program: &[&str]) -> Result<ExitCode> {
    let number: u32 = number.parse().context("NUMBER is no number")?;
    let own = std::env::current_exe()?;
    let child = Command::new(own).arg("--traced").args(program).spawn()?;
    let mut tracer = Tracer {
        main: Pid::from_raw(child.id().try_into()?),
        number,
        begun: false,
        counted: 0,
        killed_at: None,
        status: 125,
    };
    while tracer.step()? {}
    let outcome = match tracer.killed_at {
        Some(call) => format!("killed {call}\n"),
        None => format!("ran {}\n", tracer.counted),
    };
    std::fs::write(report, outcome)?;
    Ok(ExitCode::from(tracer.status))
}

struct Tracer {
    main: Pid,
    number: u32,
    /// The program has been executed; what came before was ours.
    begun: bool,
    counted: u32,
    killed_at: Option<u64>,
    status: u8,
}

impl Tracer {
    /// Handles one stop; `false` when nobody is left.
    fn step(&mut self) -> Result<bool> {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::ECHILD) => return Ok(false),
            other => other?,
        };
        match status {
            WaitStatus::Exited(pid, code) if pid == self.main => self.status = u8::try_from(code)?,
            WaitStatus::Signaled(pid, signal, _) if pid == self.main => self.status = 128 + signal as u8,
            WaitStatus::PtraceSyscall(pid) => self.on_call(pid)?,
            // Of a new thread or child, and our own at the beginning.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                if pid == self.main {
                    let options = Options::PTRACE_O_TRACESYSGOOD
                        | Options::PTRACE_O_TRACEEXEC
                        | Options::PTRACE_O_TRACECLONE
                        | Options::PTRACE_O_TRACEFORK
                        | Options::PTRACE_O_TRACEVFORK;
                    ptrace::setoptions(pid, options)?;
                }
                go_on(pid, None)?;
            }
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal))?,
            WaitStatus::PtraceEvent(pid, _, event) => {
                self.begun |= event == libc::PTRACE_EVENT_EXEC;
                go_on(pid, None)?;
            }
            _ => {}
        }
        Ok(true)
    }

    fn on_call(&mut self, pid: Pid) -> Result<()> {
        let Some(call) = entered(pid)?.filter(|_| self.begun && self.killed_at.is_none()) else {
            return go_on(pid, None);
        };
        if libc::c_long::try_from(call).is_ok_and(|call| OWN.contains(&call)) {
            return go_on(pid, None);
        }
        self.counted += 1;
        if self.counted != self.number {
            return go_on(pid, None);
        }
        self.killed_at = Some(call);
        // Stopped before the call is made, it never will be.
        match kill(pid, Signal::SIGKILL) {
            Ok(()) => Ok(()),
            Err(e) => bail!("cannot kill {pid}: {e}"),
        }
    }
}

/// The number of the call that the tracee is about to make; none when it has just made one.
fn entered(pid: Pid) -> Result<Option<u64>> {
    let info = match ptrace::syscall_info(pid) {
        // Another thread ended it.
        Err(Errno::ESRCH) => return Ok(None),
        other => other?,
    };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: for this kind of stop the kernel fills the field `entry`, by ptrace(2).
    Ok(Some(unsafe { info.u.entry.nr }))
}

fn go_on(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        // Killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => bail!("cannot resume {pid}: {e}"),
    }
}
