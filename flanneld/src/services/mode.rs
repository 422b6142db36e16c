//! Which programmer a node uses, and what another one left.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use flannel_netlink::generic::Ipvs;
use flannel_netlink::{NetlinkError, sysctl};
use flannel_plan::{FrontendKey, Frontends};

use super::counts::{FrontendCounts, Wanted};
use super::host::HostSettings;
use super::{IpvsProgrammer, NftProgrammer, Programmer, Scope, Status, View};

/// `--service-mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceMode {
    /// IPVS where the kernel has it, nftables elsewhere.
    Auto,
    /// IPVS.
    Ipvs,
    /// nftables.
    Nftables,
}

/// The programmer of a mode. Once its first pass has succeeded, it removes what the other programmer left on this node.
pub fn programmer(mode: ServiceMode, host: HostSettings, run_dir: PathBuf) -> Box<dyn Programmer> {
    Box::new(ModeProgrammer {
        mode,
        host,
        run_dir,
        chosen: None,
        leftovers: true,
        said: false,
    })
}

struct ModeProgrammer {
    mode: ServiceMode,
    host: HostSettings,
    /// For what a restart or a clean-up should find.
    run_dir: PathBuf,
    chosen: Option<Chosen>,
    leftovers: bool,
    said: bool,
}

struct Chosen {
    mode: ServiceMode,
    programmer: Box<dyn Programmer>,
}

impl Programmer for ModeProgrammer {
    fn name(&self) -> &'static str {
        self.chosen.as_ref().map_or("auto", |c| c.programmer.name())
    }

    fn programme(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) {
        let chosen = match self.chosen.take() {
            Some(chosen) => chosen,
            None => match self.choose() {
                Ok(chosen) => chosen,
                Err(error) => return status.fail(&error),
            },
        };
        let chosen = self.chosen.insert(chosen);
        let in_use = !view.frontends.cidrs.is_empty() || !view.frontends.by_key.is_empty();
        if in_use && !std::mem::replace(&mut self.said, true) {
            say(self.mode, chosen.mode);
            let notes = self.run_dir.join(sysctl::NOTES);
            for fault in self.host.conntrack.set(&notes) {
                tracing::warn!("{fault}");
            }
        }
        chosen.programmer.programme(view, scope, status);
        if self.leftovers && status.failed.is_empty() {
            self.leftovers = !clear_other(chosen.mode, view, status);
        }
    }

    fn prepare(&mut self, view: &View<'_>) {
        if self.chosen.is_none() {
            // a kernel that cannot be asked is told by the first pass
            self.chosen = self.choose().ok();
        }
        if let Some(chosen) = &mut self.chosen {
            chosen.programmer.prepare(view);
        }
    }

    fn wake(&self) -> Option<Duration> {
        self.chosen.as_ref().and_then(|c| c.programmer.wake())
    }

    fn counts(&mut self, wanted: &Wanted) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError> {
        match &mut self.chosen {
            Some(chosen) => chosen.programmer.counts(wanted),
            None => Ok(BTreeMap::new()),
        }
    }

    fn disturbed(&mut self) -> bool {
        self.chosen.as_mut().is_some_and(|c| c.programmer.disturbed())
    }
}

impl ModeProgrammer {
    fn choose(&self) -> Result<Chosen, NetlinkError> {
        let mode = match self.mode {
            ServiceMode::Auto if Ipvs::open()?.is_none() => ServiceMode::Nftables,
            ServiceMode::Auto | ServiceMode::Ipvs => ServiceMode::Ipvs,
            ServiceMode::Nftables => ServiceMode::Nftables,
        };
        let programmer: Box<dyn Programmer> = match mode {
            ServiceMode::Nftables => Box::new(NftProgrammer::new(Some(self.notes()))),
            ServiceMode::Auto | ServiceMode::Ipvs => {
                Box::new(IpvsProgrammer::new(&self.host, Some(&self.run_dir)))
            }
        };
        Ok(Chosen { mode, programmer })
    }

    /// Where former values of kernel settings are noted.
    fn notes(&self) -> PathBuf {
        self.run_dir.join(sysctl::NOTES)
    }
}

fn say(asked: ServiceMode, chosen: ServiceMode) {
    match (asked, chosen) {
        (ServiceMode::Auto, ServiceMode::Nftables) => tracing::info!(
            "the kernel has no IPVS, so Services are programmed through nftables: schedulers that count connections are \
             not available; to have IPVS, load it with `modprobe ip_vs` or run a kernel with CONFIG_IP_VS, and restart"
        ),
        (_, ServiceMode::Nftables) => tracing::info!("Services are programmed through nftables"),
        (_, ServiceMode::Auto | ServiceMode::Ipvs) => tracing::info!("Services are programmed through IPVS"),
    }
}

/// Has the other programmer bring the kernel to nothing. Answers whether that is done.
fn clear_other(chosen: ServiceMode, view: &View<'_>, status: &mut Status) -> bool {
    let nothing = Frontends::default();
    let empty = View {
        frontends: &nothing,
        node: view.node,
    };
    let mut of_other = Status::default();
    match chosen {
        ServiceMode::Nftables => match Ipvs::open() {
            Ok(None) => {}
            Ok(Some(_)) => {
                let mut programmer = IpvsProgrammer::new(&HostSettings::default(), None);
                programmer.programme(&empty, Scope::All, &mut of_other);
            }
            Err(error) => of_other.fail(&error),
        },
        ServiceMode::Auto | ServiceMode::Ipvs => {
            NftProgrammer::default().programme(&empty, Scope::All, &mut of_other);
        }
    }
    status.removed += of_other.removed;
    let done = of_other.failed.is_empty();
    status.failed.extend(of_other.failed);
    done
}
