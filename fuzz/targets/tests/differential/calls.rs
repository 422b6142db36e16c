//! Whole calls: the environment and stdin of a process. The crate reads them from its own process only, so that this program runs
//! itself again for each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};

use cni_plugin::{Cni, Inputs};
use flannel_cni::protocol::{Attachment, Call, from_environment};

const STDIN: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"flannel"}"#;
/// Stands before what the other process understood.
const MARK: &str = "understood: ";
/// Set in that process.
const SECOND: &str = "DIFFERENTIAL_SECOND";

type Variables = BTreeMap<&'static str, &'static str>;

/// A value, with a word of our refusal where only the other takes it.
type Choice = (&'static str, Option<&'static str>);

/// Each variable's values.
const VALUES: &[(&str, &[Choice])] = &[
    (
        "CNI_COMMAND",
        &[("ADD", None), ("DEL", None), ("CHECK", None), ("FROB", None)],
    ),
    (
        "CNI_CONTAINERID",
        &[
            ("c1", None),
            ("0a_b.c-d", None),
            ("../x", None),
            ("", None),
            ("a/b", None),
        ],
    ),
    (
        "CNI_IFNAME",
        &[
            ("eth0", None),
            ("a.b-c_d", None),
            // It looks at no interface name at all.
            ("a/b", Some("CNI_IFNAME")),
            ("..", Some("CNI_IFNAME")),
            ("sixteen-bytes-xx", Some("CNI_IFNAME")),
            ("", Some("CNI_IFNAME")),
        ],
    ),
    (
        "CNI_NETNS",
        // To the specification a variable that is set to nothing is not set; to it, it is an empty path.
        &[
            ("/run/netns/x", None),
            ("/proc/7/ns/net", None),
            ("", Some("CNI_NETNS")),
        ],
    ),
    // It does not look at CNI_ARGS.
    (
        "CNI_ARGS",
        &[
            ("", None),
            ("IgnoreUnknown=1;K8S_POD_NAME=x", None),
            ("a=b=c", Some("CNI_ARGS")),
        ],
    ),
    ("CNI_PATH", &[("/opt/cni/bin:/usr/lib/cni", None)]),
];

/// Every combination of two odd variables, the others plain, and every variable missing.
fn cases() -> Vec<(Variables, Vec<&'static str>)> {
    let plain = || -> Variables { VALUES.iter().map(|(name, values)| (*name, values[0].0)).collect() };
    let mut cases = Vec::new();
    for (one, first) in VALUES {
        for (two, second) in VALUES.iter().filter(|(name, _)| name > one) {
            for (a, why) in *first {
                for (b, why_too) in *second {
                    let mut variables = plain();
                    variables.insert(one, a);
                    variables.insert(two, b);
                    cases.push((variables, why.iter().chain(why_too.iter()).copied().collect()));
                }
            }
        }
        let mut variables = plain();
        variables.remove(one);
        cases.push((variables, Vec::new()));
    }
    cases
}

fn show(command: &str, container: &str, ifname: &str, netns: Option<&str>) -> String {
    let netns = netns.filter(|path| !path.is_empty());
    format!("{command} {container:?} {ifname:?} {netns:?}")
}

fn ours(variables: &Variables) -> Result<String, String> {
    let get = |name: &str| variables.get(name).map(OsString::from);
    let of = |command: &str, attachment: &Attachment, netns: Option<&str>| {
        show(
            command,
            attachment.container.as_str(),
            attachment.ifname.as_str(),
            netns,
        )
    };
    match from_environment(get).map_err(|error| error.to_string())? {
        Some(Call::Add {
            attachment, netns, ..
        }) => Ok(of("ADD", &attachment, Some(&netns))),
        Some(Call::Check {
            attachment, netns, ..
        }) => Ok(of("CHECK", &attachment, Some(&netns))),
        Some(Call::Del { attachment, netns }) => Ok(of("DEL", &attachment, netns.as_deref())),
        other => Err(format!("{other:?}")),
    }
}

/// In the second process: what the crate makes of the environment.
fn tell() {
    let Some(Inputs {
        command,
        container_id,
        ifname,
        netns,
        ..
    }) = Cni::from_env().ok().and_then(Cni::into_inputs)
    else {
        println!("{MARK}nothing");
        return;
    };
    let netns = netns.map(|path| path.to_string_lossy().into_owned());
    println!(
        "{MARK}{}",
        show(command.as_ref(), &container_id, &ifname, netns.as_deref())
    );
}

fn theirs(variables: &Variables) -> Option<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "calls::calls_are_read_alike"]);
    command.env_clear().envs(variables).env(SECOND, "1");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(STDIN.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = text.split_once(MARK).unwrap();
    let line = rest.lines().next().unwrap();
    (line != "nothing").then(|| line.to_owned())
}

#[test]
fn calls_are_read_alike() {
    if std::env::var_os(SECOND).is_some() {
        return tell();
    }
    let (mut alike, mut stricter) = (0, 0);
    for (variables, words) in cases() {
        let Some(theirs) = theirs(&variables) else {
            continue;
        };
        // DEL needs neither of the two.
        let del = variables["CNI_COMMAND"] == "DEL";
        let words: Vec<_> = words
            .into_iter()
            .filter(|word| !(del && ["CNI_NETNS", "CNI_ARGS"].contains(word)))
            .collect();
        match ours(&variables) {
            Ok(ours) if words.is_empty() => {
                assert_eq!(ours, theirs, "{variables:?}");
                alike += 1;
            }
            Err(error) if words.iter().any(|word| error.contains(word)) => stricter += 1,
            other => panic!("it understands {theirs}, we {other:?}; expected refusals: {words:?}"),
        }
    }
    println!("{alike} alike, {stricter} stricter");
    assert!(alike > 30 && stricter > 30, "{alike} alike, {stricter} stricter");
}
