//! What an answer costs: USD per million tokens, in and out apart, by model.
//!
//! Owns the built-in table and how a model's name is found in it; own prices come before it. Knows how long an answer may
//! get, so that a cost has an upper bound before it is known. Counts nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::money::{NANO_PER_USD, Nano};

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// `prompt_tokens`.
    pub prompt_tokens: u64,
    /// `completion_tokens`.
    pub completion_tokens: u64,
}

/// A model's price.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// USD for a million tokens in.
    pub usd_per_mtok_in: f64,
    /// USD for a million tokens out.
    pub usd_per_mtok_out: f64,
    /// The most tokens one answer has where the request sets no limit of its own.
    pub max_output_tokens: u64,
}

/// The most that any listed model writes into one answer: the bound where nobody knows better.
pub const OUTPUT_TOKENS_MAX: u64 = 128_000;

/// What a model counts as whose price nobody knows, where money must be bounded: dearer than all but a few.
pub const ASSUMED: Price =
    Price { usd_per_mtok_in: 15.0, usd_per_mtok_out: 75.0, max_output_tokens: OUTPUT_TOKENS_MAX };

const NOTHING: Price = Price { usd_per_mtok_in: 0.0, usd_per_mtok_out: 0.0, max_output_tokens: 0 };

impl Price {
    /// What so many tokens cost, rounded up.
    pub fn nano(&self, usage: Usage) -> Nano {
        let per_token = NANO_PER_USD / 1e6;
        let input = usage.prompt_tokens as f64 * self.usd_per_mtok_in;
        let output = usage.completion_tokens as f64 * self.usd_per_mtok_out;
        // A float larger than any u64 becomes the largest one.
        ((input + output) * per_token).ceil() as Nano
    }
}

/// The makers' list prices of December 2025 without discounts; a reseller's own prices belong into `[[model]]`.
const LISTED: [(&str, f64, f64, u64); 17] = [
    ("claude-haiku-4-5", 1.0, 5.0, 64_000),
    ("claude-sonnet-4-5", 3.0, 15.0, 64_000),
    ("deepseek-v3.2", 0.28, 0.42, 65_536),
    ("gemini-2.5-flash", 0.30, 2.50, 65_536),
    ("gemini-2.5-flash-lite", 0.10, 0.40, 65_536),
    ("gemini-2.5-pro", 1.25, 10.0, 65_536),
    ("gpt-4.1", 2.0, 8.0, 32_768),
    ("gpt-4.1-mini", 0.40, 1.60, 32_768),
    ("gpt-4.1-nano", 0.10, 0.40, 32_768),
    ("gpt-4o", 2.50, 10.0, 16_384),
    ("gpt-4o-mini", 0.15, 0.60, 16_384),
    ("gpt-5", 1.25, 10.0, OUTPUT_TOKENS_MAX),
    ("gpt-5-mini", 0.25, 2.0, OUTPUT_TOKENS_MAX),
    ("gpt-5-nano", 0.05, 0.40, OUTPUT_TOKENS_MAX),
    ("o4-mini", 1.10, 4.40, 100_000),
    ("text-embedding-3-large", 0.13, 0.0, 0),
    ("text-embedding-3-small", 0.02, 0.0, 0),
];

/// All prices.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    own: BTreeMap<String, Price>,
    /// Uplinks that nothing is paid for.
    free: BTreeSet<String>,
}

impl Prices {
    /// The built-in table below these.
    pub fn new(own: impl IntoIterator<Item = (String, Price)>) -> Self {
        Self { own: own.into_iter().collect(), free: BTreeSet::new() }
    }

    /// Nothing is paid for these uplinks.
    #[must_use]
    pub fn with_free(self, uplinks: impl IntoIterator<Item = String>) -> Self {
        Self { free: uplinks.into_iter().collect(), ..self }
    }

    /// What an uplink's answer of this model costs in USD; `None` where nobody knows its price.
    pub fn cost_usd(&self, uplink: &str, model: &str, usage: Usage) -> Option<f64> {
        let (price, is_assumed) = self.asked_by(uplink, model);
        if is_assumed {
            return None;
        }
        let million = 1e6;
        let input = usage.prompt_tokens as f64 * price.usd_per_mtok_in / million;
        Some(input + usage.completion_tokens as f64 * price.usd_per_mtok_out / million)
    }

