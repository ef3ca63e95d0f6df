//! argv -> configuration -> supervisor -> exit code.

use std::process::ExitCode;

use clap::Parser;

/// Requests spend their time waiting for others; two workers keep a slow one from holding up the rest.
const WORKERS: usize = 2;

/// Threads for the disk and for names: body files use four at most, so that a hanging disk leaves the others. Each
/// further one costs a stack and a heap of its own.
const BLOCKING_THREADS_MAX: usize = 16;

fn main() -> ExitCode {
    let cli = holdfast::cli::Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build();
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
