//! The backends of this build: from the network config to what plans and what publishes.

use std::path::{Path, PathBuf};

use flannel_model::{
    BackendSettings, Families, IpFamily, Mac, UdpLeaseData, WireguardOptions, WireguardSecret,
};
use flannel_plan::Underlay;
use flannel_plan::backend::{Alloc, Backend, HostGw, Ipip, Udp, Vxlan, Wireguard, is_global};

use crate::clock::random_bits;
use crate::flags::Options;
use crate::publish::{Published, Vtep};
use crate::underlay::device_mac;
use crate::wireguard_key::{self, KeyPair, load_or_make, load_preshared};

/// The backend of this node, with all that it needs.
#[derive(Debug)]
pub struct Chosen {
    settings: BackendSettings,
    /// For VXLAN over IPv4.
    udp_checksum: bool,
    /// For WireGuard.
    key: Option<KeyPair>,
    /// From a file of the node's own, which is safer than etcd, where all that may read the config read it.
    preshared: Option<WireguardSecret>,
    global_ipv6: bool,
    /// The family of the underlay that carries datagrams of udp.
    udp_over: IpFamily,
    /// The port that a NAT maps to udp's.
    udp_public_port: Option<u16>,
}

impl Chosen {
    /// Gets ready what the backend needs.
    ///
    /// # Errors
    /// When the backend cannot work with this interface, or its key cannot be read or made: what is wrong and what to do.
    pub fn new(settings: BackendSettings, underlay: &Underlay, options: &Options) -> anyhow::Result<Self> {
        let mut key = None;
        if let BackendSettings::Wireguard(_) = settings {
            key = Some(load_or_make(&key_file(&options.state_dir))?);
        }
        let mut chosen = Self {
            settings,
            udp_checksum: options.vxlan_udp_checksum,
            key,
            preshared: None,
            global_ipv6: false,
            // Over IPv4 where there is any: flannel's nodes know nothing else.
            udp_over: match underlay.address.ipv4() {
                Some(_) => IpFamily::V4,
                None => IpFamily::V6,
            },
            udp_public_port: options.udp_public_port,
        };
        chosen.moved(underlay)?;
        chosen.read_again(options)?;
        Ok(chosen)
    }

    /// Goes on over another interface, or over the same with another address.
    ///
    /// # Errors
    /// When the backend cannot work with it; it stays as it is.
    pub fn moved(&mut self, underlay: &Underlay) -> anyhow::Result<()> {
        let behind_nat = underlay.public_ip != underlay.address;
        anyhow::ensure!(
            !(behind_nat && matches!(self.settings, BackendSettings::HostGw)),
            "host-gw sends packets of pods as they are, so the published address must be {}'s own; leave out --public-ip (and \
             --public-ipv6), or use vxlan",
            underlay.name
        );
        self.global_ipv6 = underlay.public_ip.ipv6().is_some_and(is_global);
        Ok(())
    }

    /// Goes on with other settings of the same backend.
    pub fn change(&mut self, settings: BackendSettings) {
        self.settings = settings;
    }

    /// Reads the file of the preshared key, if there is one to read.
    ///
    /// # Errors
    /// When it cannot be used; the key stays as it is.
    pub fn read_again(&mut self, options: &Options) -> anyhow::Result<()> {
        if let (BackendSettings::Wireguard(_), Some(file)) = (self.settings, &options.wireguard_psk_file) {
            self.preshared = Some(load_preshared(file)?);
        }
        Ok(())
    }

    /// What turns facts into the overlay; `None` while something that it needs is not settled.
    pub fn backend(&self, macs: Option<Families<Mac, Mac>>) -> Option<Box<dyn Backend>> {
        Some(match self.settings {
            BackendSettings::Vxlan(options) => Box::new(Vxlan {
                options,
                macs: macs?,
                udp_checksum: self.udp_checksum,
            }),
            BackendSettings::HostGw => Box::new(HostGw),
            BackendSettings::Ipip(options) => Box::new(Ipip {
                direct_routing: options.direct_routing,
            }),
            BackendSettings::Wireguard(options) => {
                let key = self.key.as_ref()?;
                Box::new(Wireguard {
                    options: WireguardOptions {
                        psk: self.preshared.or(options.psk),
                        ..options
                    },
                    private: key.private,
                    public: key.public,
                    global_ipv6: self.global_ipv6,
                })
            }
            BackendSettings::Udp(_) => Box::new(self.udp()?),
            BackendSettings::Alloc => Box::new(Alloc),
            BackendSettings::Unread => return None,
        })
    }

    /// The udp backend, if that is it.
    pub fn udp(&self) -> Option<Udp> {
        match self.settings {
            BackendSettings::Udp(options) => Some(Udp {
                options,
                carried_by: self.udp_over,
            }),
            _ => None,
        }
    }

    /// What the backend tells peers about this node. A VTEP that stands keeps its Ethernet address.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn published(&self) -> anyhow::Result<Published> {
        Ok(match &self.settings {
            BackendSettings::Vxlan(options) => Published::Vxlan {
                vni: options.vni,
                ipv4: vtep(options.vni, IpFamily::V4)?,
                ipv6: vtep(options.vni, IpFamily::V6)?,
            },
            BackendSettings::HostGw => Published::Name("host-gw"),
            BackendSettings::Ipip(_) => Published::Name("ipip"),
            BackendSettings::Wireguard(options) => match &self.key {
                Some(key) => Published::wireguard(key.public, options),
                None => Published::Nothing,
            },
            BackendSettings::Udp(_) => Published::Udp(UdpLeaseData {
                port: self.udp_public_port,
                ecn: true,
            }),
            BackendSettings::Alloc | BackendSettings::Unread => Published::Nothing,
        })
    }
}

fn vtep(vni: u32, family: IpFamily) -> anyhow::Result<Vtep> {
    let bits = random_bits().to_ne_bytes();
    let fresh = Mac::local_unicast([bits[0], bits[1], bits[2], bits[3], bits[4], bits[5]]);
    Ok(Vtep::new(device_mac(vni, family)?, fresh))
}

/// The file of the WireGuard key: the one that the environment names, else flannel's if there is one, so that peers know the node
/// by the same key after a take-over, else ours, which outlives a reboot.
fn key_file(state_dir: &Path) -> PathBuf {
    let named = std::env::var_os("WIREGUARD_KEY_FILE").filter(|name| !name.is_empty());
    named.map_or_else(
        || match Path::new(wireguard_key::FLANNELS).exists() {
            true => wireguard_key::FLANNELS.into(),
            false => state_dir.join(wireguard_key::FILE),
        },
        PathBuf::from,
    )
}
