//! Which frontend has which virtual servers.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::{ServerKey, VirtualAddress};
use flannel_plan::FrontendKey;
use flannel_plan::ipvs::VirtualServers;

/// Both ways. Nearly every frontend has one virtual server, at its own address: of such a one the address says all, and there may be many.
#[derive(Debug, Default)]
pub(in crate::services::ipvs) struct Owners {
    plain: BTreeSet<VirtualAddress>,
    /// What all others have.
    of: BTreeMap<FrontendKey, Vec<ServerKey>>,
    owner: BTreeMap<ServerKey, FrontendKey>,
}

impl Owners {
    /// A frontend has these from now on. Answers those that it had and has no more.
    pub(super) fn set(&mut self, frontend: FrontendKey, servers: &VirtualServers) -> Vec<ServerKey> {
        let mut before = match frontend {
            FrontendKey::Address(at)
                if servers.len() == 1 && servers.contains_key(&ServerKey::Address(at)) =>
            {
                if !self.plain.insert(at) {
                    return Vec::new();
                }
                self.forget_listed(&frontend)
            }
            FrontendKey::Address(_) | FrontendKey::NodePort(_) => {
                let before = self.forget(&frontend);
                self.owner
                    .extend(servers.keys().map(|server| (*server, frontend)));
                self.of.insert(frontend, servers.keys().copied().collect());
                before
            }
        };
        before.retain(|server| !servers.contains_key(server));
        before
    }

    /// A frontend has none from now on. Answers those that it had.
    pub(super) fn forget(&mut self, frontend: &FrontendKey) -> Vec<ServerKey> {
        match frontend {
            FrontendKey::Address(at) if self.plain.remove(at) => vec![ServerKey::Address(*at)],
            FrontendKey::Address(_) | FrontendKey::NodePort(_) => self.forget_listed(frontend),
        }
    }

    fn forget_listed(&mut self, frontend: &FrontendKey) -> Vec<ServerKey> {
        let servers = self.of.remove(frontend).unwrap_or_default();
        for server in &servers {
            if self.owner.get(server) == Some(frontend) {
                self.owner.remove(server);
            }
        }
        servers
    }

    /// The kernel did not make a virtual server: what stands there is nobody's of ours. The frontend stays known.
    pub(super) fn refused(&mut self, server: &ServerKey) {
        self.owner.remove(server);
        if let ServerKey::Address(at) = server
            && self.plain.remove(at)
        {
            self.of.insert(FrontendKey::Address(*at), vec![*server]);
        }
    }

    /// Whose a virtual server is.
    pub(super) fn owner(&self, server: &ServerKey) -> Option<FrontendKey> {
        match server {
            ServerKey::Address(at) if self.plain.contains(at) => Some(FrontendKey::Address(*at)),
            ServerKey::Address(_) | ServerKey::Mark { .. } => self.owner.get(server).copied(),
        }
    }

    /// Every frontend with its virtual servers.
    pub(in crate::services::ipvs) fn iter(&self) -> impl Iterator<Item = (FrontendKey, Vec<ServerKey>)> + '_ {
        let plain = self.plain.iter().copied();
        let plain = plain.map(|at| (FrontendKey::Address(at), vec![ServerKey::Address(at)]));
        plain.chain(
            self.of
                .iter()
                .map(|(frontend, servers)| (*frontend, servers.clone())),
        )
    }

    /// Every frontend.
    pub(in crate::services::ipvs) fn frontends(&self) -> impl Iterator<Item = FrontendKey> + '_ {
        let plain = self.plain.iter().copied().map(FrontendKey::Address);
        plain.chain(self.of.keys().copied())
    }
}

#[cfg(test)]
mod tests {
    use flannel_model::ServiceProtocol;
    use flannel_plan::NodePort;
    use flannel_plan::ipvs::{RealServers, VirtualServer};

    use super::*;

    fn at(last: u8) -> VirtualAddress {
        VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: [10, 96, 0, last].into(),
            port: 80,
        }
    }

    fn servers(keys: &[ServerKey]) -> VirtualServers {
        let server = || VirtualServer {
            scheduler: "rr".into(),
            flags: 0,
            timeout: 0,
            real: RealServers::default(),
        };
        keys.iter().map(|key| (*key, server())).collect()
    }

    #[test]
    fn what_a_frontend_has_is_known_both_ways() {
        let (frontend, address) = (FrontendKey::Address(at(1)), ServerKey::Address(at(1)));
        let mark = ServerKey::Mark { ipv6: false, mark: 7 };
        let mut owners = Owners::default();
        for (now, gone) in [
            (&[address][..], &[][..]),
            (&[address], &[]),
            (&[address, mark], &[]),
            (&[address], &[mark]),
            (&[], &[address]),
            (&[address], &[]),
        ] {
            assert_eq!(owners.set(frontend, &servers(now)), gone, "{now:?}");
            for server in [address, mark] {
                assert_eq!(owners.owner(&server).is_some(), now.contains(&server), "{now:?}");
            }
            let all: Vec<_> = owners.iter().collect();
            assert_eq!(all, [(frontend, now.to_vec())]);
        }
        assert_eq!(owners.forget(&frontend), [address]);
        assert_eq!((owners.frontends().count(), owners.owner(&address)), (0, None));
    }

    #[test]
    fn what_the_kernel_refused_is_nobodys_and_its_frontend_stays_known() {
        let port = FrontendKey::NodePort(NodePort {
            ipv4: true,
            protocol: ServiceProtocol::Tcp,
            port: 30080,
        });
        let both = [ServerKey::Address(at(2)), ServerKey::Address(at(3))];
        let (plain, own) = (FrontendKey::Address(at(1)), ServerKey::Address(at(1)));
        let mut owners = Owners::default();
        owners.set(port, &servers(&both));
        owners.set(plain, &servers(&[own]));
        owners.refused(&both[0]);
        owners.refused(&own);
        let owned = [own, both[0], both[1]].map(|server| owners.owner(&server));
        assert_eq!(owned, [None, None, Some(port)]);
        assert_eq!(owners.frontends().collect::<Vec<_>>(), [plain, port]);
        owners.set(plain, &servers(&[own]));
        assert_eq!(owners.owner(&own), Some(plain));
        assert_eq!(owners.frontends().count(), 2);
    }
}
