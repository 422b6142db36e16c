//! The environment of a call: which command, for which attachment.

use std::ffi::OsString;
use std::path::PathBuf;

use super::name::excerpt;
use super::{CniArgs, CniError, Code, ContainerId, IfName};

/// A container's interface: what ADD makes and DEL removes, within a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`
    pub container: ContainerId,
    /// `CNI_IFNAME`
    pub ifname: IfName,
}

/// A command with what its environment must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Attach the container.
    Add {
        /// Which interface of which container.
        attachment: Attachment,
        /// `CNI_NETNS`, verbatim: the result repeats it.
        netns: String,
        /// `CNI_ARGS`
        args: CniArgs,
    },
    /// Detach it.
    Del {
        /// Which interface of which container.
        attachment: Attachment,
        /// `CNI_NETNS`, which may be missing when the container is gone.
        netns: Option<String>,
    },
    /// Verify an attachment.
    Check {
        /// Which interface of which container.
        attachment: Attachment,
        /// `CNI_NETNS`
        netns: String,
        /// `CNI_ARGS`, as ADD got them.
        args: CniArgs,
    },
    /// Remove what no attachment needs.
    Gc,
    /// Would an ADD succeed?
    Status,
    /// Which versions are spoken?
    Version,
}

/// Reads the environment through `get`. `None` without a command: somebody ran the binary by hand.
///
/// # Errors
/// Code 4: an unknown command, a malformed value (first), or all missing variables at once.
pub fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Result<Option<Call>, CniError> {
    let Some(command) = text(&get, "CNI_COMMAND")? else {
        return Ok(None);
    };
    match command.as_str() {
        "ADD" => whole(&get).map(|(attachment, netns, args)| {
            Some(Call::Add {
                attachment,
                netns,
                args,
            })
        }),
        "DEL" => del(&get).map(Some),
        "CHECK" => whole(&get).map(|(attachment, netns, args)| {
            Some(Call::Check {
                attachment,
                netns,
                args,
            })
        }),
        "GC" => Ok(Some(Call::Gc)),
        "STATUS" => Ok(Some(Call::Status)),
        "VERSION" => Ok(Some(Call::Version)),
        other => Err(CniError::new(
            Code::BadEnvironment,
            format!("unknown CNI_COMMAND {}", excerpt(other)),
        )
        .with("expected ADD, DEL, CHECK, GC, STATUS or VERSION")),
    }
}

/// The variables as they are, checked but possibly missing.
struct Found {
    container: Option<ContainerId>,
    netns: Option<String>,
    ifname: Option<IfName>,
}

fn find(get: &impl Fn(&str) -> Option<OsString>) -> Result<Found, CniError> {
    let container = text(get, "CNI_CONTAINERID")?.map(|id| ContainerId::parse(&id));
    let ifname = text(get, "CNI_IFNAME")?.map(|name| {
        IfName::parse(&name).map_err(|fault| {
            CniError::new(
                Code::BadEnvironment,
                format!("CNI_IFNAME {} {fault}", excerpt(&name)),
            )
        })
    });
    Ok(Found {
        container: container.transpose()?,
        netns: text(get, "CNI_NETNS")?,
        ifname: ifname.transpose()?,
    })
}

/// What ADD and CHECK need.
fn whole(get: &impl Fn(&str) -> Option<OsString>) -> Result<(Attachment, String, CniArgs), CniError> {
    let found = find(get)?;
    match (found.container, found.netns, found.ifname) {
        (Some(container), Some(netns), Some(ifname)) => {
            let args = CniArgs::parse(&text(get, "CNI_ARGS")?.unwrap_or_default())?;
            Ok((Attachment { container, ifname }, netns, args))
        }
        (container, netns, ifname) => Err(missing(&[
            ("CNI_CONTAINERID", container.is_none()),
            ("CNI_NETNS", netns.is_none()),
            ("CNI_IFNAME", ifname.is_none()),
        ])),
    }
}

