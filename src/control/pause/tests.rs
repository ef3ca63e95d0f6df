//! Pauses: shut routes and their trials, of uplinks with one key and with several.

use super::*;

#[test]
fn a_bad_key_shuts_the_uplink_and_one_trial_opens_it() {
    let mut pauses = Pauses::default();
    assert_eq!(pauses.shut((0, 0), "a", Block::Key, 0), Some(60_000));
    assert_eq!(pauses.gate(0, "b", 59_999), Gate::Shut { until_ms: 60_000 });
    assert_eq!(pauses.gate(1, "a", 0), Gate::Open);
    assert_eq!(pauses.gate(0, "b", 60_000), Gate::Trial);
    pauses.begin_trial((0, 0), "b");
    assert!(matches!(pauses.gate(0, "b", 60_000), Gate::Shut { .. }));
    assert!(pauses.open((0, 0), "b").route);
    assert_eq!(pauses.gate(0, "a", 60_001), Gate::Open);
}

#[test]
fn trials_become_rarer() {
    let mut pauses = Pauses::default();
    let mut now = 0;
    let mut minutes = Vec::new();
    for _ in 0..7 {
        pauses.shut((0, 0), "a", Block::Key, now);
        let Gate::Shut { until_ms } = pauses.gate(0, "a", now) else { panic!("it is open") };
        minutes.push((until_ms - now) / 60_000);
        now = until_ms;
        pauses.begin_trial((0, 0), "a");
    }
    assert_eq!(minutes, [1, 2, 5, 15, 30, 30, 30]);
}

#[test]
fn an_unknown_model_shuts_only_itself() {
    let mut pauses = Pauses::default();
    pauses.shut((0, 0), "a", Block::Configuration, 0);
    assert_eq!(pauses.gate(0, "b", 1), Gate::Open);
    assert!(matches!(pauses.gate(0, "a", 1), Gate::Shut { .. }));
}

#[test]
fn a_trial_that_fails_for_another_reason_is_over_all_the_same() {
    let mut pauses = Pauses::default();
    pauses.shut((0, 0), "a", Block::Key, 0);
    pauses.begin_trial((0, 0), "a");
    pauses.shut((0, 0), "a", Block::Configuration, 60_000);
    assert_eq!(pauses.gate(0, "b", 60_001), Gate::Trial);
    pauses.begin_trial((0, 0), "a");
    pauses.shut((0, 0), "a", Block::Key, 120_000);
    assert!(pauses.open((0, 0), "b").route);
    assert_eq!(pauses.gate(0, "a", 240_000), Gate::Trial);
}

#[test]
fn one_alarm_for_a_pause_whatever_its_trials_say() {
    let mut pauses = Pauses::default();
    let mut now = 0;
    let mut alarms = 0;
    for _ in 0..7 {
        alarms += u32::from(pauses.shut((0, 0), "a", Block::Quota, now).is_some());
        now += 1_800_000;
        pauses.begin_trial((0, 0), "a");
    }
    assert_eq!(alarms, 1);
    assert!(pauses.shut((0, 0), "a", Block::Key, now).is_some(), "another reason is news");
}

#[test]
fn a_refused_probe_shuts_the_key_and_a_good_one_opens_it() {
    let mut pauses = Pauses::default();
    assert_eq!(pauses.key_probed((0, 0), true, 0), News::Shut(60_000));
    assert_eq!(pauses.gate(0, "a", 60_000), Gate::Trial, "one request proves it: the probe may be wrong");
    pauses.begin_trial((0, 0), "a");
    assert_eq!(pauses.shut((0, 0), "a", Block::Key, 60_000), None);
    assert!(matches!(pauses.gate(0, "a", 500_000), Gate::Shut { .. }), "from then on probes tell");
    assert_eq!(pauses.key_probed((0, 0), false, 500_000), News::Opened);
    assert_eq!(pauses.gate(0, "a", 500_000), Gate::Open);
}

#[test]
fn a_probe_that_lies_about_the_key_is_not_believed_again() {
    let mut pauses = Pauses::default();
    pauses.key_probed((0, 0), true, 0);
    pauses.begin_trial((0, 0), "a");
    assert!(pauses.open((0, 0), "a").route);
    assert_eq!(pauses.key_probed((0, 0), true, 90_000), News::None);
    assert_eq!(pauses.gate(0, "a", 90_000), Gate::Open);
}

