//! Completion scripts and man pages, made from the command line itself.

use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Arguments, EXIT_CODES};
use crate::failure::Failure;
use crate::output::Output;

/// The completion script of a shell.
pub fn completions(shell: Shell, output: &mut Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "flannelctl", &mut script);
    output.push(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Every page tells the exit codes, not only the first.
fn with_exit_codes(command: Command) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    names
        .iter()
        .fold(command.after_help(EXIT_CODES), |command, name| {
            command.mut_subcommand(name, with_exit_codes)
        })
}

/// The man page, or those of all commands into a directory.
pub fn man(dir: Option<&Path>, output: &mut Output) -> Result<(), Failure> {
    let command = with_exit_codes(Arguments::command());
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
