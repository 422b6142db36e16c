//! One thing that a clean-up removes, as data that can be printed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use anyhow::Context;
use flannel_model::{IpSubnet, ServerKey};
use flannel_netlink::generic::{Ipvs, IpvsRequest};
use flannel_netlink::link::{self, released};
use flannel_netlink::local_route::{self, LocalRoute};
use flannel_netlink::route::{self, Route};
use flannel_netlink::{NetlinkError, RouteConn, RouteRequest, sysctl};
use flannel_nft::Nft;

use crate::udp;

/// Something of ours. The text completes the sentence "would …".
#[derive(Debug)]
pub enum Item {
    /// A virtual server of Services.
    VirtualServer(ServerKey),
    /// A local route of Services.
    LocalRoute(IpSubnet),
    /// A route of table main.
    Route(Route),
    /// The process that keeps the udp backend's descriptors, in the folder of its socket.
    Holder(PathBuf),
    /// A device, by its name.
    Device(String),
    /// Devices of containers that are gone, which the CNI plugin left to the daemon.
    Released,
    /// An nftables table.
    Table {
        /// Its family.
        family: String,
        /// Its name.
        name: String,
    },
    /// A kernel setting.
    Sysctl(sysctl::Changed),
    /// A file.
    File(PathBuf),
    /// A folder, if nothing is in it.
    Folder(PathBuf),
}

impl Item {
    /// Removes it. What is gone already is no failure.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remove(&self, conn: &mut RouteConn) -> anyhow::Result<()> {
        match self {
            Self::VirtualServer(key) => remove_server(*key),
            Self::LocalRoute(destination) => {
                let route = LocalRoute {
                    destination: *destination,
                    source: None,
                };
                run(conn, &local_route::delete(&route))
            }
            Self::Route(route) => run(conn, &route::delete(route)),
            Self::Holder(folder) => {
                udp::forget(folder);
                Ok(())
            }
            Self::Device(name) => run(conn, &link::delete(name.as_str())),
            Self::Released => released::reap(conn).map(drop).map_err(Into::into),
            Self::Table { family, name } => Ok(Nft::default().delete(family, name)?),
            Self::Sysctl(changed) => changed.put_back().map_err(Into::into),
            Self::File(path) => gone_is_fine(std::fs::remove_file(path)),
            Self::Folder(path) => match std::fs::remove_dir(path) {
                // Somebody else's files are in it, or it is a mount.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
                    ) =>
                {
                    Ok(())
                }
                other => gone_is_fine(other),
            },
        }
    }
}

fn run(conn: &mut RouteConn, request: &RouteRequest) -> anyhow::Result<()> {
    match conn.run(request) {
        Err(error) if !error.is_missing() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn remove_server(key: ServerKey) -> anyhow::Result<()> {
    let mut ipvs = Ipvs::open()?.context("the kernel has no IPVS any more")?;
    let missing = |result: &Result<(), NetlinkError>| matches!(result, Err(error) if error.is_missing());
    let results = ipvs.apply(&[IpvsRequest::RemoveVirtual(key)]);
    results
        .into_iter()
        .filter(|result| !missing(result))
        .collect::<Result<(), _>>()
        .map_err(Into::into)
}

fn gone_is_fine(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualServer(key) => write!(f, "remove virtual server {key}"),
            Self::LocalRoute(destination) => write!(f, "remove local route {destination}"),
            Self::Route(route) => write!(f, "remove route {route}"),
            Self::Holder(folder) => write!(
                f,
                "end the process that keeps the udp backend's descriptors ({})",
                folder.display()
            ),
            Self::Device(name) => write!(f, "remove device {name}"),
            Self::Released => f.write_str("remove devices of containers that are gone"),
            Self::Table { family, name } => write!(f, "remove nftables table {family} {name}"),
            Self::Sysctl(changed) => write!(
                f,
                "set {} back from {} to {}",
                changed.name.replace('/', "."),
                changed.set,
                changed.before
            ),
            Self::File(path) => write!(f, "remove {}", path.display()),
            Self::Folder(path) => write!(f, "remove {} if it is empty", path.display()),
        }
    }
}
