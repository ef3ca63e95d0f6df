//! What an answer costs: USD per million tokens, in and out apart, by model.
//!
//! Owns the built-in table and how a model's name is found in it; own prices come before it. Counts nothing.

use std::collections::BTreeMap;

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
}

/// The makers' list prices of December 2025 without discounts; a reseller's own prices belong into `[[model]]`.
const LISTED: [(&str, f64, f64); 17] = [
    ("claude-haiku-4-5", 1.0, 5.0),
    ("claude-sonnet-4-5", 3.0, 15.0),
    ("deepseek-v3.2", 0.28, 0.42),
    ("gemini-2.5-flash", 0.30, 2.50),
    ("gemini-2.5-flash-lite", 0.10, 0.40),
    ("gemini-2.5-pro", 1.25, 10.0),
    ("gpt-4.1", 2.0, 8.0),
    ("gpt-4.1-mini", 0.40, 1.60),
    ("gpt-4.1-nano", 0.10, 0.40),
    ("gpt-4o", 2.50, 10.0),
    ("gpt-4o-mini", 0.15, 0.60),
    ("gpt-5", 1.25, 10.0),
    ("gpt-5-mini", 0.25, 2.0),
    ("gpt-5-nano", 0.05, 0.40),
    ("o4-mini", 1.10, 4.40),
    ("text-embedding-3-large", 0.13, 0.0),
    ("text-embedding-3-small", 0.02, 0.0),
];

/// All prices.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    own: BTreeMap<String, Price>,
}

impl Prices {
    /// The built-in table below these.
    pub fn new(own: impl IntoIterator<Item = (String, Price)>) -> Self {
        Self { own: own.into_iter().collect() }
    }

    /// What an answer of this model costs in USD; `None` where nobody knows its price.
    pub fn cost_usd(&self, model: &str, usage: Usage) -> Option<f64> {
        let price = self.of(model)?;
        let million = 1e6;
        let input = usage.prompt_tokens as f64 * price.usd_per_mtok_in / million;
        Some(input + usage.completion_tokens as f64 * price.usd_per_mtok_out / million)
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
            let (_, usd_per_mtok_in, usd_per_mtok_out) = *LISTED.iter().find(|(name, ..)| *name == model)?;
            Some(Price { usd_per_mtok_in, usd_per_mtok_out })
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
        let cost = Prices::default().cost_usd("gpt-4o", usage(1_000_000, 100_000)).unwrap();
        assert!((cost - 3.5).abs() < 1e-9, "{cost}");
        assert_eq!(Prices::default().cost_usd("nobody-knows", usage(1, 1)), None);
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
        let own = Price { usd_per_mtok_in: 0.0, usd_per_mtok_out: 0.0 };
        let prices = Prices::new([("gpt-4o".to_owned(), own)]);
        assert_eq!(prices.cost_usd("gpt-4o-2024-08-06", usage(5, 5)), Some(0.0));
    }

    #[test]
    fn the_table_is_in_order_so_that_nothing_stands_there_twice() {
        assert!(LISTED.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
