//! Questions of places in the city, and what is expected of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::{Place, Pod, eventually, limit, pod};

/// Enough questions for two servers to have answered, but for one case in a thousand million.
pub const MANY: usize = 32;
/// How long one waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Who answered, and whom it saw, as often as asked. Every answer must come.
pub fn answers(place: &Place, protocol: &str, address: &str, count: usize) -> Result<Vec<(String, String)>> {
    let answers = pod::ask(place, protocol, address, count)?;
    let read = |answer: Result<String, String>| {
        let answer = answer.map_err(anyhow::Error::msg)?;
        let mut words = answer.split(' ').map(str::to_owned);
        Ok((words.next().unwrap_or_default(), words.next().unwrap_or_default()))
    };
    let answers: Result<Vec<_>> = answers.into_iter().map(read).collect();
    let answers = answers.with_context(|| format!("{protocol} {address} asked from {}", place.name()))?;
    ensure!(
        answers.len() == count,
        "{} answers to {count} questions",
        answers.len()
    );
    Ok(answers)
}

/// How often each server answered.
pub fn shares(place: &Place, protocol: &str, address: &str, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for (server, _) in answers(place, protocol, address, count)? {
        *shares.entry(server).or_default() += 1;
    }
    Ok(shares)
}

pub fn await_answer(place: &Place, protocol: &str, address: &str) -> Result<()> {
    let what = format!("an answer of {protocol} {address} in {}", place.name());
    eventually(limit(20), &what, || {
        answers(place, protocol, address, 1).map(drop)
    })
}

/// Exactly these pods answer.
pub fn check_reaches(place: &Place, protocol: &str, address: &str, expected: &[&Pod]) -> Result<()> {
    let seen: BTreeSet<String> = shares(place, protocol, address, MANY)?.into_keys().collect();
    let expected: BTreeSet<String> = expected.iter().map(|p| p.name().to_owned()).collect();
    ensure!(
        seen == expected,
        "{protocol} {address} asked from {}: {seen:?} answered, expected {expected:?}",
        place.name()
    );
    Ok(())
}

/// Only `pod` answers, and it sees the client as `source`.
pub fn check_sees(place: &Place, protocol: &str, address: &str, pod: &Pod, source: &str) -> Result<()> {
    for (server, seen) in answers(place, protocol, address, 6)? {
        ensure!(
            server == pod.name() && seen == source,
            "{protocol} {address} asked from {}: {server} answered and saw {seen}, expected {} and {source}",
            place.name(),
            pod.name()
        );
    }
    Ok(())
}

/// It fails at once, and in its error stands `how`.
pub fn check_fails(place: &Place, protocol: &str, address: &str, how: &str) -> Result<()> {
    check_failure(place, protocol, address, how, limit(2))
}

/// Nobody answers.
pub fn check_silent(place: &Place, protocol: &str, address: &str) -> Result<()> {
    check_failure(place, protocol, address, "timed out", SILENCE)
}

fn check_failure(place: &Place, protocol: &str, address: &str, how: &str, patience: Duration) -> Result<()> {
    let answer = pod::ask_within(place, protocol, address, 1, patience)?;
    let fits = matches!(answer.as_slice(), [Err(error)] if error.contains(how));
    ensure!(
        fits,
        "{protocol} {address} asked from {}: {answer:?}, expected {how:?}",
        place.name()
    );
    Ok(())
}
