//! The ledger: what was paid on each UTC day, by uplink, model and source; one small file for each day.
//!
//! Owns the rows, their bounds and the files `money/<YYYY-MM-DD>.json`. Knows no cap and no prices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::money::Nano;
use crate::control::price::Usage;
use crate::durable::{self, replace};

/// Days kept; older files are removed.
pub const DAYS_MAX: u64 = 400;
/// Sources named on one day; the rest is summed as [`OTHER`]. A gateway has a handful of programs and devices.
const SOURCES_MAX: usize = 32;
/// Models named on one day: callers may ask for any.
const MODELS_MAX: usize = 32;
/// Rows of one day, some 60 KB: what comes beyond them is summed by uplink.
const ROWS_MAX: usize = 256;
/// Longest name that is written down, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Everybody and everything beyond the bounds.
pub const OTHER: &str = "other";

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// One line of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The uplink's name.
    pub uplink: String,
    /// The model as its uplink calls it.
    pub model: String,
    /// Who asked.
    pub source: String,
    /// Attempts that cost something, or might have.
    pub attempts: u64,
    /// Of these, those whose cost nobody knows: they count with all that was reserved.
    pub unclear: u64,
    /// Tokens in, as far as answers said.
    pub prompt_tokens: u64,
    /// Tokens out, as far as answers said.
    pub completion_tokens: u64,
    /// Billionths of a US dollar.
    pub nano_usd: Nano,
    /// Some of it by an assumed price.
    pub assumed_price: bool,
}

/// One UTC day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// Days since 1970.
    pub day: u64,
    /// Taken before a crash and not known to be unspent, in billionths of a US dollar.
    pub crashed_nano_usd: Nano,
    /// In no order that matters.
    pub rows: Vec<Row>,
}

/// What one attempt adds.
pub(super) struct Entry<'a> {
    pub(super) uplink: &'a str,
    pub(super) model: &'a str,
    pub(super) source: &'a str,
    /// `None` where nobody knows what it took.
    pub(super) usage: Option<Usage>,
    pub(super) nano_usd: Nano,
    pub(super) assumed_price: bool,
}

impl Day {
    pub(super) fn new(day: u64) -> Day {
        Day { day, ..Day::default() }
    }

    /// The sum of everything.
    pub fn nano_usd(&self) -> Nano {
        self.rows.iter().fold(self.crashed_nano_usd, |sum, row| sum.saturating_add(row.nano_usd))
    }

    /// Tokens in and out.
    pub fn tokens(&self) -> (u64, u64) {
        let add = |sum: (u64, u64), row: &Row| (sum.0 + row.prompt_tokens, sum.1 + row.completion_tokens);
        self.rows.iter().fold((0, 0), add)
    }

    pub(super) fn add(&mut self, entry: &Entry<'_>) {
        let (uplink, model, source) = (cut(entry.uplink), cut(entry.model), cut(entry.source));
        // Nearly all are of a row that is there: only a new one asks whether there is room for its names.
        let known = self.find(uplink, model, source);
        let at = known.unwrap_or_else(|| {
            let model = self.named(model, MODELS_MAX, |row| &row.model);
            let source = self.named(source, SOURCES_MAX, |row| &row.source);
            self.place(uplink, &model, &source)
        });
        let row = &mut self.rows[at];
        row.attempts += 1;
        row.nano_usd = row.nano_usd.saturating_add(entry.nano_usd);
        row.assumed_price |= entry.assumed_price;
        match entry.usage {
            Some(usage) => {
                row.prompt_tokens = row.prompt_tokens.saturating_add(usage.prompt_tokens);
                row.completion_tokens = row.completion_tokens.saturating_add(usage.completion_tokens);
            }
            None => row.unclear += 1,
        }
    }

    /// The name itself while there is room for one more.
    fn named(&self, name: &str, most: usize, of: impl Fn(&Row) -> &String) -> String {
        let known: BTreeSet<&str> = self.rows.iter().map(|row| of(row).as_str()).collect();
        if known.contains(name) || known.len() < most { name.to_owned() } else { OTHER.to_owned() }
    }

