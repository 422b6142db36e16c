//! Looks for everything that is ours, in the order in which it is to go.

use anyhow::Context;
use flannel_model::IpFamily;
use flannel_netlink::link::{self, Link, released};
use flannel_netlink::route::{self, Filter};
use flannel_netlink::{OUR_PROTOCOL, RouteConn};
use flannel_nft::{Nft, NftError, TableName};

use super::cni_files;
use super::files;
use super::item::Item;
use super::options::Options;
use crate::encap;
use crate::services::leftovers;

/// Tables of the CNI plugin.
const CNI_TABLES: [&str; 2] = ["flannel-cni-guard", "flannel-cni-masq"];
/// Tables of the daemon. Those of the first name may be flannel's own, and only a hash of ours in it tells them apart.
const TABLES: [TableName; 8] = [
    TableName::MASQUERADE,
    TableName::MASQUERADE_V6,
    TableName::ENCAP,
    TableName::ENCAP_V6,
    TableName::SERVICES,
    TableName::SERVICES_V6,
    TableName::SERVICE_NAT,
    TableName::SERVICE_NAT6,
];

/// Those of them that are about Services.
const SERVICE_TABLES: [TableName; 4] = [
    TableName::SERVICES,
    TableName::SERVICES_V6,
    TableName::SERVICE_NAT,
    TableName::SERVICE_NAT6,
];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is ours, in the order in which it is to go: what leads packets somewhere before what is there.
    pub items: Vec<Item>,
    /// What could not be looked at.
    pub problems: Vec<String>,
}

/// Looks for it.
///
/// # Errors
/// When the kernel cannot be asked at all, or containers are still attached to the bridge that is to go.
pub fn find(options: &Options, conn: &mut RouteConn) -> anyhow::Result<Found> {
    if options.services {
        return of_services(options, conn);
    }
    let links = link::dump(conn).context("cannot list the devices")?;
    let bridge = match &options.bridge {
        Some(name) => bridge(name, &links)?,
        None => None,
    };
    let mut found = Found::default();
    found.add_servers(conn)?;
    found.items.extend(routes_of_ours(conn)?);
    found.items.extend(files::holder(options));
    let devices = links.iter().filter(|link| is_device_of_ours(link));
    found
        .items
        .extend(devices.map(|link| Item::Device(link.name.clone())));
    if links.iter().any(released::is_released) {
        found.items.push(Item::Released);
    }
    found
        .items
        .extend(bridge.map(|link| Item::Device(link.name.clone())));
    found.add_tables(&TABLES, options.bridge.is_some());
    if !options.keep_sysctls {
        match files::sysctls(options) {
            Ok(changed) => found.items.extend(changed.into_iter().map(Item::Sysctl)),
            Err(error) => found.problems.push(format!("{error:#}")),
        }
    }
    // Before the file that says whose addresses they are.
    if options.bridge.is_some() {
        found.items.extend(cni_files::find(&options.subnet_file));
    }
    found.items.extend(files::files(options));
    Ok(found)
}

/// What is programmed for Services: without anything of the overlay.
fn of_services(options: &Options, conn: &mut RouteConn) -> anyhow::Result<Found> {
    let mut found = Found::default();
    found.add_servers(conn)?;
    found.add_tables(&SERVICE_TABLES, false);
    found.items.extend(files::drains(options));
    Ok(found)
}

impl Found {
    /// Virtual servers, and what delivers packets to them.
    fn add_servers(&mut self, conn: &mut RouteConn) -> anyhow::Result<()> {
        let services = leftovers(conn).context("cannot list the virtual servers")?;
        self.problems.extend(services.failed);
        let servers = services.servers.into_iter().map(Item::VirtualServer);
        let routes = services.routes.into_iter().map(Item::LocalRoute);
        self.items.extend(servers.chain(routes));
        Ok(())
    }

    fn add_tables(&mut self, ours: &[TableName], of_plugin: bool) {
        match tables(ours, of_plugin) {
            Ok(tables) => self.items.extend(tables),
            // A host without nft has no table of ours.
            Err(NftError::Missing { .. }) => {}
            Err(error) => self.problems.push(crate::said::chain(&error)),
        }
    }
}

