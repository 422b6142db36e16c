//! Text that is torn or no JSON, and variables that no sane runtime sets.

use flannel_lab::pod::CniCall;

use super::inputs::{Input, POD, stdin, whole};

const TEXT: &[u64] = &[6, 7, 1];
const ENVIRONMENT: &[u64] = &[4];

/// The text ends in the middle, at every seventh byte.
pub fn torn() -> Vec<Input> {
    let text = whole().to_string();
    let end = |length: usize| Input {
        what: format!("the first {length} bytes"),
        call: CniCall::new("ADD", POD).stdin(&text.as_bytes()[..length]),
        codes: TEXT,
        names: None,
    };
    (0..text.len()).step_by(7).map(end).collect()
}

/// Texts that are no configuration.
pub fn texts() -> Vec<Input> {
    let deep = |opening: &str, closing: &str, depth: usize| {
        format!(
            "{{\"name\":\"n\",\"x\":{}{}}}",
            opening.repeat(depth),
            closing.repeat(depth)
        )
    };
    let texts: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("blanks", b" \n\t ".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("no UTF-8", b"{\"name\":\"\xff\xfe\"}".to_vec()),
        ("UTF-16", b"{\0}\0".to_vec()),
        ("zeros", vec![0; 4096]),
        ("a list", b"[]".to_vec()),
        ("a number", b"7".to_vec()),
        ("two objects", b"{}{}".to_vec()),
        ("NaN", b"{\"name\":NaN}".to_vec()),
        ("a trailing comma", b"{\"name\":\"n\",}".to_vec()),
        ("single quotes", b"{'name':'n'}".to_vec()),
        ("a comment", b"{/* x */\"name\":\"n\"}".to_vec()),
        (
            "a name twice",
            br#"{"name":"a","name":"b","cniVersion":"1.0.0"}"#.to_vec(),
        ),
        (
            "a key in two cases",
            br#"{"name":"a","NAME":"b","cniVersion":"1.0.0"}"#.to_vec(),
        ),
        ("deep lists", deep("[", "]", 100_000).into_bytes()),
        ("deep objects", deep("{\"a\":", "}", 100_000).into_bytes()),
        ("lists just too deep", deep("[", "]", 64).into_bytes()),
        ("half a surrogate", br#"{"name":"\ud800"}"#.to_vec()),
        (
            "an endless number",
            format!("{{\"name\":{}}}", "9".repeat(100_000)).into_bytes(),
        ),
        ("a megabyte of blanks and more", vec![b' '; (1 << 20) + 1]),
        ("eight megabytes", vec![b'{'; 8 << 20]),
    ];
    texts
        .into_iter()
        .map(|(what, text)| Input {
            what: what.to_owned(),
            call: CniCall::new("ADD", POD).stdin(text),
            codes: TEXT,
            names: None,
        })
        .collect()
}

/// Odd variables. The kernel takes no zero byte in one.
pub fn environment() -> Vec<Input> {
    let long = "a".repeat(5_000);
    let ids = [
        "../../etc",
        "..",
        ".",
        "/",
        "a/b",
        "-rf",
        "_a",
        " a",
        "a b",
        "a\nb",
        "ä",
        "%s",
        "$(id)",
        "a;b",
        "a\u{202e}",
        &long,
    ];
    let names = [
        "..",
        ".",
        "/",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "eth%d",
        "sixteen-bytes-xx",
        "eth0\n",
        "\u{1}",
        &long,
    ];
    let namespaces = [
        "/proc/self/ns/net",
        "/proc/1/ns/net",
        "/proc/self/ns/mnt",
        "/proc/self/ns/pid",
        "/dev/zero",
        "/dev/null",
        "/etc/passwd",
        "/etc",
        "/",
        "relative",
        "../../proc/1/ns/net",
        "/run/netns/",
        "/run/netns/none",
        "/proc/999999999/ns/net",
        "\n",
        &long,
    ];
    let arguments = [
        "x",
        "=",
        ";;=;;",
        "A=B=C",
        "IgnoreUnknown=perhaps",
        "MAC=zz",
        "MAC=ff:ff:ff:ff:ff:ff",
        "MAC=00:00:00:00:00:00",
        "IP=300.1.1.1",
        "IP=10.5.7.9/99",
        "IP=::g",
        "FOO=1",
        "MAC=02:00:00:00:00:01;MAC=zz",
        &long,
    ];
    let commands = ["add", "ADD ", "FROB", "ADDDEL", "\u{1}", "$(ADD)", &long];
    let of = |variable: &'static str, codes: &'static [u64], values: &[&str]| -> Vec<Input> {
        let one = |value: &&str| Input {
            what: format!("{variable}={}", value.chars().take(40).collect::<String>()),
            call: CniCall {
                variables: vec![(variable.to_owned(), (*value).to_owned())],
                ..stdin("ADD", &whole())
            },
            codes,
            names: Some(variable.to_owned()),
        };
        values.iter().map(one).collect()
    };
    let mut inputs = of("CNI_CONTAINERID", ENVIRONMENT, &ids);
    inputs.extend(of("CNI_IFNAME", ENVIRONMENT, &names));
    inputs.extend(of("CNI_NETNS", &[4, 8], &namespaces));
    inputs.extend(of("CNI_ARGS", ENVIRONMENT, &arguments));
    inputs.extend(of("CNI_COMMAND", ENVIRONMENT, &commands));
    for verb in ["ADD", "DEL", "CHECK"] {
        inputs.push(Input {
            what: format!("{verb} of nothing"),
            call: CniCall {
                container: String::new(),
                interface: String::new(),
                ..stdin(verb, &whole()).without_netns()
            },
            codes: ENVIRONMENT,
            names: Some("CNI_CONTAINERID".into()),
        });
    }
    inputs
}
