//! What a request's headers ask for: policy, priority, time to live, waiting, idempotency.
//!
//! Pure reading; unknown words are refused with the words that would have been understood.

use std::str::FromStr;
use std::time::Duration;

use hyper::header::{CACHE_CONTROL, HeaderMap, HeaderName};

use super::refusal::Refusal;
use crate::cache::worth::Wish;
use crate::control::types::{Policy, Priority};

/// How long a caller without a stated time-out is held before it gets a ticket: below the 30 s that simple
/// clients use.
const HOLD_DEFAULT: Duration = Duration::from_secs(25);
/// The longest hold: below the 300 s of proxies and of patient clients.
const HOLD_MAX: Duration = Duration::from_secs(280);
/// Longer than any attempt takes: a client that states more waits for as long as there is something to wait for.
const STATED_MAX: Duration = Duration::from_hours(24);
/// Share of a client's own time-out that is used: the rest is for the way and a commit.
const STATED_SHARE: f64 = 0.9;
/// Longest idempotency key and label that are taken.
const WORD_BYTES_MAX: usize = 255;
/// Longest time to live a request may ask for: 30 days.
const TTL_MAX: Duration = Duration::from_hours(720);

// As names, so that each request looks them up without reading them anew.
const OFFLINE: HeaderName = HeaderName::from_static("x-holdfast-offline");
const PRIORITY: HeaderName = HeaderName::from_static("x-holdfast-priority");
const TTL: HeaderName = HeaderName::from_static("x-holdfast-ttl");
const CACHE: HeaderName = HeaderName::from_static("x-holdfast-cache");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const DEVICE: HeaderName = HeaderName::from_static("x-edge-device");
const READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
const TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");

/// What the headers ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wants {
    /// What it gets while offline.
    pub policy: Policy,
    /// Its place in the backlog.
    pub priority: Priority,
    /// Time to live, where given.
    pub ttl: Option<Duration>,
    /// `Prefer: respond-async`.
    pub respond_async: bool,
    /// `Prefer: wait=N`, no longer than a connection may be held.
    pub wait: Option<Duration>,
    /// How long the connection may be held.
    pub hold: Duration,
    /// `Idempotency-Key`.
    pub idempotency_key: Option<String>,
    /// `X-Edge-Device`, where it holds more than `true`.
    pub label: Option<String>,
    /// `X-Holdfast-Cache`, and `Cache-Control: no-store`.
    pub cache: Wish,
    /// `Cache-Control: no-cache`: a new answer, which may be kept.
    pub anew: bool,
    /// The client's own time-out, where it stated one; some of it is left for the way. All tries together get no more.
    pub stated: Option<Duration>,
}

