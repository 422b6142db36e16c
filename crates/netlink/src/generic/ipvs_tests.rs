//! The bytes of IPVS messages. Where a sample says so it was recorded from `ipvsadm` 1.31 or from Linux with
//! `strace -e trace=sendmsg,recvmsg -xx`; the others follow linux/ip_vs.h. All are little endian.

use std::net::{IpAddr, SocketAddr};

use flannel_model::{ServiceProtocol, VirtualAddress};
use proptest::prelude::*;

use super::attribute::Message;
use super::ipvs::{
    self, Forward, IpvsKey, IpvsRequest, IpvsTimeouts, RealServer, Stats, VirtualServer, attr,
};
use super::ipvs_parse;

fn key(protocol: ServiceProtocol, address: &str) -> IpvsKey {
    let address: SocketAddr = address.parse().unwrap();
    IpvsKey::Address(VirtualAddress {
        protocol,
        address: address.ip(),
        port: address.port(),
    })
}

fn web() -> IpvsKey {
    key(ServiceProtocol::Tcp, "10.96.0.10:80")
}

fn server(key: IpvsKey, scheduler: &str, flags: u32) -> VirtualServer {
    VirtualServer {
        key,
        scheduler: scheduler.to_owned().into(),
        flags,
        timeout: 0,
    }
}

/// AF, protocol, address and port of TCP 10.96.0.10:80.
const WEB: &[u8] = b"\x06\0\x01\0\x02\0\0\0\x06\0\x02\0\x06\0\0\0\x14\0\x03\0\x0a\x60\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\x06\0\x04\0\0\x50\0\0";
/// The attribute SERVICE around nothing but that.
const WEB_KEY: &[u8] = b"\x30\0\x01\x80";
/// Family, address and port of 10.244.1.2:8080.
const POD: &[u8] =
    b"\x06\0\x0b\0\x02\0\0\0\x14\0\x01\0\x0a\xf4\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\x06\0\x02\0\x1f\x90\0\0";

#[test]
fn virtual_servers_are_written_as_ipvsadm_does() {
    // recorded: ipvsadm -A -t 10.96.0.10:80 -s rr
    let added = [
        b"\x01\x01\0\0\x54\0\x01\x80",
        WEB,
        b"\x07\0\x06\0rr\0\0\x0c\0\x07\0\0\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\xff\xff\xff\xff",
    ];
    assert_eq!(
        IpvsRequest::AddVirtual(server(web(), "rr", 0)).encode(Vec::new()),
        added.concat()
    );
    // recorded: ipvsadm -E -t 10.96.0.10:80 -s wlc
    let changed = [
        b"\x02\x01\0\0\x54\0\x01\x80",
        WEB,
        b"\x08\0\x06\0wlc\0\x0c\0\x07\0\0\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\xff\xff\xff\xff",
    ];
    assert_eq!(
        IpvsRequest::SetVirtual(server(web(), "wlc", 0)).encode(Vec::new()),
        changed.concat()
    );
}

#[test]
fn an_ipv6_virtual_server_is_written_as_ipvsadm_does() {
    // recorded: ipvsadm -A -u '[fd00:96::a]:53' -s mh -b mh-port
    let expected = b"\x01\x01\0\0\x54\0\x01\x80\x06\0\x01\0\x0a\0\0\0\x06\0\x02\0\x11\0\0\0\x14\0\x03\0\xfd\0\0\x96\0\0\0\0\0\0\0\0\0\0\0\x0a\x06\0\x04\0\0\x35\0\0\x07\0\x06\0mh\0\0\x0c\0\x07\0\x10\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\x80\0\0\0";
    let dns = key(ServiceProtocol::Udp, "[fd00:96::a]:53");
    assert_eq!(
        IpvsRequest::AddVirtual(server(dns, "mh", 0x10)).encode(Vec::new()),
        expected
    );
}

