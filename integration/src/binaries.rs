//! Where the programs under test are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The environment variable that names the folder of the programs under test.
pub const FOLDER_VARIABLE: &str = "FLANNEL_BIN_DIR";

/// The folder of the programs under test: [`FOLDER_VARIABLE`], else the build profile's folder that this program lies in
/// (a test lies one deeper, in `deps`).
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        return Ok(PathBuf::from(folder));
    }
    let own = std::env::current_exe().context("cannot find the own program")?;
    let folder = own.parent().context("the own program has no folder")?;
    let inner = folder.file_name().is_some_and(|n| n == "deps" || n == "examples");
    Ok(if inner {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    }
    .to_owned())
}

/// Checks that `folder` holds the programs named.
pub fn check(folder: &Path, names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|n| !folder.join(n).is_file())
        .collect();
    if !missing.is_empty() {
        bail!(
            "{} lacks {}; build with `cargo build --workspace`, or set {FOLDER_VARIABLE}",
            folder.display(),
            missing.join(", ")
        );
    }
    Ok(())
}