impl Wants {
    /// Reads the headers.
    pub fn read(headers: &HeaderMap, default_policy: Policy) -> Result<Self, Refusal> {
        let (respond_async, wait) = prefer(headers);
        // Who takes a ticket gets it after that time; who wants an answer gets it, or a ticket, within it.
        let stated = match wait {
            Some(wait) if respond_async => Some(wait.min(HOLD_MAX)),
            Some(wait) => Some(share_of(wait.as_secs_f64())),
            None => stated(headers),
        };
        let (cache, anew) = cache(headers)?;
        Ok(Self {
            policy: word(headers, &OFFLINE)?.unwrap_or(default_policy),
            priority: word(headers, &PRIORITY)?.unwrap_or_default(),
            ttl: ttl(headers)?,
            respond_async,
            wait: wait.map(|wait| wait.min(HOLD_MAX)),
            hold: stated.map_or(HOLD_DEFAULT, |stated| stated.min(HOLD_MAX)),
            idempotency_key: bounded(headers, &IDEMPOTENCY_KEY)?,
            label: bounded(headers, &DEVICE)?.filter(|label| label != "true"),
            cache,
            anew,
            stated,
        })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn invalid(name: &HeaderName, expected: &str) -> Refusal {
    Refusal::bad_field("invalid_header", None::<&str>, format!("header {name}: {expected}"))
}

fn word<T: FromStr<Err = impl std::fmt::Display>>(
    headers: &HeaderMap,
    name: &HeaderName,
) -> Result<Option<T>, Refusal> {
    text(headers, name).map(|w| w.parse().map_err(|e: T::Err| invalid(name, &e.to_string()))).transpose()
}

fn bounded(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let value = value.to_str().map_err(|_| invalid(name, "use printable ASCII"))?.trim();
    match value.len() {
        0 => Ok(None),
        1..=WORD_BYTES_MAX => Ok(Some(value.to_owned())),
        _ => Err(invalid(name, "use at most 255 characters")),
    }
}

fn ttl(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let expected = "use seconds or a duration such as 90s, 30m, 72h or 7d, at most 30d";
    let parse = |value: &str| {
        let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match &value[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        let seconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
        (1..=TTL_MAX.as_secs()).contains(&seconds).then(|| Duration::from_secs(seconds))
    };
    text(headers, &TTL).map(|value| parse(value).ok_or_else(|| invalid(&TTL, expected))).transpose()
}

/// RFC 7240; preferences that are not understood are ignored, as it demands.
fn prefer(headers: &HeaderMap) -> (bool, Option<Duration>) {
    let mut respond_async = false;
    let mut wait = None;
    let values = headers.get_all(&PREFER).iter().filter_map(|v| v.to_str().ok());
    for preference in values.flat_map(|v| v.split([',', ';'])).map(str::trim) {
        if preference.eq_ignore_ascii_case("respond-async") {
            respond_async = true;
        } else if let Some(("wait", seconds)) = preference.split_once('=') {
            wait = seconds.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    (respond_async, wait)
}

fn stated(headers: &HeaderMap) -> Option<Duration> {
    let stated = [&READ_TIMEOUT, &TIMEOUT].into_iter().find_map(|name| {
        let seconds: f64 = text(headers, name)?.parse().ok()?;
        (seconds.is_finite() && seconds > 0.0).then_some(seconds)
    });
    stated.map(share_of)
}

/// What is used of so many seconds.
fn share_of(seconds: f64) -> Duration {
    Duration::from_secs_f64((seconds * STATED_SHARE).min(STATED_MAX.as_secs_f64()))
}

/// What may come from the cache, and whether it must be new. Whoever refuses is heard before whoever asks for it.
fn cache(headers: &HeaderMap) -> Result<(Wish, bool), Refusal> {
    let asked = match text(headers, &CACHE) {
        None | Some("") => Wish::Usual,
        Some(word) if word.eq_ignore_ascii_case("on") => Wish::On,
        Some(word) if word.eq_ignore_ascii_case("off") => Wish::Off,
        Some(_) => return Err(invalid(&CACHE, "use on or off")),
    };
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    let words: Vec<String> = values.flat_map(|v| v.split(',')).map(|word| word.trim().to_ascii_lowercase()).collect();
    let says = |wanted: &[&str]| words.iter().any(|word| wanted.contains(&word.as_str()));
    let wish = if says(&["no-store"]) { Wish::Off } else { asked };
    Ok((wish, says(&["no-cache", "max-age=0"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<Wants, Refusal> {
        let headers = pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        Wants::read(&headers, Policy::Both)
    }

    #[test]
    fn without_headers_it_is_ordinary() {
        let wants = read(&[]).unwrap();
        assert_eq!((wants.policy, wants.priority, wants.hold), (Policy::Both, Priority::Normal, HOLD_DEFAULT));
        assert!(!wants.respond_async && wants.idempotency_key.is_none());
    }

    #[test]
    fn reads_every_header() {
        let wants = read(&[
            ("x-holdfast-offline", "queue"),
            ("x-holdfast-priority", "critical"),
            ("x-holdfast-ttl", "2h"),
            ("prefer", "respond-async, wait=3"),
            ("idempotency-key", "k1"),
            ("x-edge-device", "cam-7"),
        ])
        .unwrap();
        assert_eq!((wants.policy, wants.priority), (Policy::Queue, Priority::Critical));
        assert_eq!(wants.ttl, Some(Duration::from_hours(2)));
        assert_eq!((wants.respond_async, wants.wait), (true, Some(Duration::from_secs(3))));
        assert_eq!(wants.label.as_deref(), Some("cam-7"));
    }

    #[test]
    fn a_client_that_states_its_time_out_is_held_below_it() {
        let hold = |v| read(&[("x-stainless-read-timeout", v)]).unwrap().hold;
        assert_eq!(hold("10"), Duration::from_secs(9));
        assert_eq!(hold("600"), HOLD_MAX);
        assert_eq!(hold("-1"), HOLD_DEFAULT);
        let patient = read(&[("prefer", "respond-async, wait=99999999999")]).unwrap();
        assert_eq!((patient.wait, patient.hold), (Some(HOLD_MAX), HOLD_MAX));
    }

    #[test]
    fn what_a_client_states_is_used_up_to_nine_tenths() {
        let stated = |name, value| read(&[(name, value)]).unwrap().stated;
        assert_eq!(stated("prefer", "wait=10"), Some(Duration::from_secs(9)));
        assert_eq!(stated("x-stainless-read-timeout", "600"), Some(Duration::from_mins(9)), "longer than a hold");
        assert_eq!(stated("prefer", "wait=99999999999"), Some(STATED_MAX));
        assert_eq!(stated("prefer", "respond-async, wait=10"), Some(Duration::from_secs(10)));
        assert_eq!(read(&[]).unwrap().stated, None);
    }

    #[test]
    fn whoever_refuses_the_cache_is_heard() {
        let cache = |pairs: &[(&'static str, &'static str)]| read(pairs).map(|wants| (wants.cache, wants.anew));
        assert_eq!(cache(&[]).unwrap(), (Wish::Usual, false));
        assert_eq!(cache(&[("x-holdfast-cache", "On")]).unwrap(), (Wish::On, false));
        assert_eq!(
            cache(&[("cache-control", "max-age=5, No-Store"), ("x-holdfast-cache", "on")]).unwrap().0,
            Wish::Off
        );
        assert_eq!(cache(&[("cache-control", "no-cache")]).unwrap(), (Wish::Usual, true));
        assert!(cache(&[("x-holdfast-cache", "yes")]).is_err());
    }

    #[test]
    fn a_wrong_word_names_the_right_ones() {
        let refusal = read(&[("x-holdfast-priority", "urgent")]).unwrap_err();
        assert!(String::from_utf8(refusal.json().to_vec()).unwrap().contains("critical, high, normal, low"));
        assert!(read(&[("x-holdfast-ttl", "forever")]).is_err());
        assert_eq!(read(&[("x-edge-device", "true")]).unwrap().label, None);
    }
}
