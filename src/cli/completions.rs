//! `holdfast completions SHELL`: a script for the shell's own completion.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use super::exit::Done;
use super::out::Out;

/// `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose script to print
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, out: &Out) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "holdfast", &mut script);
    out.raw(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
