//! Keeps the kernel settings of our devices. A write to one is told and put right at once; where nobody tells (a write through another
//! mount of /proc, such as that of another PID namespace), a look now and then finds it.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use flannel_netlink::overlay::observe_settings;
use flannel_netlink::sysctl::{self, Follow};
use flannel_plan::{Device, Op, Setting, setting_ops};
use tokio::time::{Instant, sleep_until};

use crate::overlay::{Cause, Shared, note_repairs};

/// Brings the settings of a device to what they should be. Answers what was written. With [`Cause::Audit`] each is a repair, and
/// who fights for one is given way to.
pub fn keep(device: Device, cause: Cause, shared: &Shared) -> Vec<Op> {
    let now = Instant::now();
    let mut ops = setting_ops(device, &observe_settings(device));
    if cause == Cause::Audit {
        ops.retain(|op| shared.lock().fights.admits(op, now));
    }
    ops.retain(|op| write(op, shared));
    if cause == Cause::Audit {
        note_repairs(&ops, shared);
    }
    ops
}

/// Answers whether it was done. In a container without privileges /proc/sys cannot be written, and everything else works.
fn write(op: &Op, shared: &Shared) -> bool {
    let Op::SettingSet { device, setting } = op else {
        return false;
    };
    match sysctl::set(&setting.path(*device), setting.value(), None) {
        Ok(done) => done,
        // It went with its device.
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => {
            if shared.lock().refused.insert(op.to_string()) {
                tracing::warn!("`{op}` cannot be done ({error}): {}", setting.otherwise());
            }
            false
        }
    }
}

/// Between two looks at settings because of writes: somebody who writes without end holds up nothing else.
const PAUSE: Duration = Duration::from_millis(10);

/// Words of writes to the settings of our devices.
#[derive(Debug)]
pub struct Watch {
    follow: Option<Follow>,
    /// Nothing is told before.
    next: Instant,
}

impl Watch {
    /// Without it there is the look now and then.
    pub fn new() -> Self {
        let told = |error| {
            tracing::warn!(
                "writes to kernel settings are not told ({error}); they are found within a few seconds"
            );
        };
        Self {
            follow: Follow::new().map_err(told).ok(),
            next: Instant::now(),
        }
    }

    /// Follows the settings of these devices, which may have been made anew.
    pub fn follow(&mut self, devices: impl Iterator<Item = Device>) {
        if let Some(follow) = &mut self.follow {
            let of_device = |device| {
                Setting::of(device)
                    .iter()
                    .map(move |setting: &Setting| setting.path(device))
            };
            follow.follow(&devices.flat_map(of_device).collect::<BTreeSet<String>>());
        }
    }

    /// Waits for a write; for ever where nobody tells.
    pub async fn written(&mut self) {
        if let Some(follow) = &mut self.follow {
            sleep_until(self.next).await;
            match follow.written().await {
                Ok(()) => {
                    self.next = Instant::now() + PAUSE;
                    return;
                }
                Err(error) => tracing::warn!(%error, "writes to kernel settings are not told any more"),
            }
            self.follow = None;
        }
        std::future::pending().await
    }
}
