//! From single timings to the few numbers of a table.
//!
//! Owns percentiles and the way ratios are written; measures nothing.

use std::time::Duration;

/// What one cell of one round came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    /// How often it was done, before the clock started too.
    pub(crate) done: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) per_second: f64,
    /// What the process in between took of the processors for each timing (a request, or an event of a stream), in microseconds; 0 where there is none.
    pub(crate) cpu_us: f64,
}

impl Cell {
    pub(crate) fn of(mut timings: Vec<Duration>, took: Duration) -> Cell {
        assert!(!timings.is_empty(), "nothing was answered");
        timings.sort_unstable();
        let at = |share: f64| timings[((timings.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e6;
        let per_second = timings.len() as f64 / took.as_secs_f64();
        Cell { done: timings.len() as u64, p50_us: at(0.5), p99_us: at(0.99), per_second, cpu_us: 0.0 }
    }
}

/// One number of each round.
pub(crate) fn each(cells: &[Cell], number: fn(&Cell) -> f64) -> Vec<f64> {
    cells.iter().map(number).collect()
}

pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// `min / median / max`.
pub(crate) fn spread(numbers: &[f64]) -> String {
    let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let most = numbers.iter().copied().fold(0.0, f64::max);
    format!("{least:.2} / {:.2} / {most:.2}", median(numbers))
}

/// How many times `base` each round's number is, round by round.
pub(crate) fn ratio(cells: &[Cell], base: &[Cell], number: fn(&Cell) -> f64) -> String {
    let ratios: Vec<f64> = cells.iter().zip(base).map(|(cell, base)| number(cell) / number(base)).collect();
    spread(&ratios)
}

pub(crate) const HEAD: &str = "\
| callers | path | p50 µs | p99 µs | per second | CPU µs | p50 ratio | p99 ratio | per second ratio |
| ---: | --- | ---: | ---: | ---: | ---: | --- | --- | --- |";

/// One line of a table; the ratios are to `base`, which stands above with none.
pub(crate) fn row(callers: usize, path: &str, cells: &[Cell], base: Option<&[Cell]>) -> String {
    let numbers: [fn(&Cell) -> f64; 3] = [|c| c.p50_us, |c| c.p99_us, |c| c.per_second];
    let [p50, p99, rate] = numbers.map(|number| median(&each(cells, number)));
    let cpu = match median(&each(cells, |cell| cell.cpu_us)) {
        0.0 => "-".to_owned(),
        cpu => format!("{cpu:.0}"),
    };
    let [a, b, c] = numbers.map(|number| base.map_or("1".to_owned(), |base| ratio(cells, base, number)));
    format!("| {callers} | {path} | {p50:.0} | {p99:.0} | {rate:.0} | {cpu} | {a} | {b} | {c} |")
}
