//! On what was measured: without it a figure says nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Prints processor, memory, kernel and load.
pub fn show() -> Result<()> {
    println!("processor  {} × {}", processors()?, processor()?);
    println!("memory     {} MiB", memory()?);
    println!("kernel     {}", read("/proc/sys/kernel/osrelease")?.trim());
    println!("system     {}", system());
    println!("command    {}", std::env::args().collect::<Vec<_>>().join(" "));
    show_load()
}

/// Prints the load averages: what else ran here falls on the figures.
pub fn show_load() -> Result<()> {
    let load = read("/proc/loadavg")?;
    let figures: Vec<&str> = load.split(' ').take(3).collect();
    println!("load       {} (1, 5, 15 min)", figures.join(" "));
    Ok(())
}

/// Prints what kind of file a program of ours is.
pub fn show_program(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    println!(
        "ours       {}: {} KiB, {}",
        path.display(),
        bytes.len() / 1024,
        if is_static(&bytes) {
            "static"
        } else {
            "linked dynamically"
        }
    );
    Ok(())
}

/// Prints a rival's path and the version of its package.
pub fn show_rival(path: &str) -> Result<()> {
    let package = words("dpkg-query", &["--search", path])
        .map(|text| text.split(':').next().unwrap_or_default().to_owned());
    let version = package.and_then(|package| words("dpkg-query", &["--show", &package]));
    println!(
        "rival      {path}: {}",
        version.unwrap_or_else(|| "of no package".into())
    );
    Ok(())
}

/// Whether an ELF file names no interpreter (program header type 3, PT_INTERP; elf(5), 64 bits).
fn is_static(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, width: usize| -> Option<u64> {
        let part = bytes.get(at..at + width)?;
        Some(
            part.iter()
                .rev()
                .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
        )
    };
    let header = |index: u64| -> Option<u64> {
        let (table, size) = (number(32, 8)?, number(54, 2)?);
        number(usize::try_from(table + index * size).ok()?, 4)
    };
    let count = number(56, 2).unwrap_or_default();
    (0..count).all(|index| header(index) != Some(u64::from(PT_INTERP)))
}

fn processors() -> Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

fn processor() -> Result<String> {
    let text = read("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    Ok(model
        .map_or("unnamed", |rest| rest.trim_start_matches(['\t', ' ', ':']))
        .to_owned())
}

fn memory() -> Result<u64> {
    let text = read("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = total
        .and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .context("/proc/meminfo has no MemTotal")?;
    Ok(kib / 1024)
}

fn system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unnamed").trim_matches('"').to_owned()
}

/// What a program prints, on one line; nothing when it fails.
fn words(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}
