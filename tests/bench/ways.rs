//! Several ways to the same answer, asked in turns: one table of them.
//!
//! Owns the order of the turns and the rows; knows nothing of what stands on a way.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};

use crate::Plan;
use crate::daemon::Memory;
use crate::load::{self, Job, Target};
use crate::stats::{self, Cell};

/// One way to the mock.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    pub(crate) is_right: fn(&Response<Incoming>) -> bool,
    /// What a request needs besides on this way.
    pub(crate) dressed: fn(Request<Full<Bytes>>) -> Request<Full<Bytes>>,
    /// The process in between.
    pub(crate) through: Option<u32>,
}

/// One table: a row for each way and number of callers; ratios are to the first way.
pub(crate) async fn compare(ways: &[Way], plan: &Plan, title: &str, callers: &[usize], asked: Job) {
    println!("\n### {title}\n\n{}", stats::HEAD);
    for &callers in callers {
        let mut cells = vec![Vec::<Cell>::new(); ways.len()];
        for _ in 0..plan.rounds {
            for (way, cells) in ways.iter().zip(&mut cells) {
                let job = Job { is_right: way.is_right, dressed: way.dressed, ..asked };
                cells.push(load::run(&way.target, job, callers, plan.cell, way.through).await);
            }
        }
        for (index, way) in ways.iter().enumerate() {
            println!("{}", stats::row(callers, way.name, &cells[index], (index > 0).then_some(&cells[0])));
        }
    }
}

/// Memory now and at its highest since the process began.
pub(crate) fn memory(after: &str, of: impl IntoIterator<Item = (&'static str, Memory)>) {
    println!("\nMemory {after}, MiB now and at its highest:");
    for (name, Memory { now_kib, peak_kib }) in of {
        println!("- {name}: {:.1}, {:.1}", now_kib as f64 / 1024.0, peak_kib as f64 / 1024.0);
    }
}
