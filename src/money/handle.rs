//! The handle to the purse: reserves, settles, and keeps what is on disk ahead of what is spent.
//!
//! Owns the order of memory and disk: taken on disk first, granted then. A request waits for the disk only where the
//! escrow has to grow, and for money only while what is under way may give some back.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::escrow::{self, Found};
use super::ledger::{Day, Entry, Files, date};
use super::reservation::{End, Reservation};
use crate::clock::{self, DAY_MS};
use crate::control::money::{Escrow, Fit, NANO_PER_USD, Nano, Purse, amount};
use crate::control::price::{Price, Prices, Usage};
use crate::durable;

/// How long a request waits for what is under way to cost less than it might; most answers take less.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the purse of this process is built from.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data folder.
    pub data_dir: PathBuf,
    /// The cap of one UTC day in US dollars; 0 is none.
    pub usd_per_day: f64,
    /// What models cost.
    pub prices: Prices,
}

/// What one attempt may cost, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The uplink's name.
    pub uplink: String,
    /// The model as its uplink calls it.
    pub model: String,
    /// Who asks.
    pub source: String,
    /// The upper bound, in billionths of a US dollar.
    pub need: Nano,
}

/// Why an attempt is not to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It does not fit into what is left of today.
    Spent,
    /// It might have fitted, but what is under way did not end in time.
    Busy,
    /// What would be spent cannot be written down.
    Disk,
}

/// What changed since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A request did not fit any more: the first one of this day.
    Spent,
    /// What did not fit may fit now.
    Eased,
}

/// The purse as it stands, for showing; amounts in US dollars.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The UTC day that is counted, such as `2026-11-21`.
    pub date: String,
    /// The cap; `None` where there is none.
    pub cap_usd: Option<f64>,
    /// Spent today.
    pub spent_usd: f64,
    /// Reserved by what is under way.
    pub reserved_usd: f64,
    /// Of what was spent: taken before a crash and not known to be unspent.
    pub crashed_usd: f64,
    /// Tokens of today's answers, in and out.
    pub tokens: (u64, u64),
    /// Some of today's cost is by an assumed price.
    pub assumed_price: bool,
    /// Something did not fit: until when, in Unix seconds.
    pub spent_until_s: Option<u64>,
    /// What would be spent cannot be written down.
    pub disk_failed: bool,
}

impl View {
    /// Why requests wait or are refused, until when, and what to do: one plain sentence.
    pub fn sentence(&self) -> String {
        if self.disk_failed {
            return "paused: budget: what is spent cannot be written down; make room on the disk or replace it"
                .to_owned();
        }
        let under_way = match self.reserved_usd {
            reserved if reserved > 0.0 => format!(", {} are set aside for what is under way,", amount(reserved)),
            _ => String::new(),
        };
        format!(
            "{} of {} USD of [budget] usd_per_day are spent on {}{under_way} and the next request may cost more than the rest, \
             counted with the longest answer that it allows; paid requests go on at 00:00 UTC where they fit the whole of it, \
             or set max_tokens (or a lower one) in the request, or raise usd_per_day and reload",
            amount(self.spent_usd),
            amount(self.cap_usd.unwrap_or_default()),
            self.date
        )
    }
}

/// The purse of this process; clones share it.
#[derive(Debug, Clone)]
pub struct Money(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) files: Files,
    state: Mutex<State>,
    /// Held while a file is written, so that no older state overtakes a newer one.
    pub(super) writing: tokio::sync::Mutex<()>,
    settled: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) purse: Purse,
    pub(super) today: Day,
    /// Days that are over and not yet on disk; one, unless the disk fails for days.
    pub(super) over: Vec<Day>,
    /// The day has rows that are not on disk.
    pub(super) dirty: bool,
    /// What stands on disk of the escrow.
    pub(super) kept: Escrow,
    pub(super) disk_failed: bool,
    /// The day of which it was told that something did not fit.
    pub(super) told: Option<u64>,
    /// Somebody waited in vain for what is under way; since then something was settled.
    pub(super) in_vain: bool,
    pub(super) eased: bool,
}

/// Days that wait for a disk; beyond this the oldest is lost, as the log says.
const OVER_MAX: usize = 8;

