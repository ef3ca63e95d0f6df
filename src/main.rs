//! argv -> configuration -> supervisor -> exit code.

use std::process::ExitCode;

use clap::Parser;

/// Threads for what would hold up this one: disk, names, large bodies to sum or to read. Body files use four at most, so
/// that a hanging disk leaves the others. Each further one costs a stack and a heap of its own.
const BLOCKING_THREADS_MAX: usize = 16;

fn main() -> ExitCode {
    let cli = holdfast::cli::Cli::parse();
    // Requests spend their time waiting for others. With two workers each hop between tasks may wake the other core: one caller's
    // median was 0.67 times as long with one (docs/decisions.md). Many connections get a thread beside this one.
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(BLOCKING_THREADS_MAX).enable_all().build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(holdfast::cli::run(cli));
            // A stuck blocking task must not keep the process from ending.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("holdfast: the runtime cannot start: {error}");
            ExitCode::from(70)
        }
    }
}
