//! The same in the tables of iptables-legacy, which only its own program can change.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use flannel_model::IpFamily;

use super::{FORWARD, kept, removed};

/// Table, chain of the kernel, chain of flannel.
const CHAINS: [(&str, &str, &str); 2] = [
    ("nat", "POSTROUTING", "FLANNEL-POSTRTG"),
    ("filter", "FORWARD", FORWARD),
];

/// Removes them where the kernel has such tables and the program is there.
pub fn remove(family: IpFamily, forward: bool) {
    let (tables, program) = match family {
        IpFamily::V4 => ("/proc/net/ip_tables_names", "iptables-legacy"),
        IpFamily::V6 => ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    };
    // Asking for a table that is not there would make it.
    let there = std::fs::read_to_string(tables).unwrap_or_default();
    for (table, parent, name) in CHAINS
        .iter()
        .filter(|(table, ..)| there.lines().any(|line| line == *table))
    {
        let Some(iptables) = find(program) else {
            tracing::warn!(
                "the kernel has tables of iptables-legacy, but there is no {program} to look for flannel's chains in them"
            );
            return;
        };
        if let Err(problem) = of_table(&iptables, (table, parent, name), forward) {
            tracing::warn!("flannel's chain {name} in the legacy table {table}: {problem}");
        }
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn of_table(
    iptables: &PathBuf,
    (table, parent, name): (&str, &str, &str),
    forward: bool,
) -> Result<(), String> {
    let run = |arguments: &[&str]| run(iptables, &[&["-w", "5", "-t", table], arguments].concat());
    let listed = run(&["-S"])?;
    if !listed.lines().any(|line| line == format!("-N {name}")) {
        return Ok(());
    }
    let shown = format!("{table} (legacy)");
    if name == FORWARD && forward && listed.lines().any(|line| line == format!("-P {parent} DROP")) {
        kept(&shown, name);
        return Ok(());
    }
    let jumps = jumps(&listed, parent, name);
    // From the last on, so that the numbers of the others stay.
    for number in jumps.iter().rev() {
        run(&["-D", parent, &number.to_string()])?;
    }
    run(&["-F", name])?;
    run(&["-X", name])?;
    removed(&shown, name, jumps.len());
    Ok(())
}

/// The numbers of the rules of `parent` that lead to `name`, from 1 on.
fn jumps(listed: &str, parent: &str, name: &str) -> Vec<usize> {
    let of_parent = format!("-A {parent} ");
    let rules = listed.lines().filter(|line| line.starts_with(&of_parent));
    let leads_there = |rule: &str| {
        let words: Vec<&str> = rule.split(' ').collect();
        words
            .windows(2)
            .any(|pair| matches!(pair[0], "-j" | "-g") && pair[1] == name)
    };
    (1..)
        .zip(rules)
        .filter(|(_, rule)| leads_there(rule))
        .map(|(number, _)| number)
        .collect()
}

fn run(program: &PathBuf, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let done = done.map_err(|error| format!("{} cannot be run: {error}", program.display()))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(format!(
            "{} {}: {}",
            program.display(),
            arguments.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_in_their_chain_alone() {
        let listed = "-P POSTROUTING ACCEPT\n-N FLANNEL-POSTRTG\n-A OUTPUT -j FLANNEL-POSTRTG\n-A POSTROUTING -j KUBE-POSTROUTING\n\
                      -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
                      -A POSTROUTING -s 10.0.0.0/8 -j FLANNEL-POSTRTG-2\n-A POSTROUTING -j FLANNEL-POSTRTG\n";
        assert_eq!(jumps(listed, "POSTROUTING", "FLANNEL-POSTRTG"), [2, 4]);
    }
}