#[test]
fn keys_alone_name_a_virtual_server() {
    // recorded, with an IPv6 key, from ipvsadm -Ln: GET_DEST carries the key and nothing else
    let expected = b"\x08\x01\0\0\x30\0\x01\x80\x06\0\x01\0\x0a\0\0\0\x06\0\x02\0\x11\0\0\0\x14\0\x03\0\xfd\0\0\x96\0\0\0\0\0\0\0\0\0\0\0\x0a\x06\0\x04\0\0\x35\0\0";
    assert_eq!(
        ipvs::list_real(&key(ServiceProtocol::Udp, "[fd00:96::a]:53")),
        expected
    );
    assert_eq!(ipvs::list_virtual(), b"\x04\x01\0\0");
    assert_eq!(
        IpvsRequest::RemoveVirtual(web()).encode(Vec::new()),
        [b"\x03\x01\0\0", WEB_KEY, WEB].concat()
    );
}

#[test]
fn real_servers_are_written_as_the_abi_asks() {
    let pod: SocketAddr = "10.244.1.2:8080".parse().unwrap();
    let added = IpvsRequest::AddReal(web(), RealServer::masquerade(pod, 1)).encode(Vec::new());
    let values = b"\x08\0\x03\0\0\0\0\0\x08\0\x04\0\x01\0\0\0\x08\0\x05\0\0\0\0\0\x08\0\x06\0\0\0\0\0";
    assert_eq!(
        added,
        [b"\x05\x01\0\0", WEB_KEY, WEB, b"\x48\0\x02\x80", POD, values].concat()
    );
    let mut direct = RealServer::masquerade(pod, 5);
    direct.forward = Forward::DirectRoute;
    let values = b"\x08\0\x03\0\x03\0\0\0\x08\0\x04\0\x05\0\0\0\x08\0\x05\0\0\0\0\0\x08\0\x06\0\0\0\0\0";
    let changed = IpvsRequest::SetReal(web(), direct).encode(Vec::new());
    assert_eq!(
        changed,
        [b"\x06\x01\0\0", WEB_KEY, WEB, b"\x48\0\x02\x80", POD, values].concat()
    );
    let removed = IpvsRequest::RemoveReal(web(), pod).encode(Vec::new());
    assert_eq!(
        removed,
        [b"\x07\x01\0\0", WEB_KEY, WEB, b"\x28\0\x02\x80", POD].concat()
    );
}

/// Recorded: ipvsadm -e -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 5. It says more than a change needs.
fn ipvsadm_real_server() -> Vec<u8> {
    let service = b"\x05\0\x06\0\0\0\0\0\x0c\0\x07\0\0\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\xff\xff\xff\xff";
    let dest = b"\x08\0\x03\0\0\0\0\0\x08\0\x04\0\x05\0\0\0\x05\0\x0d\0\0\0\0\0\x06\0\x0e\0\0\0\0\0\x06\0\x0f\0\0\0\0\0\x08\0\x05\0\0\0\0\0\x08\0\x06\0\0\0\0\0";
    [
        b"\x06\x01\0\0\x54\0\x01\x80",
        WEB,
        service,
        b"\x60\0\x02\x80",
        POD,
        dest,
    ]
    .concat()
}

/// Recorded from the kernel (its statistics cut off): the IPv6 virtual server above, flags 0x12.
const LISTED_VIRTUAL: &[u8] = b"\x01\x01\0\0\x54\0\x01\0\x06\0\x01\0\x0a\0\0\0\x06\0\x02\0\x11\0\0\0\x14\0\x03\0\xfd\0\0\x96\0\0\0\0\0\0\0\0\0\0\0\x0a\x06\0\x04\0\0\x35\0\0\x07\0\x06\0mh\0\0\x0c\0\x07\0\x12\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\x80\0\0\0";
/// Recorded from the kernel (its statistics cut off): a real server [fd00::2]:5353 of it.
const LISTED_REAL: &[u8] = b"\x05\x01\0\0\x78\0\x02\0\x14\0\x01\0\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\x06\0\x02\0\x14\xe9\0\0\x08\0\x03\0\0\0\0\0\x08\0\x04\0\x01\0\0\0\x05\0\x0d\0\0\0\0\0\x06\0\x0e\0\0\0\0\0\x06\0\x0f\0\0\0\0\0\x08\0\x05\0\0\0\0\0\x08\0\x06\0\0\0\0\0\x08\0\x07\0\0\0\0\0\x08\0\x08\0\0\0\0\0\x08\0\x09\0\0\0\0\0\x06\0\x0b\0\x0a\0\0\0";

