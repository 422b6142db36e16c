//! Messages to the service manager (sd_notify(3)). Without one, or when it does not answer, they are no more than a debug line:
//! nothing depends on them.
//!
//! A thread of its own sends them. The manager's socket holds few messages (net.unix.max_dgram_qlen, usually 10 or 512) and a
//! send waits when it is full: a manager that hangs must not hold up the network.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Messages that wait for the manager; more than that are dropped.
const QUEUE: usize = 64;
/// The last message goes out before the process ends, unless the manager does not take it for this long.
const LAST_WORD: Duration = Duration::from_millis(200);

enum Message {
    Ready(String),
    Status(String),
    Reloading,
    Stopping(SyncSender<()>),
}

static SENDER: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();

/// The service does its whole job from now on.
pub fn notify_ready(status: &str) {
    send(Message::Ready(status.to_owned()));
}

/// The service reads its configuration anew; [`notify_ready`] ends that.
pub fn notify_reloading() {
    send(Message::Reloading);
}

/// One line that `systemctl status` shows.
pub fn notify_status(status: &str) {
    send(Message::Status(status.to_owned()));
}

/// The service is about to end.
pub fn notify_stopping() {
    let (sent, wait) = sync_channel(1);
    send(Message::Stopping(sent));
    // An error means that the message was not sent, and there is nobody to tell.
    let _ = wait.recv_timeout(LAST_WORD);
}

fn send(message: Message) {
    let sender = SENDER.get_or_init(|| {
        std::env::var_os("NOTIFY_SOCKET")?;
        let (sender, messages) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("sd-notify".to_owned());
        thread.spawn(move || deliver(&messages)).ok().map(|_| sender)
    });
    if let Some(sender) = sender
        && sender.try_send(message).is_err()
    {
        tracing::debug!("the service manager takes no messages: one is dropped");
    }
}

fn deliver(messages: &Receiver<Message>) {
    for message in messages {
        let result = match &message {
            Message::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
            Message::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
            // The manager wants to know when that began, by the clock that it uses itself.
            Message::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
            Message::Stopping(_) => sd_notify::notify(&[NotifyState::Stopping]),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "the service manager was not told");
        }
        if let Message::Stopping(sent) = message {
            // The one who waits may have given up.
            let _ = sent.send(());
        }
    }
}
