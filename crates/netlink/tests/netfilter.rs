//! nf_tables elements and tracked connections in a kernel; `nft` and `conntrack` are the second opinion.
//!
//! Needs root, nft and conntrack.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::net::SocketAddr;

use flannel_netlink::conntrack;
use flannel_netlink::nftables::{
    Counter, Data, Draw, DrawBy, Element, Family, NftConn, TableWatch, add_elements, delete_elements,
    draw_chain, remember_chain,
};
use support::{in_fresh_netns, run};

const TABLE: &str = "t";

fn make_table() {
    run("nft add table ip t");
    run("nft add chain ip t pick-2");
    run("nft add map ip t frontends { type ipv4_addr . inet_service : verdict ; counter ; }");
    run("nft add map ip t backends { type ipv4_addr . inet_service : ipv4_addr . inet_service ; }");
    run("nft add set ip t cidrs { type ipv4_addr ; flags interval ; }");
}

fn listed(nft: &mut NftConn, set: &str) -> Vec<Element> {
    let listed = nft.elements(Family::Ipv4, TABLE, set).unwrap().unwrap();
    let mut elements: Vec<Element> = listed.into_iter().map(|l| l.element).collect();
    elements.sort();
    elements
}

#[test]
fn elements_are_written_listed_and_deleted() {
    in_fresh_netns(|_| {
        make_table();
        let mut nft = NftConn::open().unwrap();
        let frontend = Element::mapping([10, 96, 0, 10, 0, 80, 0, 0], Data::Goto("pick-2".into()));
        let backend = Element::mapping(
            [10, 96, 0, 10, 0, 80, 0, 0],
            Data::Value(vec![10, 5, 1, 2, 0x1f, 0x90, 0, 0]),
        );
        let range = [
            Element::key([10, 96, 0, 0]),
            Element {
                interval_end: true,
                ..Element::key([10, 97, 0, 0])
            },
        ];
        let messages = [
            add_elements(TABLE, "frontends", [&frontend]),
            add_elements(TABLE, "backends", [&backend]),
            add_elements(TABLE, "cidrs", &range),
        ]
        .concat();
        nft.commit(Family::Ipv4, &messages, "add").unwrap();
        let text = run("nft list table ip t");
        for part in [
            "10.96.0.10 . 80 counter packets 0 bytes 0 : goto pick-2",
            "10.96.0.10 . 80 : 10.5.1.2 . 8080",
            "10.96.0.0/16",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(listed(&mut nft, "frontends"), std::slice::from_ref(&frontend));
        assert_eq!(listed(&mut nft, "backends"), std::slice::from_ref(&backend));
        assert_eq!(listed(&mut nft, "cidrs"), range);
        let counters = nft.elements(Family::Ipv4, TABLE, "frontends").unwrap().unwrap();
        assert_eq!(counters[0].counter, Some(Counter::default()));
        // one change: the same key with other data, in one transaction
        let other = Element::mapping(
            backend.key.clone(),
            Data::Value(vec![10, 5, 1, 3, 0x1f, 0x90, 0, 0]),
        );
        let messages = [
            delete_elements(TABLE, "backends", [&backend]),
            add_elements(TABLE, "backends", [&other]),
        ]
        .concat();
        nft.commit(Family::Ipv4, &messages, "change").unwrap();
        assert_eq!(listed(&mut nft, "backends"), [other]);
        // a transaction that fails leaves everything, and the connection goes on
        let messages = [
            delete_elements(TABLE, "frontends", [&frontend]),
            delete_elements(TABLE, "backends", [&Element::key([0; 8])]),
        ]
        .concat();
        assert!(
            nft.commit(Family::Ipv4, &messages, "fail")
                .unwrap_err()
                .is_missing()
        );
        assert_eq!(listed(&mut nft, "frontends"), [frontend]);
        assert_eq!(nft.elements(Family::Ipv4, TABLE, "absent").unwrap(), None);
    });
}

#[test]
fn many_elements_go_in_one_transaction() {
    in_fresh_netns(|_| {
        make_table();
        let mut nft = NftConn::open().unwrap();
        let elements: Vec<Element> = (0..20_000_u32)
            .map(|n| {
                Element::mapping(
                    [n.to_be_bytes(), [0, 80, 0, 0]].concat(),
                    Data::Value(vec![10, 5, 1, 2, 0, 80, 0, 0]),
                )
            })
            .collect();
        let before = nft.generation().unwrap();
        nft.commit(Family::Ipv4, &add_elements(TABLE, "backends", &elements), "load")
            .unwrap();
        assert_eq!(nft.generation().unwrap(), before + 1);
        assert_eq!(listed(&mut nft, "backends").len(), elements.len());
    });
}

#[test]
fn foreign_changes_are_told_and_our_own_are_not() {
    in_fresh_netns(|_| {
        make_table();
        let mut nft = NftConn::open().unwrap();
        let watch = TableWatch::open(TABLE).unwrap();
        let element = Element::key([10, 96, 0, 0]);
        nft.commit(Family::Ipv4, &add_elements(TABLE, "cidrs", [&element]), "add")
            .unwrap();
        run("nft add table ip other");
        assert!(
            !watch.touched(nft.port()),
            "neither ours nor another table counts"
        );
        run("nft flush set ip t cidrs");
        assert!(watch.touched(nft.port()));
        assert!(!watch.touched(nft.port()), "it is told once");
        run("nft flush ruleset");
        assert!(watch.touched(nft.port()));
    });
}

#[test]
fn rules_that_remember_clients_are_what_nft_understands() {
    in_fresh_netns(|_| {
        let mut nft = NftConn::open().unwrap();
        for (family, word, address) in [
            (Family::Ipv4, "ip", "ipv4_addr"),
            (Family::Ipv6, "ip6", "ipv6_addr"),
        ] {
            run(&format!("nft add table {word} t"));
            run(&format!(
                "nft add map {word} t affinity {{ type {address} . {address} . inet_proto . inet_service : {address} . inet_service ; size 1000 ; flags dynamic,timeout ; }}"
            ));
            for _ in 0..2 {
                let messages = remember_chain(family, TABLE, "remember-600", "affinity", 600);
                nft.commit(family, &messages, "remember").unwrap();
            }
            let text = run(&format!("nft list chain {word} t remember-600"));
            for protocol in ["tcp", "udp", "sctp"] {
                let rule = format!(
                    "update @affinity {{ {word} saddr . ct original {word} daddr . meta l4proto . ct original proto-dst timeout 10m : {word} daddr . {protocol} dport }}"
                );
                assert_eq!(text.matches(&rule).count(), 1, "{rule}\n{text}");
            }
            assert_eq!(nft.rules(family, TABLE).unwrap()["remember-600"].len(), 3);
        }
    });
}

#[test]
fn single_flows_are_found_and_ended() {
    in_fresh_netns(|_| {
        let insert = |port: u16, answerer: &str| {
            run(&format!(
                "conntrack -I -p udp -s 10.5.1.2 -d 10.96.0.10 --sport {port} --dport 53 -r {answerer} -q 10.5.1.2 --reply-port-src 5353 --reply-port-dst {port} --timeout 100"
            ));
        };
        insert(40001, "10.5.1.3");
        insert(40002, "10.5.2.3");
        insert(40003, "10.5.1.3");
        run(
            "conntrack -I -p tcp -s 10.5.1.2 -d 10.96.0.10 --sport 40001 --dport 53 --state ESTABLISHED --timeout 100",
        );
        let gone: SocketAddr = "10.5.1.3:5353".parse().unwrap();
        let stale = conntrack::flows(true, |flow| flow.protocol == 17 && flow.answerer == gone).unwrap();
        assert_eq!(stale.len(), 2, "{stale:?}");
        assert_eq!(conntrack::end(&stale).unwrap(), 2);
        assert_eq!(conntrack::end(&stale).unwrap(), 0, "what is gone is no error");
        let left = run("conntrack -L");
        assert_eq!(left.lines().count(), 2, "{left}");
        assert!(left.contains("sport=40002") && left.contains("tcp"), "{left}");
    });
}

/// nft takes them for what they are: `th dport` and nothing that restricts them to one protocol.
#[test]
fn rules_that_draw_an_endpoint_are_what_nft_understands() {
    in_fresh_netns(|_| {
        let mut nft = NftConn::open().unwrap();
        for (family, word, address) in [
            (Family::Ipv4, "ip", "ipv4_addr"),
            (Family::Ipv6, "ip6", "ipv6_addr"),
        ] {
            run(&format!("nft add table {word} t"));
            run(&format!(
                "nft add chain {word} t nat {{ type nat hook prerouting priority -105 ; }}"
            ));
            let data = format!("{word} daddr . th dport");
            run(&format!(
                "nft add map {word} t backends {{ typeof {word} daddr . meta l4proto . th dport . numgen random mod 65536 : {data} ; }}"
            ));
            run(&format!(
                "nft add map {word} t ports {{ typeof meta l4proto . th dport . numgen random mod 65536 : {data} ; }}"
            ));
            run(&format!(
                "nft add map {word} t affinity {{ type {address} . {address} . inet_proto . inet_service : {address} . inet_service ; size 1000 ; flags dynamic,timeout ; }}"
            ));
            let plain = Draw {
                map: "backends",
                by_address: true,
                by: DrawBy::Random,
                slots: 3,
                offset: 0,
                remembered: None,
            };
            let at = format!("{word} daddr . meta l4proto . th dport");
            let cases = [
                (
                    plain,
                    format!("dnat {word} to {at} . numgen random mod 3 map @backends"),
                ),
                (
                    Draw {
                        by: DrawBy::Source,
                        ..plain
                    },
                    format!("dnat {word} to {at} . jhash {word} saddr mod 3 seed 0x666c616e map @backends"),
                ),
                (
                    Draw {
                        by: DrawBy::SourcePort,
                        offset: 0x8000,
                        ..plain
                    },
                    format!(
                        "dnat {word} to {at} . jhash {word} saddr . th sport mod 3 seed 0x666c616e offset 32768 map @backends"
                    ),
                ),
                (
                    Draw {
                        by: DrawBy::Destination,
                        slots: 1,
                        ..plain
                    },
                    format!("dnat {word} to {at} . numgen random mod 1 map @backends"),
                ),
                (
                    Draw {
                        map: "ports",
                        by_address: false,
                        remembered: Some("affinity"),
                        ..plain
                    },
                    format!("dnat {word} to {word} saddr . {at} map @affinity"),
                ),
            ];
            for (number, (draw, expected)) in cases.into_iter().enumerate() {
                let name = format!("draw-{number}");
                for _ in 0..2 {
                    nft.commit(family, &draw_chain(family, TABLE, &name, &draw), "draw")
                        .unwrap();
                }
                let text = run(&format!("nft list chain {word} t {name}"));
                assert_eq!(text.matches(&expected).count(), 1, "{expected}\n{text}");
                let rules = 1 + usize::from(draw.slots > 1) + usize::from(draw.remembered.is_some());
                assert_eq!(text.matches("dnat").count(), rules, "{text}");
            }
            // a base chain leads there, as in the real table
            run(&format!("nft add rule {word} t nat jump draw-0"));
            run("nft -j list ruleset");
        }
    });
}