#[test]
fn lists_of_the_kernel_are_read() {
    let listed = ipvs_parse::virtual_server(LISTED_VIRTUAL).unwrap();
    assert_eq!(
        listed,
        server(key(ServiceProtocol::Udp, "[fd00:96::a]:53"), "mh", 0x10),
        "HASHED is masked"
    );
    let real = ipvs_parse::real_server(LISTED_REAL, true).unwrap();
    assert_eq!(real, RealServer::masquerade("[fd00::2]:5353".parse().unwrap(), 1));
    let real = ipvs_parse::real_server(&ipvsadm_real_server(), false).unwrap();
    assert_eq!(
        real,
        RealServer::masquerade("10.244.1.2:8080".parse().unwrap(), 5)
    );
    let marked = b"\x01\x01\0\0\x30\0\x01\0\x06\0\x01\0\x02\0\0\0\x08\0\x05\0\x07\0\0\0\x07\0\x06\0rr\0\0\x0c\0\x07\0\x02\0\0\0\xff\xff\xff\xff\x08\0\x08\0\0\0\0\0\x08\0\x09\0\xff\xff\xff\xff";
    assert_eq!(
        ipvs_parse::virtual_server(marked).unwrap().key,
        IpvsKey::Mark { ipv6: false, mark: 7 }
    );
}

/// What a virtual server carried, in 64 bits (Linux 4.1 and later) or in 32 (bytes in 64).
#[test]
fn counters_of_both_widths_are_read() {
    let IpvsKey::Address(web_address) = web() else {
        panic!("no address");
    };
    let IpAddr::V4(ip) = web_address.address else {
        panic!("no IPv4");
    };
    let service = |stats: &dyn Fn(Message) -> Message| {
        let message = Message::new(1, 1).nest(attr::SERVICE, |m| {
            let identity = m
                .u16(attr::SVC_AF, 2)
                .u16(attr::SVC_PROTOCOL, 6)
                .bytes(attr::SVC_ADDR, &[&ip.octets()[..], &[0; 12]].concat())
                .bytes(attr::SVC_PORT, &80_u16.to_be_bytes());
            stats(identity)
        });
        message.finish()
    };
    let expected = Stats {
        connections: 7,
        packets_in: 10,
        packets_out: 9,
        bytes_in: 1 << 33,
        bytes_out: 900,
    };
    let kinds = [attr::STATS_CONNS, attr::STATS_INPKTS, attr::STATS_OUTPKTS];
    let bytes = |m: Message| {
        m.bytes(attr::STATS_INBYTES, &expected.bytes_in.to_ne_bytes())
            .bytes(attr::STATS_OUTBYTES, &expected.bytes_out.to_ne_bytes())
    };
    let narrow = |m: Message| {
        let numbers = kinds.iter().zip([7_u32, 10, 9]);
        bytes(numbers.fold(m, |m, (kind, n)| m.u32(*kind, n)))
    };
    let wide = |m: Message| {
        let numbers = kinds.iter().zip([7_u64, 10, 9]);
        bytes(numbers.fold(m, |m, (kind, n)| m.bytes(*kind, &n.to_ne_bytes())))
    };
    let old = service(&|m| m.nest(attr::SVC_STATS, narrow));
    assert_eq!(ipvs_parse::stats(&old), Some((web(), expected)));
    let both = service(&|m| {
        m.nest(attr::SVC_STATS, |m| m.u32(attr::STATS_CONNS, 1))
            .nest(attr::SVC_STATS64, wide)
    });
    assert_eq!(ipvs_parse::stats(&both), Some((web(), expected)));
    assert_eq!(ipvs_parse::stats(&service(&|m| m)), None);
}

