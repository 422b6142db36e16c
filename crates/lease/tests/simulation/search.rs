//! Every moment that can be reached, each once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::model::{Action, Bounds, State};

/// Looks at every history within the bounds; answers how many different moments they have.
///
/// # Errors
/// A history that breaks an invariant, one action a line.
pub fn search(bounds: Bounds, fences: bool) -> Result<usize, String> {
    let first = State::first(bounds, fences);
    let mut from: HashMap<u128, Option<(u128, Action)>> = HashMap::new();
    from.insert(first.fingerprint(), None);
    let mut open = vec![first];
    while let Some(state) = open.pop() {
        let here = state.fingerprint();

        for action in state.actions() {
            let next = state.after(action).and_then(checked);
            let next =
                next.map_err(|problem| format!("{problem}, after\n{}", history(&from, here, action)))?;
            for next in next {
                let there = next.fingerprint();
                if let Entry::Vacant(entry) = from.entry(there) {
                    entry.insert(Some((here, action)));
                    open.push(next);
                }
            }
        }
    }
    Ok(from.len())
}

/// The way to a moment and the action there.
fn history(from: &HashMap<u128, Option<(u128, Action)>>, mut at: u128, last: Action) -> String {
    let mut actions = vec![last];
    while let Some(Some((before, action))) = from.get(&at) {
        actions.push(*action);
        at = *before;
    }
    let lines: Vec<String> = actions
        .iter()
        .rev()
        .map(|action| format!("  {action:?}"))
        .collect();
    lines.join("\n")
}

fn checked(states: Vec<State>) -> Result<Vec<State>, String> {
    states.iter().try_for_each(State::check)?;
    Ok(states)
}
