//! What is done now and then: a new day begun, the ledger flushed, escrow given back, news told.
//!
//! Called about once a second; touches the disk each minute at most, and at a day's turn. Nothing waits for it.

use std::io;
use std::time::{Duration, Instant};

use super::handle::{Money, News};
use super::ledger::Day;
use crate::clock;

/// How often the ledger is put on disk while something is spent. A crash loses what came since, as names: under a cap
/// the escrow has counted it.
const FLUSH_EVERY: Duration = Duration::from_mins(1);

/// When the ledger was flushed last.
#[derive(Debug)]
pub struct Ticker {
    money: Money,
    flushed: Instant,
}

impl Money {
    /// What calls [`Ticker::tick`].
    pub fn ticker(&self) -> Ticker {
        Ticker { money: self.clone(), flushed: clock::now() }
    }

    /// The last words of a process: everything on disk, and nothing taken that is not used.
    pub async fn close(&self) {
        let writing = self.inner().writing.lock().await;
        self.state().purse.close();
        self.write_days(true).await;
        let escrow = self.state().purse.escrow();
        self.write(escrow).await;
        drop(writing);
    }

    /// Days that are over, and today where that is due; whoever calls holds `writing`.
    async fn write_days(&self, today_too: bool) {
        let days: Vec<Day> = {
            let mut state = self.state();
            let today = (today_too && state.dirty).then(|| state.today.clone());
            state.dirty &= today.is_none();
            std::mem::take(&mut state.over).into_iter().chain(today).collect()
        };
        if days.is_empty() {
            return;
        }
        let (files, unwritten) = (self.inner().files.clone(), days.clone());
        let written = tokio::task::spawn_blocking(move || {
            days.iter().try_for_each(|day| files.write(day))?;
            days.last().into_iter().for_each(|day| files.prune(day.day));
            Ok::<(), io::Error>(())
        });
        if let Err(error) = written.await.map_err(io::Error::other).flatten() {
            tracing::warn!(HOLDFAST_REASON = "storage", "the ledger of costs is not written for now: {error}");
            let mut state = self.state();
            let now = state.today.day;
            state.over.extend(unwritten.into_iter().filter(|day| day.day < now));
            state.dirty = true;
        }
    }

    /// What the disk should know of the purse beyond what it does.
    async fn write_escrow(&self, minute: bool) {
        let wanted = {
            let mut state = self.state();
            let shrunk = minute && state.purse.shrink();
            let owed = state.purse.owes();
            let news = state.kept.short == 0 && state.purse.short().is_some();
            let again = state.disk_failed && state.purse.cap() > 0;
            let mut escrow = state.purse.escrow();
            escrow.taken = owed.unwrap_or(escrow.taken).max(escrow.taken);
            (shrunk || owed.is_some() || news || again).then_some(escrow)
        };
        if let Some(wanted) = wanted {
            self.write(wanted).await;
        }
    }

    fn news(&self) -> Option<News> {
        let mut state = self.state();
        let day = state.purse.day();
        if std::mem::take(&mut state.eased) {
            return Some(News::Eased);
        }
        if state.purse.short().is_some() && state.told != Some(day) {
            state.told = Some(day);
            return Some(News::Spent);
        }
        None
    }
}

impl Ticker {
    /// Looks after everything that is due.
    pub async fn tick(&mut self) -> Option<News> {
        self.money.state().turn();
        let minute = clock::now().duration_since(self.flushed) >= FLUSH_EVERY;
        if minute {
            self.flushed = clock::now();
        }
        {
            let _writing = self.money.inner().writing.lock().await;
            self.money.write_days(minute).await;
            self.money.write_escrow(minute).await;
        }
        self.money.news()
    }
}