#[test]
fn what_is_cut_short_is_refused() {
    for end in 0..LISTED_VIRTUAL.len() - 8 {
        assert_eq!(ipvs_parse::virtual_server(&LISTED_VIRTUAL[..end]), None, "{end}");
    }
    for end in 0..LISTED_REAL.len() {
        assert_eq!(ipvs_parse::real_server(&LISTED_REAL[..end], true), None, "{end}");
    }
}

#[test]
fn requests_read_like_sentences() {
    let pod: SocketAddr = "10.244.1.2:8080".parse().unwrap();
    let text = IpvsRequest::AddReal(web(), RealServer::masquerade(pod, 1)).to_string();
    assert_eq!(
        text,
        "add real server 10.244.1.2:8080 weight 1 to TCP 10.96.0.10:80"
    );
    let text = IpvsRequest::AddVirtual(server(web(), "rr", 0)).to_string();
    assert_eq!(text, "add virtual server TCP 10.96.0.10:80 rr");
}

fn any_protocol() -> impl Strategy<Value = ServiceProtocol> {
    prop_oneof![
        Just(ServiceProtocol::Tcp),
        Just(ServiceProtocol::Udp),
        Just(ServiceProtocol::Sctp)
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(protocol in any_protocol(), address: IpAddr, port: u16, flags: u32, timeout: u32, real: SocketAddr, weight: u32) {
        let key = IpvsKey::Address(VirtualAddress { protocol, address, port });
        let server = VirtualServer { key, scheduler: "wlc".into(), flags: flags & !2, timeout };
        let bytes = IpvsRequest::AddVirtual(server.clone()).encode(Vec::new());
        prop_assert_eq!(ipvs_parse::virtual_server(&bytes), Some(server));
        let real = SocketAddr::new(real.ip(), real.port());
        let real = RealServer::masquerade(real, weight);
        let bytes = IpvsRequest::AddReal(key, real).encode(Vec::new());
        prop_assert_eq!(ipvs_parse::real_server(&bytes, address.is_ipv6()), Some(real));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        ipvs_parse::virtual_server(&bytes);
        ipvs_parse::stats(&bytes);
        ipvs_parse::real_server(&bytes, true);
    }

    #[test]
    fn no_damage_makes_the_reader_panic(at in 0usize..116, with: u8, cut in 0usize..125) {
        let mut bytes = LISTED_REAL.to_vec();
        bytes[at] = with;
        bytes.truncate(cut);
        ipvs_parse::real_server(&bytes, false);
        let mut bytes = LISTED_VIRTUAL.to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        bytes.truncate(cut);
        ipvs_parse::virtual_server(&bytes);
    }
}

#[test]
fn only_the_timeouts_that_are_given_are_sent() {
    let timeouts = IpvsTimeouts {
        tcp: Some(900),
        tcp_fin: None,
        udp: Some(45),
    };
    let bytes = ipvs::set_timeouts(&timeouts);
    let number = |kind: u16, value: u32| {
        [
            8u16.to_ne_bytes().as_slice(),
            &kind.to_ne_bytes(),
            &value.to_ne_bytes(),
        ]
        .concat()
    };
    // IPVS_CMD_SET_CONFIG, version 1; IPVS_CMD_ATTR_TIMEOUT_TCP and _UDP
    assert_eq!(bytes, [vec![12, 1, 0, 0], number(4, 900), number(6, 45)].concat());
    assert_eq!(ipvs_parse::timeouts(&bytes), timeouts);
}
