//! The table that every suite prints: one line a measurement, ours beside the rival's.

use crate::stats::{Series, milliseconds, times};

/// Prints the heading of a table of durations.
pub fn heading(title: &str) {
    println!("\n-- {title}");
    println!(
        "{:<34} {:>5}  {:>8} {:>8}  {:>8} {:>8}  {:>7}  goal",
        "ms", "n", "ours p50", "p99", "rival", "p99", "×"
    );
}

/// A line of a table of durations. `goal` is how many times faster we want to be.
pub fn compare(what: &str, ours: &Series, rival: &Series, goal: Option<f64>) {
    let ratio = times(ours.median(), rival.median());
    println!(
        "{what:<34} {:>5}  {:>8} {:>8}  {:>8} {:>8}  {:>7}  {}",
        ours.count().max(rival.count()),
        milliseconds(ours.median()),
        milliseconds(ours.percentile(99)),
        milliseconds(rival.median()),
        milliseconds(rival.percentile(99)),
        ratio.map_or("–".into(), |ratio| format!("{ratio:.1}")),
        judged(ratio, goal),
    );
}

/// A line of plain numbers, such as rates or counts, with how many times the rival's ours is.
pub fn numbers(what: &str, ours: f64, rival: f64, goal: Option<f64>) {
    let ratio = (rival > 0.0).then(|| ours / rival);
    println!(
        "{what:<34} {:>5}  {ours:>8.0} {:>8}  {rival:>8.0} {:>8}  {:>7}  {}",
        "",
        "",
        "",
        ratio.map_or("–".into(), |ratio| format!("{ratio:.1}")),
        judged(ratio, goal),
    );
}

/// A line of a ratio that was computed elsewhere.
pub fn ratio(what: &str, ratio: f64, goal: Option<f64>) {
    println!("{what:<34} {ratio:>7.2}  {}", judged(Some(ratio), goal));
}

/// Prints the heading of a table of durations of ours alone.
pub fn heading_ours(title: &str) {
    println!("\n-- {title}");
    println!("{:<38} {:>5}  {:>8} {:>8}  goal", "ms", "n", "p50", "p99");
}

/// A line of durations of ours alone; `at_most` is the goal for the median.
pub fn ours(what: &str, series: &Series, at_most: Option<std::time::Duration>) {
    let goal = at_most.map(|goal| {
        let met = series.median().is_some_and(|median| median <= goal);
        format!(
            "≤ {} {}",
            milliseconds(Some(goal)),
            if met { "met" } else { "MISSED" }
        )
    });
    println!(
        "{what:<38} {:>5}  {:>8} {:>8}  {}",
        series.count(),
        milliseconds(series.median()),
        milliseconds(series.percentile(99)),
        goal.unwrap_or_default(),
    );
}

/// A line of one amount of ours; `at_most` is the goal.
pub fn amount(what: &str, value: f64, at_most: Option<f64>) {
    let goal = at_most.map(|goal| format!("≤ {goal} {}", if value <= goal { "met" } else { "MISSED" }));
    println!(
        "{what:<38} {:>5}  {value:>8.0} {:>8}  {}",
        "",
        "",
        goal.unwrap_or_default()
    );
}

/// A line of a figure of ours alone, which should be at most `goal`.
pub fn most(what: &str, ours: f64, unit: &str, goal: Option<f64>) {
    let judged = match goal {
        None => String::new(),
        Some(goal) if ours <= goal => format!("≤ {goal} {unit} met"),
        Some(goal) => format!("≤ {goal} {unit} MISSED"),
    };
    println!("{what}: {ours:.2} {unit}  {judged}");
}

/// A line for what could not be measured.
pub fn missing(what: &str, why: &str) {
    println!("{what:<34} not measured: {why}");
}

fn judged(ratio: Option<f64>, goal: Option<f64>) -> String {
    match (ratio, goal) {
        (_, None) => String::new(),
        (Some(ratio), Some(goal)) if ratio >= goal => format!("≥ {goal} met"),
        (_, Some(goal)) => format!("≥ {goal} MISSED"),
    }
}
