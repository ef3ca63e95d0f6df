//! What a board tells of its own strain: throttling, too little voltage, a card that wears out.
//!
//! Reads files of the kernel below a root that a test may choose, and judges nothing. What is not there is not told.

use std::fs;
use std::path::{Path, PathBuf};

/// Raspberry Pi's firmware: a number in hexadecimal, bits 0 to 3 for now, 16 to 19 for "since the boot".
const PI: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";
/// Raspberry Pi: the voltage is too low, or was.
const PI_VOLTAGE: u32 = 1;
/// Raspberry Pi: capped, throttled, or at the soft limit of temperature.
const PI_SLOWED: u32 = 0b1110;
/// So many cooling devices, cores or cards are looked at; boards have a dozen.
const ENTRIES_MAX: usize = 256;

/// What a board tells of its strain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strain {
    /// The processor is slowed down now, because of heat or voltage.
    pub is_throttled: Option<bool>,
    /// It was, at some time since the boot.
    pub was_throttled: Option<bool>,
    /// The supply's voltage is too low now.
    pub is_undervoltage: Option<bool>,
    /// How much of its life the most worn eMMC has used, in percent, rounded up to tens.
    pub card_wear_percent: Option<u8>,
    /// How its spare blocks stand: `normal`, `warning` (80 % used), `urgent`.
    pub card_spare: Option<&'static str>,
}

/// Reads everything below `root`, which is `/` on a board.
pub fn read(root: &Path) -> Strain {
    let pi = pi(root);
    let (card_wear_percent, card_spare) = card(root);
    Strain {
        is_throttled: pi.map(|bits| bits & PI_SLOWED != 0).or_else(|| cooling(root)),
        was_throttled: pi.map(|bits| (bits >> 16) & PI_SLOWED != 0).or_else(|| counted(root)),
        is_undervoltage: pi.map(|bits| bits & PI_VOLTAGE != 0),
        card_wear_percent,
        card_spare,
    }
}

fn pi(root: &Path) -> Option<u32> {
    let text = word(&root.join(PI))?;
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Whether the kernel holds a clock down: a fan that turns is no throttling.
fn cooling(root: &Path) -> Option<bool> {
    let slows = |kind: &str| kind.contains("cpufreq") || kind.contains("devfreq") || kind == "Processor";
    let states = entries(&root.join("sys/class/thermal"), "cooling_device").into_iter().filter_map(|device| {
        let kind = word(&device.join("type"))?;
        slows(&kind).then(|| word(&device.join("cur_state"))?.parse::<u64>().ok())?
    });
    states.reduce(u64::max).map(|state| state > 0)
}

/// The processor's own counters of throttling.
fn counted(root: &Path) -> Option<bool> {
    let counts = entries(&root.join("sys/devices/system/cpu"), "cpu").into_iter().filter_map(|cpu| {
        let count = |name: &str| word(&cpu.join("thermal_throttle").join(name))?.parse::<u64>().ok();
        count("core_throttle_count").max(count("package_throttle_count"))
    });
    counts.reduce(u64::max).map(|count| count > 0)
}

/// Of all cards that tell: the most worn, and the scarcest spare blocks. SD cards do not tell.
fn card(root: &Path) -> (Option<u8>, Option<&'static str>) {
    let cards = || entries(&root.join("sys/block"), "mmcblk").into_iter().map(|card| card.join("device"));
    let number = |word: &str| u8::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    // Two numbers, for two kinds of memory: 1 is up to 10 %, 11 is beyond the life it was made for; 0 is not told.
    let life = |card: PathBuf| word(&card.join("life_time"))?.split(' ').filter_map(number).max();
    let spare = |card: PathBuf| number(&word(&card.join("pre_eol_info"))?);
    let worn = cards().filter_map(life).max().filter(|tens| (1..=11).contains(tens)).map(|tens| tens * 10);
    let spare = match cards().filter_map(spare).max() {
        Some(1) => Some("normal"),
        Some(2) => Some("warning"),
        Some(3) => Some("urgent"),
        _ => None,
    };
    (worn, spare)
}

fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(all) = fs::read_dir(folder) else { return Vec::new() };
    let ours = all.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.take(ENTRIES_MAX).map(|entry| entry.path()).collect()
}

fn word(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(files: &[(&str, &str)]) -> Strain {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        read(root.path())
    }

    #[test]
    fn a_board_that_tells_nothing_is_no_error() {
        assert_eq!(board(&[]), Strain::default());
    }

    #[test]
    fn a_raspberry_pi_tells_of_heat_and_voltage() {
        let strain = board(&[(PI, "50005\n")]);
        assert_eq!(
            (strain.is_throttled, strain.was_throttled, strain.is_undervoltage),
            (Some(true), Some(true), Some(true))
        );
        let strain = board(&[(PI, "0x80000\n")]);
        assert_eq!(
            (strain.is_throttled, strain.was_throttled, strain.is_undervoltage),
            (Some(false), Some(true), Some(false))
        );
        let strain = board(&[(PI, "1")]);
        assert_eq!(
            (strain.is_throttled, strain.was_throttled, strain.is_undervoltage),
            (Some(false), Some(false), Some(true))
        );
    }

    #[test]
    fn a_clock_held_down_counts_and_a_fan_does_not() {
        let device = |n: u8, kind: &'static str, state: &'static str| {
            let at = format!("sys/class/thermal/cooling_device{n}");
            [(format!("{at}/type"), kind), (format!("{at}/cur_state"), state)]
        };
        let told = |devices: Vec<[(String, &'static str); 2]>| {
            let files: Vec<_> = devices.iter().flatten().map(|(path, text)| (path.as_str(), *text)).collect();
            board(&files).is_throttled
        };
        assert_eq!(told(vec![device(0, "pwm-fan\n", "3\n")]), None);
        assert_eq!(told(vec![device(0, "pwm-fan\n", "3\n"), device(1, "cpufreq-cpu0\n", "0\n")]), Some(false));
        assert_eq!(told(vec![device(0, "17000000.gpu-devfreq", "2"), device(1, "cpufreq-cpu0", "0")]), Some(true));
        let count = ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4");
        assert_eq!(board(&[count]).was_throttled, Some(true));
    }

    #[test]
    fn the_most_worn_card_is_told() {
        let strain = board(&[
            ("sys/block/mmcblk0/device/life_time", "0x01 0x03\n"),
            ("sys/block/mmcblk0/device/pre_eol_info", "0x01\n"),
            ("sys/block/mmcblk1/device/name", "an SD card\n"),
            ("sys/block/mmcblk2/device/life_time", "0x0b 0x01\n"),
            ("sys/block/mmcblk2/device/pre_eol_info", "0x02\n"),
        ]);
        assert_eq!((strain.card_wear_percent, strain.card_spare), (Some(110), Some("warning")));
        let unknown =
            [("sys/block/mmcblk0/device/life_time", "0x00 0x00"), ("sys/block/mmcblk0/device/pre_eol_info", "")];
        assert_eq!((board(&unknown).card_wear_percent, board(&unknown).card_spare), (None, None));
    }
}
