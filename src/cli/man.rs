//! `holdfast man`: the manual pages, made of the same words as the help.

use std::path::PathBuf;

use clap::CommandFactory;

use super::Cli;
use super::exit::Done;
use super::out::Out;

/// `man`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write a page for each command into this folder, instead of the main page to standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints or writes them.
pub fn run(args: &Args, out: &Out) -> Done {
    // Pages are built without looking at this terminal's environment.
    let command = Cli::command();
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(command, dir)?;
        return Ok(0);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    out.raw(&String::from_utf8_lossy(&page))?;
    Ok(0)
}
