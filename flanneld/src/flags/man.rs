//! docs/man/flanneld.8 is rendered from the table of flags; this test holds the two together.
//! `UPDATE_MAN=1 cargo test -p flanneld man` writes the page anew.

use std::path::Path;

use super::table::{FLAGS, Kind, variable};

const HEAD: &str = r#".\" Rendered from the table of flags: UPDATE_MAN=1 cargo test -p flanneld man
.TH FLANNELD 8 "" "flannel" "System administration"
.SH NAME
flanneld \- pod network of a node: subnet lease, VXLAN and Services
.SH SYNOPSIS
.B flanneld
[\fIFLAGS\fR]
.br
.B flanneld cleanup
[\fB\-\-dry\-run\fR] [\fB\-\-all\fR] [\fB\-\-cni\fR] [\fB\-\-bridge\fR \fINAME\fR] [\fB\-\-state\fR] [\fB\-\-keep\-sysctls\fR]
[\fB\-\-subnet\-file\fR \fIFILE\fR] [\fB\-\-state\-dir\fR \fIDIR\fR]
.SH DESCRIPTION
flanneld leases a pod subnet for its node from etcd, learns the subnets of all other nodes and carries pod traffic between them over
VXLAN. It programs Services into the kernel's IPVS. A start takes over what stands in the kernel and applies the difference; stopping
leaves the data path as it is.
.SH FLAGS
Each flag is read as \-flag or \-\-flag, its value behind = or as the next argument; a true-or-false flag is turned off only by =false.
A flag that is not given is read from the environment variable that stands beside it.
"#;

const TAIL: &str = r#".SH CLEAN\-UP
\fBflanneld cleanup\fR takes away what flanneld made on this host and nothing else: its devices, routes with protocol 70, its nftables
tables, the virtual servers of Services and the files beside subnet.env; kernel settings that were changed get their former values
back. The daemon must not be running. \-\-cni removes the containers' bridge as well, unless a container is attached, and what the CNI
plugin keeps below /var/lib/cni: saved configurations, and folders of addresses that are all of our network; \-\-state removes
what outlives a reboot, a WireGuard key that WIREGUARD_KEY_FILE names among it; \-\-all is both; \-\-dry\-run only shows what would go.
.SH TAKE\-OVER
What flannel's iptables mode left (chains FLANNEL\-POSTRTG and FLANNEL\-FWD, and the rules that jump there) is said and removed at the
start, when the daemon's own tables stand; nothing else of iptables is touched. FLANNEL\-FWD stays where other rules of its table would
drop packets of pods without it; flannelctl\-doctor(1) says which.
.SH FILES
.TP
.I /run/flannel/sysctls
What kernel settings were before flanneld or the CNI plugin changed them, for the clean\-up.
.TP
.I /run/flannel/subnet.env
The node's subnet and MTU, for the CNI plugin and container engines.
.TP
.I /run/flannel/cni-released.sock
Here the CNI plugin tells the daemon that it cut containers off, whose devices the daemon then deletes.
It lies beside subnet.env.
.SH EXIT STATUS
.TP
.B 0
Ended by SIGTERM or SIGINT, or only information was asked for.
.TP
.B 1
The daemon cannot do its work; the last line of its log says why.
.TP
.B 2
The command line cannot be used.
.SH SIGNALS
SIGTERM and SIGINT end the daemon; routes, devices and rules stay.
SIGHUP reads the network config, the certificates and the password anew and compares the kernel with what should be there.
.SH SEE ALSO
.BR flannelctl (1)
"#;

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-")
}

fn rendered() -> String {
    let mut page = HEAD.to_owned();
    for flag in FLAGS {
        let value = match flag.kind {
            Kind::Text | Kind::List => "=\\fITEXT\\fR",
            Kind::Number => "=\\fINUMBER\\fR",
            Kind::Bool => "[=\\fIfalse\\fR]",
        };
        let default = if flag.default.is_empty() {
            String::new()
        } else {
            format!(" Default: {}.", flag.default)
        };
        let refused = flag
            .refused
            .map_or(String::new(), |why| format!(" Refused for now: {why}."));
        page.push_str(&format!(
            ".TP\n.B \\-\\-{}\\fR{value}  \\fR({})\n",
            escaped(flag.name),
            escaped(&variable(flag.name))
        ));
        let mut help = flag.help.to_owned();
        if let Some(first) = help.get_mut(0..1) {
            first.make_ascii_uppercase();
        }
        page.push_str(&format!(
            "{}.{}{}\n",
            escaped(&help),
            escaped(&default),
            escaped(&refused)
        ));
    }
    page.push_str(TAIL);
    page
}

#[test]
fn the_man_page_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man/flanneld.8");
    if std::env::var_os("UPDATE_MAN").is_some() {
        std::fs::write(&path, rendered()).unwrap();
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stands == rendered(),
        "docs/man/flanneld.8 is not that of the table of flags: UPDATE_MAN=1 cargo test -p flanneld man"
    );
}
