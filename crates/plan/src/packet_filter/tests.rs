use super::*;

fn packet(source: &str, destination: &str) -> Packet {
    Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        input: Some("cni0".to_owned()),
        output: Some("flannel.1".to_owned()),
    }
}

fn chain(name: &str, base: Option<bool>, rules: Vec<Vec<Step>>) -> Chain {
    let rules = rules.into_iter().zip(1..).map(|(steps, handle)| Rule {
        handle,
        steps,
        counter: Some((handle, 0)),
    });
    Chain {
        table: "ip filter".to_owned(),
        name: name.to_owned(),
        base: base.map(|drops| Base {
            hook: Hook::Forward,
            kind: "filter".to_owned(),
            priority: 0,
            drops,
        }),
        rules: rules.collect(),
    }
}

fn source_in(bytes: [u8; 4], mask: [u8; 4]) -> Vec<Step> {
    vec![
        Step::Load {
            register: 8,
            field: Field::Network {
                offset: 12,
                length: 4,
            },
        },
        Step::Mask {
            from: 8,
            to: 8,
            mask: mask.to_vec(),
            xor: vec![0; 4],
        },
        Step::Compare {
            register: 8,
            how: Comparison::Equal,
            value: bytes.to_vec(),
        },
    ]
}

fn interface(field: Field, name: &[u8]) -> Vec<Step> {
    vec![
        Step::Load { register: 8, field },
        Step::Compare {
            register: 8,
            how: Comparison::Equal,
            value: name.to_vec(),
        },
    ]
}

fn then(mut steps: Vec<Step>, verdict: Verdict) -> Vec<Step> {
    steps.push(Step::Verdict(verdict));
    steps
}

