//! SubnetLen, SubnetMin and SubnetMax of both families: flannel's defaults, what is refused, and each sentence as operators read it. Every
//! rule of IPv4 has its twin of IPv6.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use flannel_model::NetworkConfig;

/// A config with the fields of one family; the other one is off.
fn text(ipv6: bool, fields: &str) -> String {
    match ipv6 {
        false => format!("{{{fields}}}"),
        true => format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{fields}}}"#),
    }
}

/// The sentences of a config that is bad.
fn refused(ipv6: bool, fields: &str) -> Vec<String> {
    let text = text(ipv6, fields);
    match NetworkConfig::parse(text.as_bytes()) {
        Ok(config) => panic!("{text} is taken: {config:?}"),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

/// First subnet, last subnet and their number.
fn cut(ipv6: bool, fields: &str) -> (String, String, u128) {
    let text = text(ipv6, fields);
    let pools = NetworkConfig::parse(text.as_bytes()).unwrap().pools;
    match (pools.ipv4(), pools.ipv6()) {
        (Some(pool), None) => (
            pool.subnet_min.to_string(),
            pool.subnet_max.to_string(),
            pool.count(),
        ),
        (None, Some(pool)) => (
            pool.subnet_min.to_string(),
            pool.subnet_max.to_string(),
            pool.count(),
        ),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn what_is_not_said_is_flannels_default() {
    for (ipv6, fields, min, max, count) in [
        // The first subnet is left out, the last one is not.
        (
            false,
            r#""Network":"10.5.0.0/16""#,
            "10.5.1.0/24",
            "10.5.255.0/24",
            255,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/48""#,
            "fd00:5:0:1::/64",
            "fd00:5:0:ffff::/64",
            65_535,
        ),
        // As long as four subnets of the usual length fit, that is the length; else four make up the network.
        (
            false,
            r#""Network":"10.5.0.0/22""#,
            "10.5.1.0/24",
            "10.5.3.0/24",
            3,
        ),
        (
            false,
            r#""Network":"10.5.0.0/23""#,
            "10.5.0.128/25",
            "10.5.1.128/25",
            3,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/62""#,
            "fd00:5:0:1::/64",
            "fd00:5:0:3::/64",
            3,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/63""#,
            "fd00:5:0:0:8000::/65",
            "fd00:5:0:1:8000::/65",
            3,
        ),
        (
            false,
            r#""Network":"10.5.0.0/28""#,
            "10.5.0.4/30",
            "10.5.0.12/30",
            3,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/124""#,
            "fd00:5::4/126",
            "fd00:5::c/126",
            3,
        ),
        // Zero and the unspecified address say nothing.
        (
            false,
            r#""Network":"10.5.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0""#,
            "10.5.1.0/24",
            "10.5.255.0/24",
            255,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetLen":0,"IPv6SubnetMin":"::","IPv6SubnetMax":"::""#,
            "fd00:5:0:1::/64",
            "fd00:5:0:ffff::/64",
            65_535,
        ),
        // An explicit first subnet may be the network's own.
        (
            false,
            r#""Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.0.0""#,
            "10.5.0.0/24",
            "10.5.0.0/24",
            1,
        ),
        (
            true,
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5::","IPv6SubnetMax":"fd00:5::""#,
            "fd00:5::/64",
            "fd00:5::/64",
            1,
        ),
    ] {
        assert_eq!(
            cut(ipv6, fields),
            (min.to_owned(), max.to_owned(), count),
            "{fields}"
        );
    }
}

/// The same fault in IPv4 and in IPv6, with the sentence of each.
const TWINS: [[(&str, &str); 2]; 9] = [
    [
        (
            r#""Network":"10.5.0.0/29""#,
            "Network is 10.5.0.0/29: is too small: the minimum is /28, which holds four subnets",
        ),
        (
            r#""IPv6Network":"fd00:5::/125""#,
            "IPv6Network is fd00:5::/125: is too small: the minimum is /124, which holds four subnets",
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetLen":31"#,
            "SubnetLen is 31: must be less than /31: the longest subnet is /30",
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetLen":127"#,
            "IPv6SubnetLen is 127: must be less than /127: the longest subnet is /126",
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetLen":17"#,
            "SubnetLen is 17: Network 10.5.0.0/16 must hold at least four subnets: expected 18 to 30",
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetLen":49"#,
            "IPv6SubnetLen is 49: IPv6Network fd00:5::/48 must hold at least four subnets: expected 50 to 126",
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/29","SubnetLen":30"#,
            "SubnetLen is 30: Network 10.5.0.0/29 must hold at least four subnets: expected a larger network",
        ),
        (
            r#""IPv6Network":"fd00:5::/125","IPv6SubnetLen":126"#,
            "IPv6SubnetLen is 126: IPv6Network fd00:5::/125 must hold at least four subnets: expected a larger network",
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.6.0.0""#,
            r#"SubnetMin is "10.6.0.0": is not in the range of Network 10.5.0.0/16"#,
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:6::""#,
            r#"IPv6SubnetMin is "fd00:6::": is not in the range of IPv6Network fd00:5::/48"#,
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetMax":"10.6.0.0""#,
            r#"SubnetMax is "10.6.0.0": is not in the range of Network 10.5.0.0/16"#,
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMax":"fd00:6::""#,
            r#"IPv6SubnetMax is "fd00:6::": is not in the range of IPv6Network fd00:5::/48"#,
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.5.3.7""#,
            r#"SubnetMin is "10.5.3.7": is on no SubnetLen boundary: the /24 around it begins at 10.5.3.0"#,
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:3::7""#,
            r#"IPv6SubnetMin is "fd00:5:0:3::7": is on no IPv6SubnetLen boundary: the /64 around it begins at fd00:5:0:3::"#,
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetMax":"10.5.3.7""#,
            r#"SubnetMax is "10.5.3.7": is on no SubnetLen boundary: the /24 around it begins at 10.5.3.0"#,
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMax":"fd00:5:0:3::7""#,
            r#"IPv6SubnetMax is "fd00:5:0:3::7": is on no IPv6SubnetLen boundary: the /64 around it begins at fd00:5:0:3::"#,
        ),
    ],
    [
        (
            r#""Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.2.0""#,
            "SubnetMin is 10.5.9.0: lies behind SubnetMax 10.5.2.0, so there is no subnet to hand out",
        ),
        (
            r#""IPv6Network":"fd00:5::/48","IPv6SubnetMin":"fd00:5:0:9::","IPv6SubnetMax":"fd00:5:0:2::""#,
            "IPv6SubnetMin is fd00:5:0:9::: lies behind IPv6SubnetMax fd00:5:0:2::, so there is no subnet to hand out",
        ),
    ],
];

#[test]
fn what_is_refused_says_field_value_and_why_in_both_families() {
    for twins in TWINS {
        for (ipv6, (fields, sentence)) in [false, true].into_iter().zip(twins) {
            assert_eq!(refused(ipv6, fields), [sentence]);
        }
    }
}

#[test]
fn an_address_of_the_other_family_is_none() {
    let ipv4 = refused(false, r#""Network":"10.5.0.0/16","SubnetMin":"fd00:5::""#);
    assert_eq!(ipv4, [r#"SubnetMin is "fd00:5::": expected an IPv4 address"#]);
    let ipv6 = refused(true, r#""IPv6Network":"fd00:5::/48","IPv6SubnetMax":"10.5.0.0""#);
    assert_eq!(ipv6, [r#"IPv6SubnetMax is "10.5.0.0": expected an IPv6 address"#]);
}