fn del(get: &impl Fn(&str) -> Option<OsString>) -> Result<Call, CniError> {
    let found = find(get)?;
    match (found.container, found.ifname) {
        (Some(container), Some(ifname)) => Ok(Call::Del {
            attachment: Attachment { container, ifname },
            netns: found.netns,
        }),
        (container, ifname) => Err(missing(&[
            ("CNI_CONTAINERID", container.is_none()),
            ("CNI_IFNAME", ifname.is_none()),
        ])),
    }
}

fn missing(variables: &[(&str, bool)]) -> CniError {
    let names: Vec<&str> = variables
        .iter()
        .filter(|(_, gone)| *gone)
        .map(|(name, _)| *name)
        .collect();
    CniError::new(
        Code::BadEnvironment,
        format!("required environment variables missing: {}", names.join(", ")),
    )
}

/// A variable's text; unset and empty are the same, as runtimes send both.
fn text(get: &impl Fn(&str) -> Option<OsString>, name: &str) -> Result<Option<String>, CniError> {
    let Some(value) = get(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    value.into_string().map(Some).map_err(|raw| {
        let shown = PathBuf::from(raw);
        CniError::new(
            Code::BadEnvironment,
            format!("{name} is not UTF-8: {}", excerpt(&shown.to_string_lossy())),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &[(&str, &str)] = &[
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn call(command: &str, rest: &[(&str, &str)]) -> Result<Option<Call>, CniError> {
        let value = |name: &str| {
            let command = (name == "CNI_COMMAND").then_some(command);
            let rest = rest
                .iter()
                .rev()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| *value);
            command.or(rest).map(OsString::from)
        };
        from_environment(value)
    }

    fn with(pair: (&'static str, &'static str)) -> Vec<(&'static str, &'static str)> {
        FULL.iter().copied().chain([pair]).collect()
    }

    #[test]
    fn no_command_is_no_error() {
        assert_eq!(from_environment(|_| None), Ok(None));
        assert_eq!(call("", FULL), Ok(None));
    }

    #[test]
    fn every_missing_variable_is_named_at_once() {
        let error = call("ADD", &[]).unwrap_err();
        assert_eq!(error.code, Code::BadEnvironment);
        assert!(
            error.msg.ends_with("CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
            "{error}"
        );
        let error = call("DEL", &[("CNI_NETNS", "")]).unwrap_err();
        assert!(error.msg.ends_with(": CNI_CONTAINERID, CNI_IFNAME"), "{error}");
        assert!(
            call("CHECK", &FULL[..1])
                .unwrap_err()
                .msg
                .ends_with(": CNI_NETNS, CNI_IFNAME")
        );
    }

    #[test]
    fn one_variable_missing() {
        for (index, (name, _)) in FULL.iter().enumerate() {
            let mut rest = FULL.to_vec();
            rest.remove(index);
            let error = call("ADD", &rest).unwrap_err();
            assert!(error.msg.ends_with(&format!(": {name}")), "{error}");
        }
    }

    #[test]
    fn malformed_values_are_code_4() {
        for pair in [
            ("CNI_CONTAINERID", "../etc"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_IFNAME", "a234567890123456"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_ARGS", "nonsense"),
        ] {
            assert_eq!(
                call("ADD", &with(pair)).unwrap_err().code,
                Code::BadEnvironment,
                "{pair:?}"
            );
        }
        assert_eq!(call("FOO", FULL).unwrap_err().code, Code::BadEnvironment);
        assert_eq!(call("add", FULL).unwrap_err().code, Code::BadEnvironment);
    }

    #[test]
    fn del_does_without_netns_and_ignores_args() {
        let Ok(Some(Call::Del {
            netns: None,
            attachment,
        })) = call(
            "DEL",
            &[
                ("CNI_CONTAINERID", "c1"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_ARGS", "x"),
            ],
        )
        else {
            panic!("no DEL");
        };
        assert_eq!(attachment.container.as_str(), "c1");
    }

    #[test]
    fn version_status_and_gc_need_nothing_else() {
        for (command, expected) in [
            ("VERSION", Call::Version),
            ("STATUS", Call::Status),
            ("GC", Call::Gc),
        ] {
            assert_eq!(call(command, &[("CNI_IFNAME", "dummy")]), Ok(Some(expected)));
        }
    }
}