fn routes_of_ours(conn: &mut RouteConn) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let filter = Filter {
            family,
            protocol: Some(OUR_PROTOCOL),
            ..Filter::default()
        };
        let routes = route::dump(conn, &filter).context("cannot list the routes")?;
        items.extend(routes.into_iter().map(Item::Route));
    }
    Ok(items)
}

/// Whether a device has one of our names and is what we make of that name.
fn is_device_of_ours(link: &Link) -> bool {
    match link.kind.as_str() {
        "vxlan" => {
            let vni = link
                .name
                .strip_prefix("flannel.")
                .or_else(|| link.name.strip_prefix("flannel-v6."));
            vni.is_some_and(|vni| link.vxlan.is_some_and(|vxlan| vxlan.id.to_string() == vni))
        }
        "ipip" => link.name == "flannel.ipip",
        "wireguard" => matches!(link.name.as_str(), "flannel-wg" | "flannel-wg-v6"),
        "tun" => link.name == crate::udp::DEVICE,
        _ => false,
    }
}

/// The containers' bridge, if there is one.
fn bridge<'a>(name: &str, links: &'a [Link]) -> anyhow::Result<Option<&'a Link>> {
    let Some(bridge) = links.iter().find(|link| link.name == name) else {
        return Ok(None);
    };
    anyhow::ensure!(
        bridge.kind == "bridge",
        "{name} is no bridge: name the containers' one with --bridge"
    );
    let ports = links.iter().filter(|link| link.master == Some(bridge.ifindex));
    let ports: Vec<&str> = ports.map(|link| link.name.as_str()).collect();
    anyhow::ensure!(
        ports.is_empty(),
        "containers are attached to {name} ({}): end them first, or leave --cni out",
        ports.join(", ")
    );
    Ok(Some(bridge))
}

fn tables(ours: &[TableName], of_plugin: bool) -> Result<Vec<Item>, NftError> {
    let nft = Nft::default();
    let mut items = Vec::new();
    for (family, name) in nft.tables()? {
        let known = ours
            .iter()
            .find(|t| t.name == name && t.family.to_string() == family);
        let is_ours = match known {
            // The name is nobody else's, and it has no hash.
            Some(table) if table.name == encap::TABLE => true,
            Some(table) => nft.current_hash(*table)?.is_some(),
            None => of_plugin && CNI_TABLES.contains(&name.as_str()),
        };
        if is_ours {
            items.push(Item::Table { family, name });
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_netlink::link::Vxlan;

    fn link(name: &str, kind: &str, vni: u32) -> Link {
        Link {
            name: name.to_owned(),
            kind: kind.to_owned(),
            vxlan: (kind == "vxlan").then(|| Vxlan {
                id: vni,
                ..Vxlan::default()
            }),
            ..Link::default()
        }
    }

    #[test]
    fn a_device_is_ours_by_name_and_kind() {
        for (name, kind, vni) in [
            ("flannel.1", "vxlan", 1),
            ("flannel-v6.4096", "vxlan", 4096),
            ("flannel.ipip", "ipip", 0),
            ("flannel-wg", "wireguard", 0),
            ("flannel-wg-v6", "wireguard", 0),
            ("flannel0", "tun", 0),
        ] {
            assert!(is_device_of_ours(&link(name, kind, vni)), "{name}");
        }
        for (name, kind, vni) in [
            ("flannel.1", "vxlan", 2),
            ("flannel.1", "dummy", 0),
            ("flannel.ipip", "vxlan", 1),
            ("vxlan1", "vxlan", 1),
            ("flannel.", "vxlan", 0),
            ("cni0", "bridge", 0),
            ("eth0", "", 0),
        ] {
            assert!(!is_device_of_ours(&link(name, kind, vni)), "{name} {kind} {vni}");
        }
    }

    #[test]
    fn a_bridge_with_containers_stays() {
        let mut links = vec![link("cni0", "bridge", 0), link("veth1", "veth", 0)];
        links[0].ifindex = 7;
        assert!(bridge("cni0", &links).unwrap().is_some());
        assert!(bridge("cni1", &links).unwrap().is_none());
        links[1].master = Some(7);
        assert!(bridge("cni0", &links).unwrap_err().to_string().contains("veth1"));
        assert!(bridge("veth1", &links).is_err());
    }
}
