//! A fresh network namespace for each test, and the kernel's own view of it through `ip -j` and `bridge -j`.

use std::process::Command;

use flannel_netlink::RouteConn;
use serde_json::Value;

/// Runs `work` on a fresh thread in a network namespace of its own, which vanishes with the thread.
pub fn in_fresh_netns(work: impl FnOnce(&mut RouteConn) + Send) {
    std::thread::scope(|scope| {
        let inside = || {
            enter_fresh_netns();
            work(&mut RouteConn::open().unwrap());
        };
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Puts the calling thread into a network namespace of its own.
pub fn enter_fresh_netns() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make network namespaces and need root; run them as root"
    );
    // SAFETY: only the network namespace is unshared; descriptors stay common to all threads.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

/// Runs a command in the namespace of the calling thread; it has to succeed.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON list that a command prints (nothing is an empty list), in the namespace of the calling thread.
pub fn json(command: &str) -> Vec<Value> {
    let text = run(command);
    if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

/// The index of a link.
pub fn ifindex(name: &str) -> u32 {
    let index = json(&format!("ip -j link show {name}"))[0]["ifindex"]
        .as_u64()
        .unwrap();
    u32::try_from(index).unwrap()
}

/// A veth pair `u0`/`u1` as a stand-in for hardware, with 192.0.2.1/24 on `u0`; gives the index of `u0`.
pub fn underlay() -> u32 {
    run("ip link set lo up");
    run("ip link add u0 type veth peer name u1");
    run("ip addr add 192.0.2.1/24 dev u0");
    run("ip link set u1 up");
    run("ip link set u0 up");
    ifindex("u0")
}
