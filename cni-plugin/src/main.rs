//! `flannel`, the CNI plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    flannel_cni::run::main()
}
