//! A bad cable: frames are lost, doubled, delayed, cut in two and flipped.

use super::chance::Chance;

#[derive(Default)]
pub struct Line {
    under_way: Vec<(u64, Vec<u8>)>,
}

impl Line {
    /// `bad` percent of the frames meet something.
    pub fn send(&mut self, bytes: &[u8], now_ms: u64, bad: u64, chance: &mut Chance) {
        let mut arrive_ms = now_ms + 5;
        let mut bytes = bytes.to_vec();
        if chance.percent(bad) {
            match chance.below(5) {
                0 => return,
                1 => self.under_way.push((arrive_ms + chance.below(3_000), bytes.clone())),
                2 => arrive_ms += chance.below(2_000),
                3 => {
                    let at = chance.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << chance.below(8);
                }
                _ => bytes.truncate(chance.below(bytes.len() as u64) as usize),
            }
        }
        self.under_way.push((arrive_ms, bytes));
    }

    pub fn arrived(&mut self, now_ms: u64) -> Vec<Vec<u8>> {
        let (here, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= now_ms);
        self.under_way = later;
        here.into_iter().map(|(_, bytes): (u64, Vec<u8>)| bytes).collect()
    }
}
