//! `flannel`, the CNI plugin.

use std::process::ExitCode;

/// musl's own allocator gives memory back to the kernel and asks for it anew a hundred times in an ADD, a seventh of its time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    flannel_cni::run::main()
}
