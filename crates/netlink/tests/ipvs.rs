//! IPVS requests against a real kernel, in a network namespace of their own; `ipvsadm` is the second opinion.
//!
//! Needs root, iproute2 and ipvsadm.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first thing that fails"
)]
#![cfg(feature = "generic")]

use std::net::SocketAddr;
use std::process::Command;

use flannel_model::{ServiceProtocol, VirtualAddress};
use flannel_netlink::generic::{Forward, Ipvs, IpvsKey, IpvsRequest, RealServer, VirtualServer};
use flannel_netlink::{NetlinkError, Netns};

/// A network namespace that goes away with this value.
struct Lab(String);

impl Lab {
    fn new(name: &str) -> Self {
        let lab = Self(format!("ipvs-{name}-{}", std::process::id()));
        run("ip", &["netns", "add", &lab.0]);
        // IPVS refuses real servers while the local table is empty.
        run("ip", &["-n", &lab.0, "link", "set", "lo", "up"]);
        lab
    }

    fn ipvs(&self) -> Ipvs {
        let netns = Netns::open(format!("/run/netns/{}", self.0)).unwrap();
        let ipvs = netns.run(Ipvs::open).unwrap().unwrap();
        ipvs.expect(
            "this kernel has no IPVS: run the test in a guest whose kernel has it, or `modprobe ip_vs`",
        )
    }

