//! What etcd was asked, as lines of the table.

use flannel_lab::Asked;

use super::row;

/// Prints messages shared among so many, beside what flannel needs by `flannel`.
pub fn print(asked: &Asked, what: &str, among: f64, flannel: f64) {
    let share = |count: u64| count as f64 / among;
    let ours = share(asked.all_messages());
    row(what, &format!("{ours:.1}"), &format!("{flannel:.1}"), "derived");
    for method in asked.methods() {
        let calls = match asked.calls(method) == asked.messages(method) {
            true => String::new(),
            false => format!(" on {:.2} streams", share(asked.calls(method))),
        };
        row(
            &format!("    {method}{calls}"),
            &format!("{:.2}", share(asked.messages(method))),
            "",
            "",
        );
    }
}
