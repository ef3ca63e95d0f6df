//! The command line: one file per subcommand, a thin client of the daemon's socket.
//!
//! Owns arguments, exit codes and what people read. Never opens the database, except for the two commands that look
//! into a stopped daemon's folder (`offline.rs`, through the supervisor), and decides nothing about a request.

pub mod ask;
pub mod cache;
pub mod client;
pub mod completions;
pub mod config;
pub mod demo;
pub mod diag;
pub mod exit;
pub mod health;
pub mod link;
pub mod man;
pub mod offline;
pub mod out;
pub mod queue;
pub mod reset;
pub mod run;
pub mod simulate;
pub mod spend;
pub mod status;
pub mod switch;
pub mod tap;
pub mod uplink;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand};

use client::Client;
use exit::{Done, Failure};
use out::Out;

/// Store-and-forward AI gateway: the cloud's answer, the local model's, or a ticket.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, arg_required_else_help = true, after_help = exit::HELP)]
pub struct Cli {
    /// What applies to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What applies to every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file; without it /etc/holdfast/holdfast.toml if it exists, else built-in defaults
    #[arg(short, long, global = true, value_name = "FILE", env = "HOLDFAST_CONFIG", value_parser = path())]
    pub config: Option<PathBuf>,
    /// The socket of the daemon to ask; without it the configuration's (run takes only http.socket)
    #[arg(long, global = true, value_name = "PATH", env = "HOLDFAST_SOCKET", value_parser = path())]
    pub socket: Option<PathBuf>,
    /// JSON on standard output, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more: what the daemon was asked and how it went; for run, -v logs at level debug and -vv at trace
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say only what failed
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Colour on a terminal; NO_COLOR in the environment always wins
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

impl Global {
    /// The configuration file that was named, if any.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref().filter(|path| !path.as_os_str().is_empty())
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Run,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Show the whole product in under a minute, on simulators
    Demo,
    /// Stand-ins for an uplink, an Ollama or a device
    #[command(subcommand)]
    Simulate(simulate::Command),
    /// Show uplinks, local model, backlog and host
    Status(status::Args),
    /// Show the status, redrawn each second
    Top,
    /// Show what was paid, by day, uplink, model and source
    Spend(spend::Args),
    /// Ask one question
    Ask(ask::Args),
    /// Look at and change stored requests
    #[command(subcommand)]
    Queue(queue::Command),
    /// Stop sending stored requests
    Pause,
    /// Send stored requests again
    Resume,
    /// Send the backlog now
    Drain,
    /// Look after the answers that are kept
    #[command(subcommand)]
    Cache(cache::Command),
    /// Follow events as they happen
    Tap(tap::Args),
    /// Test the way to an uplink, rung by rung
    #[command(subcommand)]
    Uplink(uplink::Command),
    /// List and test device links
    #[command(subcommand)]
    Link(link::Command),
    /// Make an archive for support, without keys, prompts and answers
    Diag(diag::Args),
    /// Empty the data folder of a stopped gateway, for handing the device on
    Reset(reset::Args),
    /// Answer a monitoring system
    Health(health::Args),
    /// Print or write the manual pages
    Man(man::Args),
    /// Print a completion script
    Completions(completions::Args),
}

/// Does what the command line says.
pub async fn run(cli: Cli) -> ExitCode {
    let out = Out::new(&cli.global);
    match dispatch(cli, &out).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.message.is_empty() {
                out.fail(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn dispatch(cli: Cli, out: &Out) -> Done {
    let global = &cli.global;
    match cli.command {
        Command::Run => run::run(global).await,
        Command::Demo => demo().await,
        Command::Simulate(command) => match simulate::run(command, global.socket.clone()).await {
            Ok(()) => Ok(0),
            Err(error) => Err(Failure::new(exit::FAILED, format!("{error:#}"))),
        },
        Command::Config(command) => config::run(&command, global, out),
        Command::Diag(args) => diag::run(&args, global, &client(global).unwrap_or_else(|_| at_default()), out).await,
        Command::Man(args) => man::run(&args, out),
        Command::Completions(args) => completions::run(&args, out),
        Command::Status(args) => status::run(args.watch, &client(global)?, out).await,
        Command::Spend(args) => spend::run(&args, &client(global)?, out).await,
        Command::Top => status::run(true, &client(global)?, out).await,
        Command::Ask(args) => ask::run(args, &client(global)?, out).await,
        Command::Queue(command) => queue::run(command, global, &client(global)?, out).await,
        Command::Pause => switch::run("pause", &client(global)?, out).await,
        Command::Resume => switch::run("resume", &client(global)?, out).await,
        Command::Drain => switch::run("drain", &client(global)?, out).await,
        Command::Cache(command) => cache::run(&command, &client(global)?, out).await,
        Command::Tap(args) => tap::run(&args, &client(global)?, out).await,
        Command::Uplink(command) => uplink::run(command, &client(global)?, out).await,
        Command::Link(command) => link::run(command, &client(global)?, out).await,
        Command::Reset(args) => reset::run(&args, global, out),
        Command::Health(args) => health::run(&args, client(global), out).await,
    }
}

async fn demo() -> Done {
    match demo::run().await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(exit::FAILED),
        Err(error) => Err(Failure::new(exit::FAILED, format!("{error:#}"))),
    }
}

/// Any path, the empty one too: unit files write `HOLDFAST_SOCKET=` and mean none.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The daemon that is meant. A file that was named and cannot be read must not mean another gateway.
fn client(global: &Global) -> Result<Client, Failure> {
    if let Some(named) = global.socket.clone().filter(|path| !path.as_os_str().is_empty()) {
        return Ok(Client::new(named).verbose(global.verbose > 0));
    }
    match crate::config::socket(global.config(), crate::config::environment()) {
        Ok(socket) => Ok(Client::new(socket).verbose(global.verbose > 0)),
        Err(faults) => {
            let message = format!("{faults}\nso the daemon's socket is not known; name it with --socket PATH");
            Err(Failure::new(exit::CONFIG, message))
        }
    }
}

/// For an archive of what is wrong, a configuration that cannot be read is no obstacle.
fn at_default() -> Client {
    // Only a file that was named can be refused.
    Client::new(crate::config::socket(None, crate::config::environment()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for words in [["holdfast", "--json", "status"], ["holdfast", "status", "--json"]] {
            assert!(Cli::try_parse_from(words).unwrap().global.json);
        }
        let error = Cli::try_parse_from(["holdfast", "stats"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(exit::USAGE));
    }
}