fn forwarded(chains: Vec<Chain>) -> Met {
    let all = met(
        &Ruleset { chains },
        Hook::Forward,
        &packet("10.5.1.2", "10.5.2.2"),
    );
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

#[test]
fn a_policy_that_drops_is_found_unless_a_rule_accepts() {
    let of_others = || then(source_in([172, 17, 0, 0], [255, 255, 0, 0]), Verdict::Accept);
    let found = forwarded(vec![chain("FORWARD", Some(true), vec![of_others()])]);
    assert_eq!((found.fate, found.by.as_str()), (Fate::Drops, "its policy"));
    assert!(found.is_certain());
    let of_pods = then(source_in([10, 5, 0, 0], [255, 255, 0, 0]), Verdict::Accept);
    let found = forwarded(vec![chain("FORWARD", Some(true), vec![of_others(), of_pods])]);
    assert_eq!(
        (found.fate, found.by.as_str(), found.counter),
        (Fate::Passes, "rule 2 of chain FORWARD", Some((2, 0)))
    );
}

#[test]
fn chains_are_followed_and_come_back() {
    let jump = |to: &str| vec![Step::Verdict(Verdict::Jump(to.to_owned()))];
    let drops = then(interface(Field::OutputName, b"flannel.1\0"), Verdict::Drop);
    let chains = vec![
        chain("FORWARD", Some(false), vec![jump("USER"), jump("ISOLATION")]),
        chain(
            "USER",
            None,
            vec![
                vec![Step::Verdict(Verdict::Return)],
                vec![Step::Verdict(Verdict::Drop)],
            ],
        ),
        chain("ISOLATION", None, vec![drops]),
    ];
    let found = forwarded(chains);
    assert_eq!(
        (found.fate, found.by.as_str()),
        (Fate::Drops, "rule 1 of chain ISOLATION")
    );
    // A prefix of a name stands for all that begin so.
    let wild = then(interface(Field::InputName, b"cni"), Verdict::Accept);
    assert_eq!(
        forwarded(vec![chain("FORWARD", Some(true), vec![wild])]).fate,
        Fate::Passes
    );
    let other = then(interface(Field::InputName, b"docker0\0"), Verdict::Accept);
    assert_eq!(
        forwarded(vec![chain("FORWARD", Some(true), vec![other])]).fate,
        Fate::Drops
    );
}

#[test]
fn what_cannot_be_told_is_a_reservation_only_where_it_decides_otherwise() {
    let unknown = |verdict| vec![Step::Unknown, Step::Verdict(verdict)];
    let found = forwarded(vec![chain("FORWARD", Some(true), vec![unknown(Verdict::Accept)])]);
    assert_eq!(
        (found.fate, found.unless.as_slice()),
        (Fate::Drops, ["rule 1 of chain FORWARD".to_owned()].as_slice())
    );
    let found = forwarded(vec![chain("FORWARD", Some(true), vec![unknown(Verdict::Drop)])]);
    assert!(found.is_certain());
    let mark = vec![
        Step::Load {
            register: 8,
            field: Field::Other,
        },
        Step::Compare {
            register: 8,
            how: Comparison::Equal,
            value: vec![6],
        },
        Step::Verdict(Verdict::Accept),
    ];
    assert!(!forwarded(vec![chain("FORWARD", Some(true), vec![mark])]).is_certain());
}

#[test]
fn only_new_connections_are_looked_at() {
    let established = |inverted| vec![Step::State { bits: 6, inverted }, Step::Verdict(Verdict::Accept)];
    let with = |steps| forwarded(vec![chain("FORWARD", Some(true), vec![steps])]).fate;
    assert_eq!(with(established(false)), Fate::Drops);
    assert_eq!(with(established(true)), Fate::Passes);
    let native = vec![
        Step::Load {
            register: 8,
            field: Field::State,
        },
        Step::Mask {
            from: 8,
            to: 8,
            mask: 6u32.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Step::Compare {
            register: 8,
            how: Comparison::Different,
            value: vec![0; 4],
        },
        Step::Verdict(Verdict::Accept),
    ];
    assert_eq!(with(native), Fate::Drops);
}

#[test]
fn ipv6_addresses_stand_elsewhere_in_the_header() {
    let steps = vec![
        Step::Load {
            register: 8,
            field: Field::Network {
                offset: 24,
                length: 8,
            },
        },
        Step::Compare {
            register: 8,
            how: Comparison::Equal,
            value: vec![0xfd, 0, 0, 5, 0, 0, 0, 2],
        },
        Step::Verdict(Verdict::Drop),
    ];
    let ruleset = Ruleset {
        chains: vec![chain("FORWARD", Some(false), vec![steps])],
    };
    let all = met(&ruleset, Hook::Forward, &packet("fd00:5:0:1::2", "fd00:5:0:2::2"));
    assert_eq!(all[0].fate, Fate::Drops);
    let all = met(&ruleset, Hook::Forward, &packet("fd00:5:0:1::2", "fd00:5:0:3::2"));
    assert_eq!(all[0].fate, Fate::Passes);
    assert!(met(&ruleset, Hook::Postrouting, &packet("fd00::1", "fd00::2")).is_empty());
}

#[test]
fn chains_that_call_each_other_end() {
    let jump = |to: &str| vec![Step::Verdict(Verdict::Jump(to.to_owned()))];
    let chains = vec![
        chain("FORWARD", Some(true), vec![jump("A")]),
        chain("A", None, vec![jump("A")]),
    ];
    assert_eq!(forwarded(chains).fate, Fate::Drops);
}

#[test]
fn chains_of_flannel_are_found_with_what_leads_there() {
    let jump = |to: &str| vec![Step::Verdict(Verdict::Jump(to.to_owned()))];
    let flannels = || {
        chain(
            "FLANNEL-FWD",
            None,
            vec![then(source_in([10, 5, 0, 0], [255, 255, 0, 0]), Verdict::Accept)],
        )
    };
    let packets = [packet("10.5.1.2", "10.5.2.2")];
    let with = |drops| Ruleset {
        chains: vec![
            chain(
                "FORWARD",
                Some(drops),
                vec![jump("DOCKER-USER"), jump("FLANNEL-FWD")],
            ),
            chain("DOCKER-USER", None, vec![]),
            flannels(),
        ],
    };
    let found = old_chains(&with(false), &packets);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].jumps, [("FORWARD".to_owned(), 2)]);
    assert!(!found[0].needed, "nothing drops");
    assert!(
        old_chains(&with(true), &packets)[0].needed,
        "the policy drops the rest"
    );
    // Chains of that name elsewhere are somebody else's, and so is everything else.
    let mut elsewhere = with(true);
    elsewhere
        .chains
        .iter_mut()
        .for_each(|chain| "inet filter".clone_into(&mut chain.table));
    assert!(old_chains(&elsewhere, &packets).is_empty());
}
