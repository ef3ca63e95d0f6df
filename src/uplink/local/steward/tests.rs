//! The steward with explicit time: when it looks, warms up, gives up, and what it holds back.

use super::*;

const MODEL: &str = "llama3.2";
const GIB: u64 = 1024 * 1024 * 1024;

fn steward(warm: Warm) -> Steward {
    Steward::new(Settings { warm, max_temperature_c: 80, shares_memory: true }, MODEL)
}

fn has(loaded: Option<u64>) -> Sight {
    let other = Installed { name: "llava:7b".to_owned(), size: Some(4 * GIB), loaded: None };
    Sight::Models(vec![other, Installed { name: "llama3.2:latest".to_owned(), size: Some(2 * GIB), loaded }])
}

fn board(temperature_c: f32, free: u64) -> Reading {
    Reading { temperature_c: Some(temperature_c), memory_available_bytes: free }
}

const FINE: Reading = Reading { temperature_c: None, memory_available_bytes: 8 * GIB };

#[test]
fn it_looks_often_only_while_uplinks_are_bad() {
    let mut steward = steward(Warm::Never);
    assert_eq!(steward.next_look_ms(), 0);
    steward.saw(has(None), FINE, false, 1_000);
    assert_eq!(steward.next_look_ms(), 1_000 + LOOK_IDLE_MS);
    steward.saw(has(None), FINE, true, 10_000);
    assert_eq!(steward.next_look_ms(), 10_000 + SURE_AFTER_MS, "to warm up as soon as it is sure");
    steward.saw(has(None), FINE, true, 12_000);
    assert_eq!(steward.next_look_ms(), 12_000 + LOOK_STRAINED_MS);
    assert!(!steward.is_stale(12_000 + FRESH_MS - 1) && steward.is_stale(12_000 + FRESH_MS));
}

#[test]
fn a_short_doubt_loads_nothing_and_an_outage_does() {
    let mut steward = steward(Warm::Degraded);
    steward.saw(has(None), FINE, true, 0);
    assert_eq!(steward.warm_up(false, 0), None);
    steward.saw(has(None), FINE, false, 1_000);
    steward.saw(has(None), FINE, true, 3_000);
    assert_eq!(steward.warm_up(false, 4_999), None);
    assert_eq!(steward.warm_up(true, 5_000), None, "who is being answered loads it");
    assert_eq!(steward.warm_up(false, 5_000).as_deref(), Some(MODEL));
    assert_eq!(steward.state(), State::Loading);
    assert_eq!(steward.warm_up(false, 6_000), None, "one at a time");
}

#[test]
fn it_is_warmed_again_before_it_cools_down() {
    let mut steward = steward(Warm::Always);
    steward.saw(has(None), FINE, false, 0);
    assert!(steward.warm_up(false, 0).is_some());
    steward.warmed(true, 1_000);
    steward.saw(has(Some(2 * GIB)), FINE, false, 2_000);
    assert_eq!((steward.state(), steward.warm_up(false, 2_000)), (State::Loaded, None));
    assert_eq!(steward.warm_up(false, 1_000 + RENEW_MS - 1), None);
    assert!(steward.warm_up(false, 1_000 + RENEW_MS).is_some());
    // Ollama keeps a model for five minutes after an answer that says nothing about it.
    const { assert!(RENEW_MS < 300_000) };
    steward.warmed(true, 300_000);
    // Somebody's picture pushed it out.
    steward.saw(has(None), FINE, false, 301_000);
    assert_eq!(steward.warm_up(false, 301_000), None);
    assert!(steward.warm_up(false, 300_000 + AGAIN_MS).is_some());
}

#[test]
fn failed_loads_are_tried_again_ever_more_seldom() {
    let mut steward = steward(Warm::Always);
    let mut now_ms = 0;
    let mut waits = Vec::new();
    for _ in 0..8 {
        steward.saw(has(None), FINE, false, now_ms);
        assert!(steward.warm_up(false, now_ms).is_some());
        steward.warmed(false, now_ms);
        let again = (1..=BACK_OFF_MAX_MS / 1_000)
            .map(|s| s * 1_000)
            .find(|wait| steward.warm_up(false, now_ms + wait).is_some())
            .unwrap();
        steward.warmed(false, now_ms + again);
        steward.failures -= 1;
        waits.push(again / 1_000);
        now_ms += again + BACK_OFF_MAX_MS;
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 900, 900, 900]);
}

