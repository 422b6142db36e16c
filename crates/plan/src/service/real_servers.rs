//! The real servers of a virtual server.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::frontend::{Backend, Backends};

/// A real server as it should be, or as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// Share of new connections for weighted schedulers; 0 takes none.
    pub weight: u32,
    /// Whether it is reached by address translation, as all of ours are.
    pub masquerade: bool,
}

/// The real servers of one virtual server, in the order of their addresses.
#[derive(Debug, Clone)]
pub enum RealServers {
    /// These endpoints, all reached by address translation. They take no memory of their own: nearly every virtual server is as it
    /// should be, and there may be a hundred thousand endpoints.
    Endpoints(Backends),
    /// Whatever stands there.
    Listed(BTreeMap<SocketAddr, RealServer>),
}

impl RealServers {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, RealServer)> + '_ {
        let (endpoints, listed): (&[Backend], _) = match self {
            Self::Endpoints(backends) => (backends, None),
            Self::Listed(listed) => (&[], Some(listed)),
        };
        let listed = listed.into_iter().flatten();
        let endpoints = endpoints.iter().map(|b| (b.address, masqueraded(b.weight)));
        endpoints.chain(listed.map(|(address, real)| (*address, *real)))
    }

    /// The one at an address.
    pub fn get(&self, address: &SocketAddr) -> Option<RealServer> {
        match self {
            Self::Endpoints(backends) => {
                let place = backends.binary_search_by_key(address, |b| b.address).ok()?;
                backends.get(place).map(|b| masqueraded(b.weight))
            }
            Self::Listed(listed) => listed.get(address).copied(),
        }
    }

    /// Whether there is one at an address.
    pub fn contains(&self, address: &SocketAddr) -> bool {
        self.get(address).is_some()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Endpoints(backends) => backends.len(),
            Self::Listed(listed) => listed.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes them.
    pub fn change(&mut self, change: impl FnOnce(&mut BTreeMap<SocketAddr, RealServer>)) {
        let mut listed = match std::mem::take(self) {
            Self::Listed(listed) => listed,
            endpoints @ Self::Endpoints(_) => endpoints.iter().collect(),
        };
        change(&mut listed);
        *self = Self::Listed(listed);
    }
}

impl Default for RealServers {
    fn default() -> Self {
        Self::Listed(BTreeMap::new())
    }
}

impl FromIterator<(SocketAddr, RealServer)> for RealServers {
    fn from_iter<T: IntoIterator<Item = (SocketAddr, RealServer)>>(all: T) -> Self {
        Self::Listed(all.into_iter().collect())
    }
}

impl PartialEq for RealServers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for RealServers {}

/// One that is reached by address translation.
pub(super) fn masqueraded(weight: u32) -> RealServer {
    RealServer {
        weight,
        masquerade: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_and_what_is_listed_are_the_same_until_one_changes() {
        let at = |n: u8| SocketAddr::from(([10, 5, 1, n], 8080));
        let backend = |n: u8| Backend {
            address: at(n),
            weight: u32::from(n),
            local: n == 2,
        };
        let mut endpoints = RealServers::Endpoints([backend(1), backend(2), backend(9)].into());
        let listed: RealServers = endpoints.iter().collect();
        assert!(matches!(&listed, RealServers::Listed(l) if l.len() == 3));
        assert_eq!(listed, endpoints);
        for n in 0..11 {
            assert_eq!(endpoints.get(&at(n)), listed.get(&at(n)));
            assert_eq!(endpoints.contains(&at(n)), [1, 2, 9].contains(&n));
        }
        endpoints.change(|real| {
            real.insert(at(2), masqueraded(0));
        });
        assert_ne!(listed, endpoints);
        assert_eq!(endpoints.get(&at(2)), Some(masqueraded(0)));
        assert_eq!((endpoints.len(), endpoints.is_empty()), (3, false));
    }
}
