//! The part of the CNI plugin's guard that the daemon knows about: the ports to which containers must not send.

use super::{Attributes, Element, Kind, Message, add_elements};

/// Name of the guard's table, in the family bridge.
pub const GUARD_TABLE: &str = "flannel-cni-guard";
/// The set of UDP ports at which nodes take each other's packets of pods: who could send to them from a container would send as any
/// other container of any node.
pub const GUARDED_PORTS: &str = "tunnels";
/// flannel's ports by default: VXLAN's in the Linux kernel, and that of the udp backend. The plugin guards them by itself.
pub const DEFAULT_TUNNEL_PORTS: [u16; 2] = [8472, 8285];

/// Table, set and these ports in it, whatever of them is there.
pub fn guard_ports(ports: impl IntoIterator<Item = u16>) -> Vec<Message> {
    // NFTA_TABLE_NAME
    let table = Message {
        kind: Kind::NewTable,
        attributes: Attributes::new().text(1, GUARD_TABLE),
    };
    // NFTNL_UDATA_SET_KEYBYTEORDER: type 0, 4 bytes in host order, for the program nft alone; 2 is big-endian.
    let mut user_data = vec![0, 4];
    user_data.extend_from_slice(&2_u32.to_ne_bytes());
    let attributes = Attributes::new()
        .text(1, GUARD_TABLE) // NFTA_SET_TABLE
        .text(2, GUARDED_PORTS) // NFTA_SET_NAME
        .number(3, 0) // NFTA_SET_FLAGS
        .number(4, 13) // NFTA_SET_KEY_TYPE: nft's TYPE_INET_SERVICE
        .number(5, 2) // NFTA_SET_KEY_LEN
        .number(10, 1) // NFTA_SET_ID
        .bytes(13, &user_data); // NFTA_SET_USERDATA
    let set = Message {
        kind: Kind::NewSet,
        attributes,
    };
    let keys: Vec<Element> = ports.into_iter().map(port_element).collect();
    let mut messages = vec![table, set];
    messages.extend(add_elements(GUARD_TABLE, GUARDED_PORTS, &keys));
    messages
}

/// A port as an element of the set.
pub fn port_element(port: u16) -> Element {
    Element::key(port.to_be_bytes())
}
