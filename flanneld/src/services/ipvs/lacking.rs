//! Virtual servers whose scheduler the kernel does not have. They are left out, named, and tried again now and then: it is a module of its own,
//! which somebody may install. They fail nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flannel_model::ServerKey;
use flannel_netlink::NetlinkError;
use flannel_plan::FrontendKey;
use flannel_plan::ipvs::ServiceOp;

/// How often they are tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// ENOENT: to these two requests the kernel says so for a scheduler that it cannot find or load (ip_vs_add_service and ip_vs_edit_service
/// in net/netfilter/ipvs/ip_vs_ctl.c).
const NO_SCHEDULER: i32 = 2;

/// One of them.
#[derive(Debug)]
struct Lack {
    frontend: FrontendKey,
    service: String,
    scheduler: String,
    /// It stands, with the scheduler that it had before.
    stands: bool,
}

/// Those that there are.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    by_server: BTreeMap<ServerKey, Lack>,
    tried: Option<Instant>,
}

impl Lacking {
    /// Notes a request that failed, where that is the reason. Answers whether it is.
    pub(super) fn note(
        &mut self,
        op: &ServiceOp,
        error: &NetlinkError,
        owner: Option<(FrontendKey, String)>,
    ) -> bool {
        let (ServiceOp::AddVirtual(at, settings) | ServiceOp::SetVirtual(at, settings)) = op else {
            return false;
        };
        let Some((frontend, service)) = owner.filter(|_| error.errno() == Some(NO_SCHEDULER)) else {
            return false;
        };
        let lack = Lack {
            frontend,
            service,
            scheduler: settings.scheduler.to_string(),
            stands: matches!(op, ServiceOp::SetVirtual(..)),
        };
        self.by_server.insert(*at, lack);
        self.tried.get_or_insert_with(Instant::now);
        true
    }

    /// A frontend is programmed anew.
    pub(super) fn forget(&mut self, frontend: &FrontendKey) {
        self.by_server.retain(|_, lack| lack.frontend != *frontend);
        if self.by_server.is_empty() {
            self.tried = None;
        }
    }

    /// The frontends that are to be tried again, if it is time for that.
    pub(super) fn due(&mut self) -> BTreeSet<FrontendKey> {
        if self.tried.is_none_or(|tried| tried.elapsed() < AGAIN) {
            return BTreeSet::new();
        }
        self.tried = Some(Instant::now());
        self.by_server.values().map(|lack| lack.frontend).collect()
    }

    /// Which Services lack a virtual server for it, and why.
    pub(super) fn notes(&self) -> impl Iterator<Item = (String, String)> {
        self.by_server.iter().map(|(at, lack)| {
            let scheduler = &lack.scheduler;
            let state = match lack.stands {
                true => "keeps its former scheduler",
                false => "is not programmed",
            };
            let reason = format!(
                "{at} {state}: this kernel has no scheduler {scheduler}; load it with `modprobe ip_vs_{scheduler}`, or choose another"
            );
            (lack.service.clone(), reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use flannel_model::{ServiceProtocol, VirtualAddress};
    use flannel_netlink::Failure;
    use flannel_plan::ipvs::Settings;

    use super::*;

    #[test]
    fn only_a_scheduler_that_is_missing_counts() {
        let at = VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: "10.96.0.10".parse().unwrap(),
            port: 80,
        };
        let settings = Settings {
            scheduler: "twos".into(),
            flags: 0,
            timeout: 0,
        };
        let op = ServiceOp::AddVirtual(ServerKey::Address(at), settings);
        let owner = || Some((FrontendKey::Address(at), "shop/web".to_owned()));
        let error = |errno| NetlinkError {
            what: String::new(),
            failure: Failure::Refused {
                errno,
                explanation: String::new(),
            },
        };
        let mut lacking = Lacking::default();
        assert!(!lacking.note(&op, &error(22), owner()));
        let real = ServiceOp::RemoveReal(ServerKey::Address(at), "10.5.1.2:80".parse().unwrap());
        assert!(!lacking.note(&real, &error(2), owner()));
        assert!(lacking.note(&op, &error(2), owner()));
        let (service, text) = lacking.notes().next().unwrap();
        assert_eq!(service, "shop/web");
        assert!(
            text.contains("no scheduler twos") && text.contains("modprobe ip_vs_twos"),
            "{text}"
        );
        assert!(lacking.due().is_empty(), "not so soon");
        lacking.forget(&FrontendKey::Address(at));
        assert_eq!(lacking.notes().count(), 0);
    }
}
