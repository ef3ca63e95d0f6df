//! argv -> configuration -> supervisor -> exit code.

use std::process::ExitCode;

use clap::Parser;

/// Requests spend their time waiting for others; two workers keep a slow one from holding up the rest.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = holdfast::cli::Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
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