#[test]
fn never_means_never_and_what_is_not_there_is_not_loaded() {
    let mut never = steward(Warm::Never);
    never.saw(has(None), FINE, true, 0);
    assert_eq!(never.warm_up(false, 1_000_000), None);
    let mut always = steward(Warm::Always);
    assert_eq!(always.warm_up(false, 0), None, "nothing is known yet");
    for sight in [Sight::Answers, Sight::Models(Vec::new()), Sight::Failed(LocalError::Unreachable)] {
        always.saw(sight, FINE, true, 0);
        assert_eq!(always.warm_up(false, 1_000_000), None);
    }
}

#[test]
fn heat_ends_five_degrees_below_its_limit() {
    let mut steward = steward(Warm::Always);
    for (celsius, hot) in [(80.0, false), (80.5, true), (78.0, true), (75.0, true), (74.9, false), (79.0, false)] {
        steward.saw(has(Some(1)), board(celsius, 8 * GIB), true, 0);
        assert_eq!(steward.bar(MODEL).is_some(), hot, "{celsius} °C");
        assert_eq!(steward.state(), if hot { State::TooHot } else { State::Loaded });
    }
    steward.saw(has(None), board(95.0, 8 * GIB), true, 0);
    assert_eq!(steward.warm_up(false, 10_000), None);
    let reason = steward.look().reason.unwrap();
    assert!(reason.contains("95 °C") && reason.contains("below 75 °C"), "{reason}");
    steward.saw(has(None), FINE, true, 0);
    assert_eq!(steward.bar(MODEL), None, "no sensor, no heat");
}

#[test]
fn what_does_not_fit_is_not_asked_and_what_is_loaded_fits() {
    let mut steward = steward(Warm::Always);
    let tight = 2 * GIB + FIT_MARGIN_BYTES;
    steward.saw(has(None), board(40.0, tight), true, 0);
    assert_eq!((steward.look().fits, steward.bar(MODEL)), (Some(true), None));
    assert!(steward.bar("llava:7b").is_some(), "each model by itself");
    steward.saw(has(None), board(40.0, tight - 1), true, 0);
    assert_eq!((steward.look().fits, steward.state()), (Some(false), State::DoesNotFit));
    assert_eq!(steward.warm_up(false, 10_000), None);
    steward.saw(has(Some(2 * GIB)), board(40.0, GIB / 4), true, 0);
    assert_eq!((steward.look().fits, steward.bar(MODEL)), (Some(true), None));
    assert_eq!(steward.bar("llava:7b").map(|e| e.kind()), Some("does_not_fit"), "2.25 GiB for 4.25");
    // Names that the server does not list, memory that cannot be read, memory that is not this board's.
    assert_eq!(steward.bar("unknown"), None);
    steward.saw(has(None), board(40.0, 0), true, 0);
    assert_eq!((steward.look().fits, steward.bar(MODEL)), (None, None));
    steward.settings.shares_memory = false;
    steward.saw(has(None), board(40.0, 1), true, 0);
    assert_eq!((steward.look().fits, steward.bar(MODEL)), (None, None));
}

#[test]
fn a_load_under_way_is_not_mistaken_for_a_lack_of_room() {
    let mut steward = steward(Warm::Always);
    steward.saw(has(None), board(40.0, 3 * GIB), true, 0);
    assert!(steward.warm_up(false, 0).is_some());
    steward.saw(has(None), board(40.0, GIB), true, 0);
    assert_eq!((steward.bar(MODEL), steward.state()), (None, State::Loading));
}

#[test]
fn a_change_is_told_once_in_a_plain_sentence() {
    let mut steward = steward(Warm::Never);
    assert_eq!(steward.news(), None);
    steward.saw(Sight::Failed(LocalError::Unreachable), FINE, false, 0);
    assert_eq!((steward.news(), steward.news()), (Some(State::Unreachable), None));
    assert_eq!(steward.look().reachable, Some(false));
    steward.saw(Sight::Models(Vec::new()), FINE, false, 0);
    assert_eq!(steward.news(), Some(State::Missing));
    assert!(steward.look().reason.unwrap().contains("no model `llama3.2`"));
    steward.saw(Sight::Answers, FINE, false, 0);
    assert_eq!((steward.news(), steward.look().loaded, steward.look().reason), (Some(State::Ready), None, None));
}