#[test]
fn a_probe_that_fails_before_its_trial_is_due_postpones_nothing() {
    let mut pauses = Pauses::default();
    assert_eq!(pauses.tls_probed(0, Block::Tls, 0), News::Shut(60_000));
    assert_eq!(pauses.tls_probed(0, Block::Tls, 30_000), News::None);
    assert_eq!(pauses.probe_due_ms(0), Some(60_000));
    assert_eq!(pauses.tls_probed(0, Block::Tls, 60_000), News::None);
    assert_eq!(pauses.probe_due_ms(0), Some(180_000), "one that was the trial does");
}

#[test]
fn pauses_survive_a_restart_and_wait_no_longer_than_before() {
    let mut pauses = Pauses::default();
    pauses.shut((0, 0), "a", Block::Configuration, 5_000);
    pauses.shut((1, 0), "a", Block::Quota, 5_000);
    let kept = pauses.to_keep().unwrap();
    assert_eq!(pauses.to_keep(), None);
    let mut after = Pauses::default();
    after.restore(kept, 0);
    assert_eq!(after.gate(0, "a", 59_999), Gate::Shut { until_ms: 60_000 });
    assert_eq!(after.gate(0, "b", 0), Gate::Open);
    assert_eq!(after.gate(1, "b", 60_000), Gate::Trial);
    assert_eq!(after.shut((1, 0), "b", Block::Quota, 70_000), None, "its alarm was raised before");
}

#[test]
fn the_list_of_models_is_bounded() {
    let mut pauses = Pauses::default();
    for n in 0..1000 {
        pauses.shut((0, 0), &format!("m{n}"), Block::Configuration, 0);
    }
    assert!(pauses.routes.len() <= PAUSED_ROUTES_MAX + 1);
}

/// One uplink with two keys.
fn two_keys() -> Pauses {
    Pauses::new([2].into_iter())
}

#[test]
fn a_key_shuts_alone_and_the_uplink_with_its_last_one() {
    let mut pauses = two_keys();
    pauses.shut((0, 0), "a", Block::Quota, 0);
    assert_eq!(pauses.gate(0, "a", 1), Gate::Open);
    assert_eq!(pauses.gate_with((0, 0), "a", 1), Gate::Shut { until_ms: 60_000 });
    assert_eq!((pauses.of_uplink(0), pauses.probe_key(0)), (None, 1));
    pauses.shut((0, 1), "a", Block::Key, 5_000);
    assert_eq!(pauses.gate(0, "a", 6_000), Gate::Shut { until_ms: 60_000 });
    assert_eq!((pauses.of_uplink(0), pauses.probe_key(0)), (Some((Block::Quota, 60_000)), 0));
    assert_eq!(pauses.gate(0, "a", 60_000), Gate::Trial);
    assert_eq!(pauses.open((0, 0), "a"), Opened { route: false, key: true });
    assert_eq!(pauses.gate(0, "a", 60_001), Gate::Open);
}

#[test]
fn a_model_that_one_key_may_not_use_is_open_with_another() {
    let mut pauses = two_keys();
    pauses.shut((0, 0), "a", Block::Configuration, 0);
    assert_eq!((pauses.gate(0, "a", 1), pauses.gate_with((0, 0), "b", 1)), (Gate::Open, Gate::Open));
    assert!(matches!(pauses.gate_with((0, 0), "a", 1), Gate::Shut { .. }));
    pauses.strike((0, 1), "b", 0);
    assert!(matches!(pauses.gate(0, "b", 1), Gate::Shut { .. }), "what refuses every request is no matter of keys");
}

#[test]
fn of_several_keys_a_request_tries_the_one_that_probes_refuse() {
    let mut pauses = two_keys();
    assert_eq!(pauses.key_probed((0, 0), true, 0), News::Shut(60_000));
    pauses.shut((0, 0), "a", Block::Key, 1_000);
    assert_eq!(pauses.gate_with((0, 0), "a", 60_000), Gate::Trial);
    assert_eq!(pauses.probe_at_ms(0, 60_000), None, "probes go on with the other key");
    pauses.key_probed((0, 1), true, 60_000);
    assert_eq!(pauses.probe_at_ms(0, 60_000), Some(120_000), "with none left they are as rare as trials");
    assert_eq!(pauses.key_probed((0, 0), false, 60_000), News::Opened);
}

#[test]
fn a_key_stays_shut_over_a_restart() {
    let mut pauses = two_keys();
    pauses.shut((0, 1), "a", Block::Quota, 5_000);
    let mut after = two_keys();
    after.restore(pauses.list(), 0);
    assert_eq!(after.of_key((0, 1)), Some((Block::Quota, 60_000)));
    assert_eq!(after.of_key((0, 0)), None);
}
