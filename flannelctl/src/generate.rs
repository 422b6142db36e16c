//! Completion scripts and man pages, made from the command line itself.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Arguments;
use crate::failure::Failure;
use crate::output::Output;

/// The completion script of a shell.
pub fn completions(shell: Shell, output: &mut Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "flannelctl", &mut script);
    output.push(&String::from_utf8_lossy(&script));
    Ok(())
}

/// The man page, or those of all commands into a directory.
pub fn man(dir: Option<&Path>, output: &mut Output) -> Result<(), Failure> {
    let command = Arguments::command();
    match dir {
        Some(dir) => clap_mangen::generate_to(command, dir)
            .with_context(|| format!("cannot write man pages into {}", dir.display()))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output.push(&String::from_utf8_lossy(&page));
        }
    }
    Ok(())
}
