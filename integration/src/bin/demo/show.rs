//! How the demo speaks.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

static STEP: AtomicU32 = AtomicU32::new(0);

/// Numbers the steps on from `number`.
pub fn continue_after(number: u32) {
    STEP.store(number, Ordering::Relaxed);
}

/// How many steps there were.
pub fn steps() -> u32 {
    STEP.load(Ordering::Relaxed)
}

/// A headline.
pub fn title(text: &str) {
    println!("\n=== {text}");
}

/// One line of explanation.
pub fn say(text: &str) {
    println!("    {text}");
    std::io::stdout().flush().ok();
}

/// Output of a program, set off from our own words.
pub fn output(text: &str) {
    for line in text.trim_end().lines() {
        println!("      | {}", line.trim_end());
    }
}

/// A command as a reader would type it, and what it says.
pub fn command(words: &str, said: &str) {
    println!("    $ {words}");
    output(said);
}

/// Runs one step: says what it does, does it, and says how long it took. A failure carries the step's name.
pub fn step<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let number = STEP.fetch_add(1, Ordering::Relaxed) + 1;
    println!("\n[{number}] {what}");
    std::io::stdout().flush().ok();
    let start = Instant::now();
    let result = run().with_context(|| format!("step {number} ({what})"))?;
    println!("    done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}