impl Money {
    /// Reads what earlier processes wrote down. Nothing that is damaged stops the start: then today's cap counts as
    /// spent. Blocks.
    pub fn open(options: Options) -> Money {
        let folder = options.data_dir.join("money");
        let files = Files::new(&folder);
        if let Err(error) = durable::make_folder(&folder) {
            tracing::error!(HOLDFAST_REASON = "storage", "{} cannot be made: {error}", folder.display());
        }
        let state = load(&options, &files);
        let money = Money(Arc::new(Inner {
            options,
            files,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::default(),
            settled: Notify::new(),
        }));
        let kept = money.state().purse.escrow();
        money.wrote(&kept, escrow::write(&money.path(), &kept));
        money.0.files.prune(kept.day);
        money
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(super) fn path(&self) -> PathBuf {
        path(&self.0.options)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a cap.
    pub fn is_capped(&self) -> bool {
        self.0.options.usd_per_day > 0.0
    }

    /// A model's price at an uplink, and whether it is an assumed one.
    pub fn price(&self, uplink: &str, model: &str) -> (Price, bool) {
        self.0.options.prices.asked_by(uplink, model)
    }

    /// Sets money aside for one attempt, and waits for it no longer than its caller does. Returns once what may be spent is
    /// on disk.
    pub async fn reserve(&self, order: Order, caller: Option<std::time::Instant>) -> Result<Reservation, Refused> {
        let most = clock::now() + WAIT_MAX;
        let until = Instant::from_std(caller.map_or(most, |caller| caller.min(most)));
        loop {
            let settled = self.0.settled.notified();
            let mut settled = std::pin::pin!(settled);
            // From here on, so that nothing that is settled between the look and the wait is missed.
            settled.as_mut().enable();
            let fit = self.look(order.need);
            match fit {
                Fit::Granted => return Ok(Reservation::new(self.clone(), order)),
                Fit::Short => return Err(Refused::Spent),
                Fit::Take(_) => self.take(order.need).await?,
                Fit::Wait => {
                    if timeout_at(until, settled).await.is_err() {
                        self.state().in_vain = true;
                        return Err(Refused::Busy);
                    }
                }
            }
        }
    }

    fn look(&self, need: Nano) -> Fit {
        let mut state = self.state();
        state.turn();
        state.purse.reserve(need)
    }

    /// Makes the escrow large enough. Whoever comes second finds it done.
    async fn take(&self, need: Nano) -> Result<(), Refused> {
        // In a task of its own: a caller who goes away must not let the next one write while this one's is on its way to the disk.
        let money = self.clone();
        tokio::spawn(async move { money.take_whole(need).await }).await.unwrap_or(Err(Refused::Disk))
    }

    /// Not to be given up in its middle.
    async fn take_whole(&self, need: Nano) -> Result<(), Refused> {
        let _writing = self.0.writing.lock().await;
        let wanted = {
            let state = self.state();
            let mut purse = state.purse.clone();
            match purse.reserve(need) {
                Fit::Take(taken) => Escrow { taken, ..purse.escrow() },
                _ => return Ok(()),
            }
        };
        if self.write(wanted).await { Ok(()) } else { Err(Refused::Disk) }
    }

    /// Puts the escrow on disk; whoever calls holds `writing`. False where the disk refused.
    pub(super) async fn write(&self, wanted: Escrow) -> bool {
        let path = self.path();
        let written = tokio::task::spawn_blocking(move || escrow::write(&path, &wanted)).await;
        let written = written.map_err(io::Error::other).flatten();
        let works = written.is_ok();
        self.wrote(&wanted, written);
        if works {
            self.state().purse.took(wanted.day, wanted.taken);
        }
        works
    }

    /// Notes what is on disk; a disk that refuses is told of once, and once when it works again.
    pub(super) fn wrote(&self, wanted: &Escrow, written: io::Result<()>) {
        let mut state = self.state();
        match written {
            Ok(()) => {
                state.kept = *wanted;
                if std::mem::take(&mut state.disk_failed) {
                    // Whoever was refused for it may go now.
                    state.eased = true;
                    tracing::warn!("what is spent can be written down again");
                }
            }
            Err(error) if !std::mem::replace(&mut state.disk_failed, true) => {
                let so = if self.is_capped() { ", so nothing more is paid under [budget] usd_per_day" } else { "" };
                tracing::error!(HOLDFAST_REASON = "storage", "what is spent cannot be written down{so}: {error}");
            }
            Err(_) => {}
        }
    }

    pub(super) fn settle(&self, order: &Order, end: &End) {
        let mut state = self.state();
        state.turn();
        let (model, usage) = match end {
            End::Nothing => {
                state.purse.settle(order.need, 0);
                self.freed(&mut state);
                return;
            }
            End::Usage(model, usage) => (self.billed(order, model.as_deref()), Some(*usage)),
            End::Unknown => (order.model.as_str(), None),
        };
        let (price, assumed_price) = self.price(&order.uplink, model);
        let nano_usd = usage.map_or(order.need, |usage| price.nano(usage));
        state.purse.settle(order.need, nano_usd);
        let (uplink, source) = (order.uplink.as_str(), order.source.as_str());
        state.today.add(&Entry { uplink, model, source, usage, nano_usd, assumed_price });
        state.dirty = true;
        self.freed(&mut state);
    }

    fn freed(&self, state: &mut State) {
        state.eased |= std::mem::take(&mut state.in_vain);
        self.0.settled.notify_waiters();
    }

    /// The name that answered, where it has a price of its own; else the one that was asked for.
    fn billed<'a>(&self, order: &'a Order, answered: Option<&'a str>) -> &'a str {
        answered.filter(|model| !self.0.options.prices.or_assumed(model).1).unwrap_or(&order.model)
    }

    /// The purse as it stands.
    pub fn view(&self) -> View {
        let mut state = self.state();
        state.turn();
        let purse = &state.purse;
        let capped = purse.cap() > 0;
        View {
            date: date(purse.day()),
            cap_usd: capped.then(|| usd(purse.cap())),
            spent_usd: usd(purse.spent()),
            reserved_usd: usd(purse.reserved()),
            crashed_usd: usd(state.today.crashed_nano_usd),
            tokens: state.today.tokens(),
            assumed_price: state.today.rows.iter().any(|row| row.assumed_price),
            spent_until_s: purse.short().map(|_| (purse.day() + 1) * DAY_MS / 1000),
            disk_failed: capped && state.disk_failed,
        }
    }

    /// Whether something did not fit into what is left of today.
    pub fn is_spent(&self) -> bool {
        let mut state = self.state();
        state.turn();
        state.purse.short().is_some()
    }

    /// Why nothing is paid for now, until when, and what to do: one plain sentence.
    pub fn why(&self) -> String {
        self.view().sentence()
    }

    /// Today and up to so many days before, newest first. Blocks.
    pub fn days(&self, most: u64) -> Vec<Day> {
        let today = {
            let mut state = self.state();
            state.turn();
            state.today.clone()
        };
        let before = self.0.files.before(today.day, most.saturating_sub(1));
        std::iter::once(today).chain(before).collect()
    }

    /// What so many tokens cost, and whether by an assumed price.
    pub fn cost(&self, uplink: &str, model: &str, usage: Usage) -> (Nano, bool) {
        let (price, assumed) = self.price(uplink, model);
        (price.nano(usage), assumed)
    }
}

impl State {
    /// A new UTC day begins a new page.
    pub(super) fn turn(&mut self) {
        self.turn_to(clock::utc_day());
    }

    pub(super) fn turn_to(&mut self, day: u64) {
        if !self.purse.turn(day) {
            return;
        }
        let done = std::mem::replace(&mut self.today, Day::new(day));
        if std::mem::take(&mut self.dirty) {
            if self.over.len() >= OVER_MAX {
                let lost = self.over.remove(0);
                tracing::error!(
                    HOLDFAST_REASON = "storage",
                    "the ledger of {} is lost: the disk took nothing",
                    date(lost.day)
                );
            }
            self.over.push(done);
        }
        self.eased = true;
    }
}

/// US dollars.
pub fn usd(nano: Nano) -> f64 {
    nano as f64 / NANO_PER_USD
}

fn path(options: &Options) -> PathBuf {
    options.data_dir.join("money").join("escrow")
}

/// The escrow that was found, and whether it is in doubt: then nobody knows what was spent today.
fn find_escrow(options: &Options, has_ledger: bool) -> (Escrow, bool) {
    match escrow::read(&path(options)) {
        Found::Escrow(kept) => (kept, false),
        // The first start there is, or the first with this version.
        Found::Nothing if !has_ledger => (Escrow::default(), false),
        found => {
            set_aside(options, &found);
            (Escrow::default(), true)
        }
    }
}

fn load(options: &Options, files: &Files) -> State {
    let cap = (options.usd_per_day * NANO_PER_USD) as Nano;
    let newest = files.newest();
    let (kept, is_in_doubt) = find_escrow(options, newest.is_some());
    // The last day that was known: a clock behind it changes nothing.
    let day = kept.day.max(newest.unwrap_or(0)).max(clock::utc_day());
    let (today, is_worn) = files.read(day);
    let mut today = today.unwrap_or_else(|| Day::new(day));
    let mut kept = if kept.day == day { kept } else { Escrow { day, ..Escrow::default() } };
    if cap > 0 && (is_in_doubt || (is_worn && kept.taken == 0)) {
        kept.taken = kept.taken.max(cap);
    }
    let known = today.nano_usd();
    let purse = Purse::new(cap, kept, known);
    today.crashed_nano_usd = today.crashed_nano_usd.saturating_add(purse.spent().saturating_sub(known));
    if purse.spent() > known {
        tracing::warn!(
            "the gateway did not stop cleanly: {:.6} USD that were taken for today and not settled count as spent",
            usd(purse.spent() - known)
        );
    }
    let told = purse.short().map(|_| day);
    State {
        dirty: purse.spent() > known,
        purse,
        today,
        over: Vec::new(),
        kept: Escrow::default(),
        disk_failed: false,
        told,
        in_vain: false,
        eased: false,
    }
}

/// Without the escrow nobody knows what was spent today.
fn set_aside(options: &Options, found: &Found) {
    let path = path(options);
    let capped = if options.usd_per_day > 0.0 { ": today's budget counts as spent" } else { "" };
    if *found == Found::Nothing {
        tracing::error!(HOLDFAST_REASON = "damaged", "{} is missing{capped}", path.display());
        return;
    }
    let (aside, trouble) = durable::set_aside(&path);
    let trouble = trouble.map(|error| format!(" ({error})")).unwrap_or_default();
    tracing::error!(
        HOLDFAST_REASON = "damaged",
        "{} is damaged and was set aside as {}{trouble}{capped}",
        path.display(),
        aside.display()
    );
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn amounts_below_a_cent_are_not_said_as_nothing() {
        let view =
            View { date: "2026-11-21".to_owned(), cap_usd: Some(0.001), spent_usd: 0.000_042, ..View::default() };
        let begin = "0.000042 of 0.001 USD of [budget] usd_per_day are spent on 2026-11-21 and the next request may";
        assert!(view.sentence().starts_with(begin), "{}", view.sentence());
        let view = View { reserved_usd: 0.0004, ..view };
        let under_way = "2026-11-21, 0.0004 are set aside for what is under way, and the next";
        assert!(view.sentence().contains(under_way), "{}", view.sentence());
    }

    #[tokio::test]
    async fn nobody_waits_for_money_longer_than_its_caller_does() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, prices) = (dir.path().to_owned(), Prices::new([]));
        let money = Money::open(Options { data_dir, usd_per_day: 1.0, prices });
        let order = || Order { uplink: String::new(), model: String::new(), source: String::new(), need: 600_000_000 };
        let under_way = money.reserve(order(), None).await.unwrap();
        let caller = clock::now() + Duration::from_millis(50);
        let hasty = tokio::time::timeout(WAIT_MAX / 2, money.reserve(order(), Some(caller))).await;
        assert_eq!(hasty.expect("its caller is gone").unwrap_err(), Refused::Busy);
        under_way.settle(&End::Nothing);
        money.reserve(order(), Some(clock::now() + WAIT_MAX)).await.unwrap().settle(&End::Nothing);
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_takes_no_write_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, prices) = (dir.path().to_owned(), Prices::new([]));
        let money = Money::open(Options { data_dir, usd_per_day: 1.0, prices });
        let order = Order { uplink: String::new(), model: String::new(), source: String::new(), need: 600_000_000 };
        assert!(money.reserve(order, None).now_or_never().is_none(), "it waits for the disk");
        tokio::task::yield_now().await;
        // Free once nothing is on its way to the disk any more.
        drop(money.0.writing.lock().await);
        assert!(money.state().kept.taken >= 600_000_000, "what is on disk is not known here");
    }
}
