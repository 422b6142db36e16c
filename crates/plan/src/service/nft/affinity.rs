//! What the table remembers of clients, read.

use std::net::{IpAddr, SocketAddr};

use flannel_model::{ServiceProtocol, VirtualAddress};

use super::element::read_endpoint;

/// A client that was here and the endpoint that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The client.
    pub client: IpAddr,
    /// What it talked to: a frontend's address, or an address of the node with a node port.
    pub at: VirtualAddress,
    /// Where that led.
    pub endpoint: SocketAddr,
}

/// Reads an element of the map of remembered clients.
pub fn read_remembered(key: &[u8], data: &[u8]) -> Option<Remembered> {
    // two addresses, then protocol and port of four bytes each
    let width = key.len().checked_sub(8)? / 2;
    let (client, rest) = key.split_at_checked(width)?;
    let (address, rest) = rest.split_at_checked(width)?;
    let (protocol, port) = (*rest.first()?, rest.get(4..6)?);
    Some(Remembered {
        client: address_of(client)?,
        at: VirtualAddress {
            protocol: ServiceProtocol::from_number(protocol)?,
            address: address_of(address)?,
            port: u16::from_be_bytes(port.try_into().ok()?),
        },
        endpoint: read_endpoint(data)?,
    })
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::nft::NftData;
    use crate::service::nft::element::{Key, endpoint};

    #[test]
    fn what_the_rules_remember_is_read() {
        for (client, address, to) in [
            ("10.5.1.2", "10.96.0.10", "10.5.2.3:8080"),
            ("fd00::1", "fd00:96::a", "[fd00::2]:8080"),
        ] {
            let (client, address): (IpAddr, IpAddr) = (client.parse().unwrap(), address.parse().unwrap());
            let to: SocketAddr = to.parse().unwrap();
            let key = Key::default()
                .ip(client)
                .ip(address)
                .protocol(ServiceProtocol::Udp)
                .port(53);
            let NftData::Value(data) = endpoint(to) else {
                unreachable!()
            };
            let read = read_remembered(&key.0, &data).unwrap();
            assert_eq!(
                (read.client, read.at.address, read.endpoint),
                (client, address, to)
            );
            assert_eq!((read.at.protocol, read.at.port), (ServiceProtocol::Udp, 53));
            assert_eq!(read_remembered(&key.0[..7], &data), None);
            assert_eq!(read_remembered(&[], &[]), None);
        }
    }
}
