//! Command line and environment, read as Go's `flag` package and flannel read them.

use std::collections::BTreeMap;

use super::table::{FLAGS, Flag, Kind, find, variable};

/// What was typed: the texts of every flag that was given, checked for their kind.
#[derive(Debug, Default)]
pub struct Typed {
    values: BTreeMap<&'static str, Vec<String>>,
    /// Environment variables that hold what their flag cannot take; flannel ignores them with a message, and so do we.
    pub ignored: Vec<String>,
}

/// How reading the command line ended.
#[derive(Debug)]
pub enum Parsed {
    /// Go on with these.
    Run(Typed),
    /// `-h`.
    Help,
}

/// Reads the arguments behind the program's name, then the environment for flags that were not given.
///
/// # Errors
/// Every problem, one sentence each.
pub fn parse(args: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Parsed, Vec<String>> {
    let mut typed = Typed::default();
    let mut problems = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(body) = arg
            .strip_prefix("--")
            .or_else(|| arg.strip_prefix('-'))
            .filter(|body| !body.is_empty())
        else {
            problems.push(format!(
                "unexpected argument {arg:?}: flanneld takes flags only (see flanneld --help)"
            ));
            continue;
        };
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if matches!(name, "h" | "help") {
            return Ok(Parsed::Help);
        }
        let Some(flag) = find(name) else {
            problems.push(format!("unknown flag --{name} (see flanneld --help)"));
            continue;
        };
        let value = match (inline, flag.kind) {
            (Some(value), _) => Some(value),
            (None, Kind::Bool) => Some("true".to_owned()),
            (None, Kind::Text | Kind::List | Kind::Number) => rest.next().cloned(),
        };
        match value {
            None => problems.push(format!("--{name} needs a value")),
            Some(value) => match checked(flag, &value) {
                Ok(()) => typed.add(flag, value),
                Err(problem) => problems.push(format!("--{name}={value:?}: {problem}")),
            },
        }
    }
    typed.add_environment(&env);
    problems.extend(typed.refused());
    if problems.is_empty() {
        Ok(Parsed::Run(typed))
    } else {
        Err(problems)
    }
}

impl Typed {
    fn add(&mut self, flag: &'static Flag, value: String) {
        let values = self.values.entry(flag.name).or_default();
        if flag.kind != Kind::List {
            values.clear();
        }
        values.push(value);
    }

    fn add_environment(&mut self, env: &impl Fn(&str) -> Option<String>) {
        for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
            let variable = variable(flag.name);
            let given = self.values.contains_key(flag.name);
            let Some(value) = env(&variable).filter(|value| !given && !value.is_empty()) else {
                continue;
            };
            match checked(flag, &value) {
                Ok(()) => self.add(flag, value),
                Err(problem) => self
                    .ignored
                    .push(format!("{variable}={value:?} is ignored: {problem}")),
            }
        }
    }

    /// A sentence for every flag that was set to what is not built yet. Its default promises nothing and is fine.
    fn refused(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for flag in FLAGS {
            let Some(why) = flag.refused else { continue };
            let differs = |value: &String| match flag.kind {
                Kind::Bool => go_bool(value) != go_bool(flag.default),
                Kind::Text | Kind::List | Kind::Number => value != flag.default,
            };
            if self
                .values
                .get(flag.name)
                .is_some_and(|values| values.iter().any(differs))
            {
                problems.push(format!("--{} is refused: {why}", flag.name));
            }
        }
        problems
    }

    /// The last value of a flag, or its default.
    pub fn text(&self, name: &str) -> String {
        let default = || find(name).map_or("", |flag| flag.default).to_owned();
        self.values
            .get(name)
            .and_then(|values| values.last().cloned())
            .unwrap_or_else(default)
    }

    /// A text flag that may be absent.
    pub fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|value| !value.is_empty())
    }

    /// Every value of a list flag, in order.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }

    /// A true-or-false flag.
    pub fn bool(&self, name: &str) -> bool {
        go_bool(&self.text(name)).unwrap_or(false)
    }

    /// A number flag; its kind was checked when it was read.
    pub fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }
}

fn checked(flag: &Flag, value: &str) -> Result<(), &'static str> {
    match flag.kind {
        Kind::Text | Kind::List => Ok(()),
        Kind::Number => value
            .parse::<i64>()
            .map(drop)
            .map_err(|_| "expected a whole number"),
        Kind::Bool => go_bool(value).map(drop).ok_or("expected true or false"),
    }
}

/// The texts that Go's `strconv.ParseBool` takes.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Typed, Vec<String>> {
        let args: Vec<String> = args.iter().map(|&a| a.into()).collect();
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        match parse(&args, |name| env.get(name).cloned())? {
            Parsed::Run(typed) => Ok(typed),
            Parsed::Help => Err(vec!["help".into()]),
        }
    }

    #[test]
    fn all_forms_of_go_are_read() {
        let typed = run(
            &[
                "-etcd-prefix",
                "/a",
                "--iface=eth0",
                "-iface",
                "eth1",
                "--ip-masq",
                "-v=4",
            ],
            &[],
        )
        .unwrap();
        assert_eq!(typed.text("etcd-prefix"), "/a");
        assert_eq!(typed.list("iface"), ["eth0", "eth1"]);
        assert!(typed.bool("ip-masq"));
        assert_eq!(typed.number("v"), 4);
        assert!(
            !run(&["--iptables-forward-rules=false"], &[])
                .unwrap()
                .bool("iptables-forward-rules")
        );
        assert!(typed.bool("iptables-forward-rules"));
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let env = [
            ("FLANNELD_ETCD_PREFIX", "/env"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_SUBNET_FILE", ""),
        ];
        let typed = run(&["--etcd-prefix=/cli"], &env).unwrap();
        assert_eq!(typed.text("etcd-prefix"), "/cli");
        assert!(typed.bool("ip-masq"));
        assert_eq!(typed.text("subnet-file"), "/run/flannel/subnet.env");
    }

    #[test]
    fn a_bad_variable_is_ignored_and_said() {
        let typed = run(&[], &[("FLANNELD_HEALTHZ_PORT", "many")]).unwrap();
        assert_eq!(typed.number("healthz-port"), 0);
        assert!(
            typed.ignored[0].contains("FLANNELD_HEALTHZ_PORT=\"many\""),
            "{:?}",
            typed.ignored
        );
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problems = run(
            &[
                "--nonsense",
                "--ip-masq=maybe",
                "stray",
                "--healthz-port=x",
                "--etcd-prefix",
            ],
            &[],
        )
        .unwrap_err();
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn what_is_not_built_is_refused_from_anywhere_but_its_default_is_fine() {
        for args in [&["--kube-subnet-mgr"][..], &["--vmodule", "x=4"]] {
            let problems = run(args, &[]).unwrap_err();
            assert!(problems[0].contains("is refused"), "{problems:?}");
        }
        assert!(run(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "1")]).is_err());
        assert!(
            run(
                &["--kube-subnet-mgr=false", "--set-node-network-unavailable=T"],
                &[]
            )
            .is_ok()
        );
    }
}
