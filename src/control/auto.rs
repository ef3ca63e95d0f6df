//! Which model a request for `auto` gets: rules in the configuration's order, the first that fits.
//!
//! Pure, and readable by a technician: no rule guesses what a prompt is about.

use super::types::Priority;

/// The name that stands for whatever the rules say.
pub const AUTO: &str = "auto";

/// One `[[auto]]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// Only requests with a picture, or only those without.
    pub has_picture: Option<bool>,
    /// Only prompts of at least so many bytes, pictures in them included.
    pub prompt_bytes_min: Option<u64>,
    /// Only prompts of at most so many bytes.
    pub prompt_bytes_max: Option<u64>,
    /// Only requests of this priority.
    pub priority: Option<Priority>,
    /// Only while no uplink is available, or only while one is.
    pub offline: Option<bool>,
    /// What it gives: one model, or several with their shares. Never empty, never without a share.
    pub models: Vec<Share>,
}

/// A model and its part of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub name: String,
    /// Its share among those of the rule.
    pub share: u32,
}

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// There is a picture in it.
    pub has_picture: bool,
    /// Bytes of `messages`, `prompt` or `input`.
    pub prompt_bytes: u64,
    /// Its priority.
    pub priority: Priority,
    /// No uplink is available.
    pub offline: bool,
}

impl Rule {
    /// Whether it fits everything.
    pub fn has_conditions(&self) -> bool {
        *self != Rule { models: self.models.clone(), ..Rule::default() }
    }

    fn fits(&self, asked: &Asked) -> bool {
        self.has_picture.is_none_or(|wanted| wanted == asked.has_picture)
            && self.prompt_bytes_min.is_none_or(|least| asked.prompt_bytes >= least)
            && self.prompt_bytes_max.is_none_or(|most| asked.prompt_bytes <= most)
            && self.priority.is_none_or(|wanted| wanted == asked.priority)
            && self.offline.is_none_or(|wanted| wanted == asked.offline)
    }

    /// The same number always gives the same model: a retry goes where the first try went.
    fn model(&self, number: u64) -> Option<&str> {
        let total: u64 = self.models.iter().map(|model| u64::from(model.share)).sum();
        let mut mark = number % total.max(1);
        let hit = |model: &&Share| {
            let hit = mark < u64::from(model.share);
            mark = mark.saturating_sub(u64::from(model.share));
            hit
        };
        self.models.iter().find(hit).map(|model| model.name.as_str())
    }
}

/// The first rule that fits, counted from 1, and its model. `number` is asked for only where shares decide.
pub fn choose<'a>(rules: &'a [Rule], asked: &Asked, number: impl FnOnce() -> u64) -> Option<(usize, &'a str)> {
    let (index, rule) = rules.iter().enumerate().find(|(_, rule)| rule.fits(asked))?;
    let number = if rule.models.len() > 1 { number() } else { 0 };
    rule.model(number).map(|model| (index + 1, model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::retry::Chance;

    const PLAIN: Asked = Asked { has_picture: false, prompt_bytes: 100, priority: Priority::Normal, offline: false };

    fn one(name: &str) -> Vec<Share> {
        vec![Share { name: name.to_owned(), share: 1 }]
    }

    fn rules() -> Vec<Rule> {
        vec![
            Rule { offline: Some(true), models: one("small"), ..Rule::default() },
            Rule { has_picture: Some(true), models: one("eyes"), ..Rule::default() },
            Rule {
                prompt_bytes_min: Some(1_000),
                prompt_bytes_max: Some(2_000),
                models: one("long"),
                ..Rule::default()
            },
            Rule { priority: Some(Priority::Critical), models: one("best"), ..Rule::default() },
            Rule { models: one("usual"), ..Rule::default() },
        ]
    }

    fn name(asked: Asked) -> (usize, String) {
        let rules = rules();
        let (rule, model) = choose(&rules, &asked, || 0).unwrap();
        (rule, model.to_owned())
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let critical = Asked { priority: Priority::Critical, ..PLAIN };
        assert_eq!(name(PLAIN), (5, "usual".to_owned()));
        assert_eq!(name(critical), (4, "best".to_owned()));
        assert_eq!(name(Asked { prompt_bytes: 1_000, ..critical }), (3, "long".to_owned()));
        assert_eq!(name(Asked { prompt_bytes: 2_000, ..critical }).0, 3);
        assert_eq!(name(Asked { prompt_bytes: 2_001, ..critical }).0, 4);
        assert_eq!(name(Asked { has_picture: true, prompt_bytes: 1_500, ..PLAIN }).0, 2);
        assert_eq!(name(Asked { has_picture: true, offline: true, ..PLAIN }).0, 1);
        assert!(rules()[..4].iter().all(Rule::has_conditions) && !rules()[4].has_conditions());
        assert_eq!(choose(&[], &PLAIN, || 0), None);
    }

    #[test]
    fn shares_are_kept_and_a_number_stays_with_its_model() {
        let share = |name: &str, share| Share { name: name.to_owned(), share };
        let split = [Rule { models: vec![share("a", 50), share("b", 30), share("c", 20)], ..Rule::default() }];
        let mut chance = Chance::new(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..10_000 {
            let number = chance.next_u64();
            let (_, model) = choose(&split, &PLAIN, || number).unwrap();
            assert_eq!(choose(&split, &PLAIN, || number), Some((1, model)));
            *counts.entry(model).or_insert(0) += 1;
        }
        let near = |model: &str, due: i32| (counts[model] - due).abs() < 200;
        assert!(near("a", 5_000) && near("b", 3_000) && near("c", 2_000), "{counts:?}");
    }
}
