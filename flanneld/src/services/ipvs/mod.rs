//! Services through IPVS: guard and masquerade rules, a local route for each service CIDR, and virtual servers.

mod routes;
mod sysctls;
mod virtual_servers;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use flannel_model::{IpSubnet, Ipv4Subnet};
use flannel_netlink::generic::Ipvs;
use flannel_netlink::route::Route;
use flannel_netlink::{NetlinkError, RouteConn};
use flannel_nft::{Nft, ServicesTable, TableName, services_table};
use flannel_plan::{FrontendKind, virtual_servers as desired_servers};

use super::programmer::{Programmer, Scope, Status, View};
use crate::said::Said;

/// How often a kernel without IPVS is asked again.
const PROBE_AGAIN: Duration = Duration::from_secs(60);

/// Programs IPVS. It remembers whether the kernel has it.
#[derive(Debug, Default)]
pub struct IpvsProgrammer {
    nft: Nft,
    absent_since: Option<Instant>,
    sysctls_said: Said,
}

impl Programmer for IpvsProgrammer {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn programme(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) {
        if matches!(scope, Scope::Changed(changes) if changes.is_empty()) {
            return;
        }
        for (key, frontend) in &view.frontends.by_key {
            if !key.is_ipv4() || frontend.kind != FrontendKind::ClusterIp {
                let reason = format!("{key}: only clusterIPs of IPv4 are programmed yet");
                status.rejects.push((frontend.service.to_string(), reason));
            }
        }
        if let Err(error) = self.pass(view, status) {
            status.fail(&error);
        }
    }
}

/// What of a view is IPv4.
struct Ipv4View {
    cidrs: Vec<Ipv4Subnet>,
    source: Option<Ipv4Addr>,
    network: Option<Ipv4Subnet>,
    local_endpoints: BTreeSet<Ipv4Addr>,
}

impl Ipv4View {
    fn of(view: &View<'_>) -> Self {
        let subnet = |s: &IpSubnet| match s {
            IpSubnet::V4(net) => Some(*net),
            IpSubnet::V6(_) => None,
        };
        let address = |a: IpAddr| match a {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        };
        Self {
            cidrs: view.frontends.cidrs.iter().filter_map(subnet).collect(),
            source: view.node.primary(true).and_then(address),
            network: view.node.networks.iter().find_map(subnet),
            local_endpoints: view
                .frontends
                .local_endpoints
                .iter()
                .filter_map(|ip| address(*ip))
                .collect(),
        }
    }
}

impl IpvsProgrammer {
    /// The order of the steps: the guard before the route that it guards, and both before the virtual servers; on the way
    /// out the other way round. An error ends the pass, because nothing can be read from the kernel.
    fn pass(&mut self, view: &View<'_>, status: &mut Status) -> Result<(), NetlinkError> {
        let desired = Ipv4View::of(view);
        let mut conn = RouteConn::open()?;
        let present = routes::ours(&mut conn)?;
        if desired.cidrs.is_empty() && present.is_empty() {
            return Ok(());
        }
        let Some(mut ipvs) = self.ipvs()? else {
            return Ok(());
        };
        let standing = self.deliver(&mut conn, &desired, &present, status)?;
        // Without its route a virtual server would get no packet, and nothing would tell us later that it is ours.
        let owned: BTreeSet<Ipv4Subnet> = present
            .iter()
            .filter_map(|r| match r.destination {
                IpSubnet::V4(destination) => Some(destination),
                IpSubnet::V6(_) => None,
            })
            .chain(standing.clone())
            .collect();
        let owned: Vec<Ipv4Subnet> = owned.into_iter().collect();
        let servers = desired_servers(view.frontends);
        let emptied = virtual_servers::programme(&mut ipvs, &servers, &owned, status)?;
        if emptied && standing.len() == desired.cidrs.len() {
            routes::remove_stale(&mut conn, &desired.cidrs, &present, status);
        }
        if desired.cidrs.is_empty() && status.failed.is_empty() {
            // The guard outlives the route.
            if let Err(error) = self.nft.remove(TableName::SERVICES) {
                status.fail(&error);
            }
        }
        Ok(())
    }

    /// Settings, guard and routes. Answers the CIDRs whose route stands.
    fn deliver(
        &mut self,
        conn: &mut RouteConn,
        desired: &Ipv4View,
        present: &[Route],
        status: &mut Status,
    ) -> Result<Vec<Ipv4Subnet>, NetlinkError> {
        let Some(source) = desired.source.filter(|_| !desired.cidrs.is_empty()) else {
            return Ok(Vec::new());
        };
        self.set_sysctls(status);
        let guarded = self.guard(desired, status);
        routes::add(conn, &desired.cidrs, present, source, guarded, status)
    }

    /// IPVS, unless the kernel has none, which is said once and asked again every minute.
    fn ipvs(&mut self) -> Result<Option<Ipvs>, NetlinkError> {
        if self
            .absent_since
            .is_some_and(|since| since.elapsed() < PROBE_AGAIN)
        {
            return Ok(None);
        }
        let ipvs = Ipvs::open()?;
        match (&ipvs, self.absent_since) {
            (None, None) => tracing::warn!(
                "the kernel has no IPVS, so Services are not programmed and everything else goes on: load it with \
                 `modprobe ip_vs`, or run a kernel with CONFIG_IP_VS; it is looked for again every {} s",
                PROBE_AGAIN.as_secs()
            ),
            (Some(_), Some(_)) => tracing::info!("the kernel has IPVS now; Services are programmed"),
            _ => {}
        }
        self.absent_since = ipvs.is_none().then(Instant::now);
        Ok(ipvs)
    }

    fn set_sysctls(&mut self, status: &mut Status) {
        let missing = sysctls::set(&mut status.failed);
        if missing.is_empty() {
            self.sysctls_said.clear();
        } else if self.sysctls_said.is_news(&missing.join("; ")) {
            for sentence in missing {
                tracing::warn!("{sentence}");
            }
        }
    }

    /// Whether the table with the guard stands.
    fn guard(&self, desired: &Ipv4View, status: &mut Status) -> bool {
        let Some(network) = desired.network else {
            return false;
        };
        let table = services_table(&ServicesTable {
            cidrs: desired.cidrs.clone(),
            network,
            local_endpoints: desired.local_endpoints.clone(),
            fully_random: true,
        });
        match self.nft.apply(&table) {
            Ok(_) => true,
            Err(error) => {
                status.fail(&error);
                false
            }
        }
    }
}