    fn find(&self, uplink: &str, model: &str, source: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.uplink == uplink && row.model == model && row.source == source)
    }

    fn place(&mut self, uplink: &str, model: &str, source: &str) -> usize {
        if let Some(at) = self.find(uplink, model, source) {
            return at;
        }
        let (model, source) = if self.rows.len() < ROWS_MAX { (model, source) } else { (OTHER, OTHER) };
        if let Some(at) = self.find(uplink, model, source) {
            return at;
        }
        let [uplink, model, source] = [uplink, model, source].map(str::to_owned);
        self.rows.push(Row { uplink, model, source, ..Row::default() });
        self.rows.len() - 1
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

/// `2026-11-21` for a day since 1970 (Howard Hinnant's way from days to dates).
pub fn date(day: u64) -> String {
    let z = day + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

/// The files of all days.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn new(folder: &Path) -> Files {
        Files { folder: folder.to_owned() }
    }

    fn path(&self, day: u64) -> PathBuf {
        self.folder.join(format!("{}.json", date(day)))
    }

    /// One day; a damaged file is set aside and is as good as none. True where that happened.
    pub(super) fn read(&self, day: u64) -> (Option<Day>, bool) {
        let path = self.path(day);
        let Ok(bytes) = fs::read(&path) else { return (None, false) };
        if let Some(read) = parse(&bytes).filter(|read| read.day == day) {
            return (Some(read), false);
        }
        let (aside, trouble) = durable::set_aside(&path);
        tracing::error!(
            HOLDFAST_REASON = "damaged",
            "the ledger of {} is damaged and was set aside as {}: what was paid on that day is not known any more{}",
            date(day),
            aside.display(),
            trouble.map(|error| format!(" ({error})")).unwrap_or_default()
        );
        (None, true)
    }

    pub(super) fn write(&self, day: &Day) -> io::Result<()> {
        let said = serde_json::to_string(day).map_err(io::Error::other)?;
        replace(&self.path(day.day), format!("{:08x} {said}\n", CRC.checksum(said.as_bytes())).as_bytes())
    }

    /// The newest day of which there is a file.
    pub(super) fn newest(&self) -> Option<u64> {
        self.days().last().copied()
    }

    /// Days that have a file, in order.
    fn days(&self) -> BTreeSet<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json").and_then(day_of);
        entries.filter_map(name).collect()
    }

    /// The latest of them, today left out, newest first.
    pub(super) fn before(&self, today: u64, most: u64) -> Vec<Day> {
        let earliest = today.saturating_sub(most);
        self.days().range(earliest..today).rev().filter_map(|day| self.read(*day).0).collect()
    }

    /// Removes what is older than [`DAYS_MAX`].
    pub(super) fn prune(&self, today: u64) {
        for day in self.days().range(..today.saturating_sub(DAYS_MAX)) {
            // What stays is tried again tomorrow.
            let _ = fs::remove_file(self.path(*day));
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Day> {
    let (sum, said) = std::str::from_utf8(bytes).ok()?.trim_end_matches('\n').split_once(' ')?;
    let holds = u32::from_str_radix(sum, 16).ok()? == CRC.checksum(said.as_bytes());
    holds.then(|| serde_json::from_str(said).ok())?
}

/// The day of `2026-11-21`.
fn day_of(date_text: &str) -> Option<u64> {
    let mut parts = date_text.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day_of_month) = (parts.next()??, parts.next()??, parts.next()??);
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let month_from_march = if month > 2 { month.checked_sub(3)? } else { month + 9 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day_of_month.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let day = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    (date(day) == date_text).then_some(day)
}

/// The sums of several rows under one name.
pub fn sums(rows: &[Row], of: impl Fn(&Row) -> &str) -> BTreeMap<&str, Row> {
    let mut sums: BTreeMap<&str, Row> = BTreeMap::new();
    for row in rows {
        let sum = sums.entry(of(row)).or_default();
        sum.attempts += row.attempts;
        sum.unclear += row.unclear;
        sum.prompt_tokens += row.prompt_tokens;
        sum.completion_tokens += row.completion_tokens;
        sum.nano_usd = sum.nano_usd.saturating_add(row.nano_usd);
        sum.assumed_price |= row.assumed_price;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(model: &'a str, source: &'a str, usage: Option<Usage>) -> Entry<'a> {
        Entry { uplink: "sim", model, source, usage, nano_usd: 10, assumed_price: false }
    }

    #[test]
    fn dates_go_there_and_back() {
        for (day, text) in [(0, "1970-01-01"), (19_782, "2024-02-29"), (20_778, "2026-11-21"), (47_540, "2100-02-28")] {
            assert_eq!((date(day).as_str(), day_of(text)), (text, Some(day)));
        }
        for day in (0..80_000).step_by(7) {
            assert_eq!(day_of(&date(day)), Some(day));
        }
        for wrong in ["", "2026-02-30", "2026-13-01", "x-1-1", "2026-1-1", "0000-00-00"] {
            assert_eq!(day_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_number_of_names_is_bounded_and_no_cent_is_lost() {
        let mut day = Day::new(20_000);
        for n in 0..10_000 {
            let (model, source) = (format!("m{}", n % 300), format!("device:{n}"));
            day.add(&entry(&model, &source, (n % 2 == 0).then_some(Usage { prompt_tokens: 1, completion_tokens: 2 })));
        }
        assert!(day.rows.len() <= ROWS_MAX + 1, "{}", day.rows.len());
        assert_eq!((day.nano_usd(), day.tokens()), (100_000, (5_000, 10_000)));
        let named: BTreeSet<_> = day.rows.iter().map(|row| &row.source).collect();
        assert!(named.len() <= SOURCES_MAX + 1 && named.contains(&OTHER.to_owned()));
        assert_eq!(day.rows.iter().map(|row| row.unclear).sum::<u64>(), 5_000);
        let long = "ü".repeat(500);
        let mut one = Day::new(1);
        one.add(&entry(&long, "a", None));
        assert!(one.rows[0].model.len() <= NAME_BYTES_MAX);
    }

    #[test]
    fn files_hold_damage_is_set_aside_and_old_days_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        for number in [19_000, 19_999, 20_000] {
            let mut day = Day::new(number);
            day.add(&entry("m", "uid:0", None));
            files.write(&day).unwrap();
        }
        assert_eq!(files.newest(), Some(20_000));
        assert_eq!(files.before(20_000, 7).len(), 1);
        let path = files.path(20_000);
        let mut worn = fs::read(&path).unwrap();
        worn[30] ^= 1;
        fs::write(&path, worn).unwrap();
        assert_eq!(files.read(20_000), (None, true));
        assert!(path.with_extension("damaged").exists() && !path.exists());
        assert_eq!(files.read(20_000), (None, false));
        files.prune(20_000);
        assert_eq!(files.days(), BTreeSet::from([19_999]));
    }
}
