//! The command line of `flanneld cleanup`.

use std::path::PathBuf;

/// Shown by `--help`.
pub const HELP: &str = "\
flanneld cleanup: takes away what flanneld made on this host, and nothing else

Usage: flanneld cleanup [FLAGS]

Removed are: the devices flannel.<VNI>, flannel-v6.<VNI>, flannel.ipip, flannel-wg, flannel-wg-v6 and flannel0, routes with
protocol 70, our nftables tables, virtual servers of Services, and the files beside subnet.env. Kernel settings that were changed
get their former values back. flanneld must not be running. The lease stays in etcd until it expires: see
flannelctl subnets release.

  --dry-run
        only show what would be removed
  --services
        remove only what was programmed for Services; the overlay stays as it is
  --all
        everything that is ours: --cni and --state
  --cni
        remove the containers' bridge, the CNI plugin's nftables tables and what it keeps below /var/lib/cni (saved configurations,
        addresses of our network) as well; refused while a container is attached
  --bridge NAME
        name of that bridge (default cni0)
  --state
        remove what outlives a reboot as well: this node's identity, its WireGuard key (also one that $WIREGUARD_KEY_FILE names) and
        the last verified peers
  --keep-sysctls
        leave kernel settings as they are, for other programs that need them by now
  --subnet-file FILE
        the file that flanneld wrote (default /run/flannel/subnet.env, or $FLANNELD_SUBNET_FILE)
  --state-dir DIR
        flanneld's folder for --state (default /var/lib/flannel, or $FLANNELD_STATE_DIR)
";

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Only show it.
    pub dry_run: bool,
    /// Only what was programmed for Services.
    pub services: bool,
    /// The bridge, where what the CNI plugin made goes as well.
    pub bridge: Option<String>,
    /// What outlives a reboot goes as well.
    pub state: bool,
    /// A file of the WireGuard key that the environment names, as it does for the daemon.
    pub wireguard_key: Option<PathBuf>,
    /// Kernel settings stay.
    pub keep_sysctls: bool,
    /// Where flanneld wrote its subnet.
    pub subnet_file: PathBuf,
    /// Where it keeps what outlives a reboot.
    pub state_dir: PathBuf,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// To clean up.
    Run(Options),
    /// For help.
    Help,
}

/// Reads the arguments behind `cleanup`; `env` gives variables of flanneld's environment.
///
/// # Errors
/// One sentence about what cannot be used.
pub fn parse(args: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Asked, String> {
    let variable = |name: &str, default: &str| {
        let set = env(name).filter(|value| !value.is_empty());
        PathBuf::from(set.unwrap_or_else(|| default.to_owned()))
    };
    let mut options = Options {
        dry_run: false,
        services: false,
        bridge: None,
        state: false,
        wireguard_key: env("WIREGUARD_KEY_FILE")
            .filter(|name| !name.is_empty())
            .map(PathBuf::from),
        keep_sysctls: false,
        subnet_file: variable("FLANNELD_SUBNET_FILE", "/run/flannel/subnet.env"),
        state_dir: variable("FLANNELD_STATE_DIR", "/var/lib/flannel"),
    };
    let (mut cni, mut bridge) = (false, "cni0".to_owned());
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let body = arg.trim_start_matches('-');
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if !arg.starts_with('-') {
            return Err(format!(
                "unexpected argument {arg:?} (see flanneld cleanup --help)"
            ));
        }
        let mut value = || {
            let value = inline.clone().or_else(|| rest.next().cloned());
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("--{name} needs a value"))
        };
        match name {
            "h" | "help" => return Ok(Asked::Help),
            "dry-run" => options.dry_run = true,
            "services" => options.services = true,
            "all" => (cni, options.state) = (true, true),
            "cni" => cni = true,
            "state" => options.state = true,
            "keep-sysctls" => options.keep_sysctls = true,
            "bridge" => bridge = value()?,
            "subnet-file" => options.subnet_file = value()?.into(),
            "state-dir" => options.state_dir = value()?.into(),
            _ => return Err(format!("unknown flag {arg} (see flanneld cleanup --help)")),
        }
        if inline.is_some()
            && matches!(
                name,
                "dry-run" | "services" | "all" | "cni" | "state" | "keep-sysctls"
            )
        {
            return Err(format!("--{name} takes no value"));
        }
    }
    if options.services && (cni || options.state) {
        return Err("--services is about Services alone: leave --all, --cni and --state out".to_owned());
    }
    options.bridge = cni.then_some(bridge);
    Ok(Asked::Run(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Asked, String> {
        let args: Vec<String> = args.iter().map(|&arg| arg.into()).collect();
        parse(&args, |name| {
            (name == "FLANNELD_STATE_DIR").then(|| "/state".into())
        })
    }

    #[test]
    fn nothing_is_taken_that_was_not_asked_for() {
        let Ok(Asked::Run(options)) = read(&[]) else {
            panic!("no options");
        };
        assert!(!options.dry_run && !options.state && !options.keep_sysctls);
        assert_eq!(options.bridge, None);
        assert_eq!(options.state_dir, PathBuf::from("/state"));
        let Ok(Asked::Run(options)) = read(&["--all"]) else {
            panic!("no options");
        };
        assert!(options.state && options.bridge.as_deref() == Some("cni0"));
        let Ok(Asked::Run(options)) = read(&["--bridge=br7", "-cni", "--subnet-file", "/x"]) else {
            panic!("no options");
        };
        assert_eq!(
            (options.bridge.as_deref(), options.subnet_file),
            (Some("br7"), "/x".into())
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in [
            &["now"][..],
            &["--everything"],
            &["--services", "--all"],
            &["--services", "--cni"],
            &["--services", "--state"],
            &["--bridge"],
            &["--dry-run=false"],
            &["--state-dir="],
        ] {
            assert!(read(args).is_err(), "{args:?}");
        }
        assert_eq!(read(&["-h"]), Ok(Asked::Help));
    }
}