    /// What an uplink takes for it, and whether that is an assumed price because nobody knows it.
    pub fn asked_by(&self, uplink: &str, model: &str) -> (Price, bool) {
        if self.free.contains(uplink) { (NOTHING, false) } else { self.or_assumed(model) }
    }

    /// Its price, and whether it is an assumed one because nobody knows it.
    pub fn or_assumed(&self, model: &str) -> (Price, bool) {
        self.of(model).map_or((ASSUMED, true), |price| (price, false))
    }

    /// A name may have its maker before it (`openai/gpt-4o`) and a date behind it (`gpt-4o-2024-08-06`): services put
    /// both there by themselves.
    fn of(&self, model: &str) -> Option<Price> {
        self.named(model).or_else(|| {
            let bare = model.rsplit('/').next()?;
            self.named(bare).or_else(|| self.named(undated(bare)?))
        })
    }

    fn named(&self, model: &str) -> Option<Price> {
        let listed = || {
            let (_, usd_per_mtok_in, usd_per_mtok_out, max_output_tokens) =
                *LISTED.iter().find(|(name, ..)| *name == model)?;
            Some(Price { usd_per_mtok_in, usd_per_mtok_out, max_output_tokens })
        };
        self.own.get(model).copied().or_else(listed)
    }
}

/// The name before its date: `-2024-08-06` or `-20251001`.
fn undated(model: &str) -> Option<&str> {
    let name = model.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    let date = model.get(name.len() + 1..)?;
    let digits = date.bytes().filter(u8::is_ascii_digit).count();
    (digits == 8 && model[name.len()..].starts_with('-')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt_tokens: u64, completion_tokens: u64) -> Usage {
        Usage { prompt_tokens, completion_tokens }
    }

    #[test]
    fn tokens_in_and_out_are_priced_apart() {
        let cost = Prices::default().cost_usd("cloud", "gpt-4o", usage(1_000_000, 100_000)).unwrap();
        assert!((cost - 3.5).abs() < 1e-9, "{cost}");
        assert_eq!(Prices::default().cost_usd("cloud", "nobody-knows", usage(1, 1)), None);
        let prices = Prices::default().with_free(["rack".to_owned()]);
        assert_eq!(prices.cost_usd("rack", "nobody-knows", usage(1, 1)), Some(0.0));
        assert!(!prices.asked_by("rack", "nobody-knows").1 && prices.asked_by("cloud", "nobody-knows").1);
    }

    #[test]
    fn makers_and_dates_around_a_name_do_not_matter_but_other_models_do() {
        let prices = Prices::default();
        let known = |model: &str| prices.of(model).map(|price| price.usd_per_mtok_in);
        for model in ["openai/gpt-4o", "gpt-4o-2024-08-06", "a/b/gpt-4o-20241120"] {
            assert_eq!(known(model), Some(2.5), "{model}");
        }
        for model in ["gpt-4o-audio", "gpt-4o-12", "gpt", "-2024-08-06", "2024-08-06", "", "ü-2024-08-06"] {
            assert_eq!(known(model), None, "{model}");
        }
    }

    #[test]
    fn own_prices_come_first_and_may_be_nothing() {
        let own = Price { usd_per_mtok_in: 0.0, usd_per_mtok_out: 0.0, max_output_tokens: 5 };
        let prices = Prices::new([("gpt-4o".to_owned(), own)]);
        assert_eq!(prices.cost_usd("cloud", "gpt-4o-2024-08-06", usage(5, 5)), Some(0.0));
    }

    #[test]
    fn costs_are_rounded_up_and_unknown_prices_are_the_dearest() {
        let (price, assumed) = Prices::default().or_assumed("gpt-5-nano");
        assert_eq!((price.nano(usage(1, 0)), price.nano(usage(0, 1)), assumed), (50, 400, false));
        let odd = Price { usd_per_mtok_in: 0.000_1, ..price };
        assert_eq!(odd.nano(usage(1, 0)), 1);
        let (unknown, assumed) = Prices::default().or_assumed("nobody-knows");
        assert!(
            assumed
                && LISTED.iter().all(|(_, i, o, n)| {
                    *i <= unknown.usd_per_mtok_in && *o <= unknown.usd_per_mtok_out && *n <= unknown.max_output_tokens
                })
        );
    }

    #[test]
    fn the_table_is_in_order_so_that_nothing_stands_there_twice() {
        assert!(LISTED.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
