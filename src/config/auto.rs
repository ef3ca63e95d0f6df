//! `[[auto]]`: which model a request for `auto` gets.

use super::units::quoted;
use super::walk::Table;
use crate::control::auto::{AUTO, Rule, Share};
use crate::control::types::Priority;

/// Rules that are read one after the other for each request.
const RULES_MAX: usize = 64;

/// All of them, the last one without conditions.
pub(super) fn rules(root: &mut Table<'_>) -> Vec<Rule> {
    let rules = root.tables("auto", 0, rule);
    if rules.len() > RULES_MAX {
        root.fault("auto", format!("has {} rules; at most {RULES_MAX} are read", rules.len()));
    }
    for (index, rule) in rules.iter().enumerate() {
        let is_last = index + 1 == rules.len();
        if is_last && rule.has_conditions() {
            let message = "the last rule must fit every request; add one that names only a model";
            root.member_fault("auto", index, "model", message.to_owned());
        }
        if !is_last && !rule.has_conditions() {
            let message = "this rule fits every request, so the ones after it are never read; put it last";
            root.member_fault("auto", index, "model", message.to_owned());
        }
    }
    rules
}

fn rule(t: &mut Table<'_>) -> Rule {
    let flag = |t: &mut Table<'_>, name| t.given(name).then(|| t.flag(name, false));
    let bytes = |t: &mut Table<'_>, name| t.given(name).then(|| t.size(name, "0", 0));
    for name in ["has_picture", "prompt_bytes_min", "prompt_bytes_max", "priority", "offline"] {
        t.ask(name);
    }
    let rule = Rule {
        has_picture: flag(t, "has_picture"),
        prompt_bytes_min: bytes(t, "prompt_bytes_min"),
        prompt_bytes_max: bytes(t, "prompt_bytes_max"),
        priority: t.given("priority").then(|| t.word("priority", Priority::Normal)),
        offline: flag(t, "offline"),
        models: models(t),
    };
    if rule.prompt_bytes_min > rule.prompt_bytes_max && rule.prompt_bytes_max.is_some() {
        t.fault("prompt_bytes_min", "is larger than prompt_bytes_max, so the rule fits nothing");
    }
    rule
}

/// One model, or several with their shares.
fn models(t: &mut Table<'_>) -> Vec<Share> {
    let one = t.optional("model", model_name).map(|name| Share { name, share: 1 });
    let several = t.tables("models", 0, |t| Share {
        name: t.parsed("name", "", "a model's name in quotes", model_name).unwrap_or_default(),
        share: t.count("share", 1, 1..=1_000_000),
    });
    if one.is_none() && several.is_empty() && !t.given("model") {
        t.fault_here("names no model; write model = \"…\" or models = [{ name = \"…\", share = 50 }, …]".to_owned());
    } else if one.is_some() && !several.is_empty() {
        t.fault("models", "stands beside model; write one of them");
    }
    if several.is_empty() { one.into_iter().collect() } else { several }
}

fn model_name(text: &str) -> Result<String, String> {
    match text {
        "" => Err("may not be empty; write the model's name".to_owned()),
        AUTO => Err(format!("{} cannot stand for itself; name a model", quoted(AUTO))),
        name => Ok(name.to_owned()),
    }
}