    fn ipvsadm(&self, arguments: &[&str]) -> String {
        run(
            "ip",
            &[&["netns", "exec", &self.0, "ipvsadm"], arguments].concat(),
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(
        out.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

fn key(protocol: ServiceProtocol, address: &str) -> IpvsKey {
    let address: SocketAddr = address.parse().unwrap();
    IpvsKey::Address(VirtualAddress {
        protocol,
        address: address.ip(),
        port: address.port(),
    })
}

fn server(key: IpvsKey, scheduler: &str) -> VirtualServer {
    VirtualServer {
        key,
        scheduler: scheduler.to_owned().into(),
        flags: 0,
        timeout: 0,
    }
}

fn real(address: &str, weight: u32) -> RealServer {
    RealServer::masquerade(address.parse().unwrap(), weight)
}

fn errnos(results: Vec<Result<(), NetlinkError>>) -> Vec<i32> {
    results
        .into_iter()
        .map(|r| r.err().map_or(0, |e| e.errno().unwrap()))
        .collect()
}

#[test]
#[ignore = "needs a kernel with IPVS; integration/test.sh runs it in a guest"]
fn what_is_written_stands_in_the_kernel_as_ipvsadm_would_have_written_it() {
    let lab = Lab::new("write");
    let mut ipvs = lab.ipvs();
    let (web, dns) = (
        key(ServiceProtocol::Tcp, "10.96.0.10:80"),
        key(ServiceProtocol::Udp, "[fd00:96::a]:53"),
    );
    let results = ipvs.apply(&[
        IpvsRequest::AddVirtual(server(web, "rr")),
        IpvsRequest::AddReal(web, real("10.5.1.2:8080", 1)),
        IpvsRequest::AddReal(web, real("10.5.2.3:8080", 0)),
        IpvsRequest::AddVirtual(VirtualServer {
            flags: 0x10,
            ..server(dns, "mh")
        }),
        IpvsRequest::AddReal(dns, real("[fd00:5::2]:5353", 7)),
    ]);
    assert_eq!(errnos(results), [0; 5]);
    let mut lines: Vec<String> = lab
        .ipvsadm(&["-Sn"])
        .lines()
        .map(|l| l.trim().to_owned())
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "-A -t 10.96.0.10:80 -s rr",
            "-A -u [fd00:96::a]:53 -s mh -b mh-port",
            "-a -t 10.96.0.10:80 -r 10.5.1.2:8080 -m -w 1",
            "-a -t 10.96.0.10:80 -r 10.5.2.3:8080 -m -w 0",
            "-a -u [fd00:96::a]:53 -r [fd00:5::2]:5353 -m -w 7",
        ]
    );
    let direct = RealServer {
        forward: Forward::DirectRoute,
        ..real("10.5.1.2:80", 5)
    };
    let results = ipvs.apply(&[
        IpvsRequest::SetVirtual(server(web, "wlc")),
        IpvsRequest::SetReal(web, real("10.5.2.3:8080", 9)),
        IpvsRequest::RemoveReal(web, "10.5.1.2:8080".parse().unwrap()),
        IpvsRequest::AddReal(web, direct),
        IpvsRequest::RemoveVirtual(dns),
    ]);
    assert_eq!(errnos(results), [0; 5]);
    assert_eq!(ipvs.virtual_servers().unwrap(), [server(web, "wlc")]);
    let mut listed = ipvs.real_servers(&web).unwrap();
    listed.sort_by_key(|r| r.address);
    assert_eq!(listed, [direct, real("10.5.2.3:8080", 9)]);
    assert!(!lab.ipvsadm(&["-Ln"]).contains("UDP"));
}

#[test]
#[ignore = "needs a kernel with IPVS; integration/test.sh runs it in a guest"]
fn what_ipvsadm_wrote_is_read() {
    let lab = Lab::new("read");
    let mut ipvs = lab.ipvs();
    assert_eq!(ipvs.virtual_servers().unwrap(), []);
    lab.ipvsadm(&["-A", "-t", "10.96.0.1:443", "-s", "sh", "-p", "600"]);
    lab.ipvsadm(&[
        "-a",
        "-t",
        "10.96.0.1:443",
        "-r",
        "192.0.2.7:443",
        "-i",
        "-w",
        "3",
    ]);
    lab.ipvsadm(&["-A", "-f", "7", "-s", "rr"]);
    let mut listed = ipvs.virtual_servers().unwrap();
    listed.sort_by_key(|s| s.key);
    let https = key(ServiceProtocol::Tcp, "10.96.0.1:443");
    let persistent = VirtualServer {
        flags: 1,
        timeout: 600,
        ..server(https, "sh")
    };
    assert_eq!(
        listed,
        [persistent, server(IpvsKey::Mark { ipv6: false, mark: 7 }, "rr")]
    );
    let tunnel = RealServer {
        forward: Forward::Tunnel,
        ..real("192.0.2.7:443", 3)
    };
    assert_eq!(ipvs.real_servers(&https).unwrap(), [tunnel]);
    let unknown = key(ServiceProtocol::Tcp, "10.96.9.9:1");
    assert_eq!(ipvs.real_servers(&unknown).unwrap(), []);
}

#[test]
#[ignore = "needs a kernel with IPVS; integration/test.sh runs it in a guest"]
fn each_request_has_its_own_result_and_none_stops_the_rest() {
    const EEXIST: i32 = 17;
    const ENOENT: i32 = 2;
    const ESRCH: i32 = 3;
    let lab = Lab::new("results");
    let mut ipvs = lab.ipvs();
    let (web, gone) = (
        key(ServiceProtocol::Tcp, "10.96.0.10:80"),
        key(ServiceProtocol::Tcp, "10.96.0.11:80"),
    );
    let results = ipvs.apply(&[
        IpvsRequest::AddVirtual(server(web, "rr")),
        IpvsRequest::AddVirtual(server(web, "rr")),
        IpvsRequest::AddReal(web, real("10.5.1.2:80", 1)),
        IpvsRequest::AddReal(web, real("10.5.1.2:80", 1)),
        IpvsRequest::AddReal(gone, real("10.5.1.2:80", 1)),
        IpvsRequest::AddVirtual(server(gone, "nosuch")),
        IpvsRequest::RemoveReal(web, "10.5.1.9:80".parse().unwrap()),
        IpvsRequest::RemoveVirtual(gone),
        IpvsRequest::AddReal(web, real("10.5.1.3:80", 1)),
    ]);
    let text = results[1].as_ref().unwrap_err().to_string();
    assert!(
        text.starts_with("add virtual server TCP 10.96.0.10:80 rr: File exists (EEXIST)"),
        "{text}"
    );
    assert_eq!(
        errnos(results),
        [0, EEXIST, 0, EEXIST, ESRCH, ENOENT, ENOENT, ESRCH, 0]
    );
    assert_eq!(ipvs.real_servers(&web).unwrap().len(), 2);
}

#[test]
#[ignore = "needs a kernel with IPVS; integration/test.sh runs it in a guest"]
fn thousands_of_objects_go_in_and_come_back() {
    let lab = Lab::new("many");
    let mut ipvs = lab.ipvs();
    let mut requests = Vec::new();
    for n in 0..2000u16 {
        let vip = key(
            ServiceProtocol::Tcp,
            &format!("10.96.{}.{}:80", n / 200, n % 200 + 1),
        );
        requests.push(IpvsRequest::AddVirtual(server(vip, "rr")));
        requests.extend((2..5).map(|d| IpvsRequest::AddReal(vip, real(&format!("10.5.1.{d}:80"), 1))));
    }
    assert_eq!(ipvs.apply(&requests).iter().filter(|r| r.is_err()).count(), 0);
    let listed = ipvs.virtual_servers().unwrap();
    assert_eq!(listed.len(), 2000);
    assert!(
        listed
            .iter()
            .all(|s| ipvs.real_servers(&s.key).unwrap().len() == 3)
    );
}
