//! What keys, judgement, table, folder and flights promise; each against something plainer.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::flights::{Flights, Part, Waited};
use super::key::{Key, Question, key};
use super::shelf::{Bounds, Entry, Shelf, Standing};
use super::worth::{ANSWER_BYTES_MAX, Asked, Wish, is_cacheable, is_worth};
use super::{Cache, Options, canon, entry};
use crate::body::Body;

/// Twice the same answer in one millisecond: both have one file, which the second must not take away.
#[tokio::test]
async fn the_same_answer_twice_at_once_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        data_dir: dir.path().to_owned(),
        ttl_ms: 60_000,
        stale_ms: 60_000,
        max_bytes: 1024 * 1024,
        min_free: 0,
        shared: false,
    };
    let cache = Cache::open(&options, 0);
    for n in 0..50 {
        cache.put(Key([n; 32]), Bytes::from_static(b"answer"));
        cache.put(Key([n; 32]), Bytes::from_static(b"answer"));
    }
    cache.flush().await;
    for n in 0..50 {
        assert!(cache.get(&Key([n; 32])).await.is_some(), "{n}");
    }
}

fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let mut canon = canon::Canon::default();
    canon.feed(text.as_bytes());
    canon.finish()
}

fn json() -> impl Strategy<Value = Value> {
    let text = proptest::sample::select(vec!["", "a", "b", "a\"b", "\\", "{\"a\":1}", ", ", "ä\n"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(text.clone(), inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Value>()),
        ]
    })
}

/// The same value, its members turned round at every level, blanks between all tokens.
fn other_layout(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .rev()
                .map(|(k, v)| format!("{} :\t{}", Value::from(k.as_str()), other_layout(v)))
                .collect();
            format!("{{ {} }}", members.join(" ,\n"))
        }
        Value::Array(items) => format!("[ {} ]", items.iter().map(other_layout).collect::<Vec<_>>().join(" , ")),
        leaf => format!(" {leaf}\r\n"),
    }
}

proptest! {
    #[test]
    fn layout_does_not_count_and_everything_else_does(a in json(), b in json(), cut in 0..40usize) {
        let text = a.to_string();
        prop_assert_eq!(fingerprint(&text), fingerprint(&other_layout(&a)));
        prop_assert_eq!(fingerprint(&text) == fingerprint(&b.to_string()), a == b);
        let (mut cut_up, at) = (canon::Canon::default(), cut.min(text.len()));
        cut_up.feed(&text.as_bytes()[..at]);
        cut_up.feed(&text.as_bytes()[at..]);
        prop_assert_eq!(cut_up.finish(), fingerprint(&text));
    }
}

#[test]
fn a_name_that_stands_twice_keeps_its_order_and_too_many_members_have_no_fingerprint() {
    assert_ne!(fingerprint(r#"{"a":1,"a":2}"#), fingerprint(r#"{"a":2,"a":1}"#));
    let wide = |n: usize| format!("{{{}}}", (0..n).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
    assert!(fingerprint(&wide(canon::MEMBERS_MAX)).is_some());
    assert!(fingerprint(&wide(canon::MEMBERS_MAX + 1)).is_none());
    let many = format!("[{}]", vec!["{\"a\":1}"; 3 * canon::MEMBERS_MAX].join(","));
    assert!(fingerprint(&many).is_some(), "only what is open at the same time counts");
}

fn question<'a>() -> Question<'a> {
    Question { source: Some("uid:1"), endpoint: "/v1/chat/completions", model: "m", uplinks: "u", headers: b"" }
}

#[test]
fn every_part_of_a_question_separates() {
    let body = Body::from(Bytes::from_static(b"{\"model\":\"m\"}"));
    let of = |question: Question<'_>| key(&question, &body).unwrap().unwrap();
    let all = [
        of(question()),
        of(Question { source: Some("uid:2"), ..question() }),
        of(Question { source: None, ..question() }),
        of(Question { source: Some(""), ..question() }),
        of(Question { endpoint: "/v1/embeddings", ..question() }),
        of(Question { model: "mu", uplinks: "", ..question() }),
        of(Question { uplinks: "v", ..question() }),
        of(Question { headers: b"openai-beta:x\n", ..question() }),
        key(&question(), &Body::from(Bytes::from_static(b"{\"model\":\"n\"}"))).unwrap().unwrap(),
    ];
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "{all:?}");
    assert_eq!(Key::from_hex(&all[0].hex()), Some(all[0]));
}

#[test]
fn only_what_is_answered_the_same_is_cacheable() {
    let usual = Asked {
        endpoint: "/v1/chat/completions",
        temperature_is_zero: true,
        is_health_probe: false,
        wish: Wish::Usual,
    };
    assert!(is_cacheable(&usual));
    assert!(is_cacheable(&Asked { endpoint: "/v1/embeddings", temperature_is_zero: false, ..usual }));
    assert!(!is_cacheable(&Asked { temperature_is_zero: false, ..usual }));
    assert!(is_cacheable(&Asked { temperature_is_zero: false, wish: Wish::On, ..usual }));
    assert!(!is_cacheable(&Asked { wish: Wish::Off, ..usual }));
    assert!(!is_cacheable(&Asked { is_health_probe: true, wish: Wish::On, ..usual }));
}

#[test]
fn only_good_whole_answers_are_worth_keeping() {
    let chat = |body: &str| is_worth("/v1/chat/completions", false, body.as_bytes());
    assert!(chat(r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#));
    assert!(chat(r#"{"choices":[{"message":{"tool_calls":null},"finish_reason":"stop"},{"finish_reason":"stop"}]}"#));
    assert!(chat(r#"{"choices":[{"text":"a","finish_reason":"stop"}]}"#));
    for bad in [
        r#"{"choices":[{"message":{"content":"a"},"finish_reason":"length"}]}"#,
        r#"{"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":"content_filter"}]}"#,
        r#"{"choices":[{"message":{"content":"a"}}]}"#,
        r#"{"choices":[{"message":{"tool_calls":[{"id":"a"}]},"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"message":{"function_call":{"name":"a"}},"finish_reason":"stop"}]}"#,
        r#"{"error":{"message":"no"},"choices":[{"finish_reason":"stop"}]}"#,
        r#"{"choices":[]}"#,
        r#"{"choices":[{"finish_reason":"stop"}"#,
        "",
    ] {
        assert!(!chat(bad), "{bad}");
    }
    assert!(is_worth("/v1/embeddings", false, br#"{"data":[{"embedding":[1.5]}]}"#));
    assert!(!is_worth("/v1/embeddings", false, br#"{"data":[]}"#));
    let large = format!(r#"{{"x":"{}","choices":[{{"finish_reason":"stop"}}]}}"#, "a".repeat(ANSWER_BYTES_MAX));
    assert!(!chat(&large));
}

#[test]
fn only_good_whole_streams_are_worth_keeping() {
    let stream = |events: &[&str]| {
        let text = events.iter().map(|event| ["data: ", event, "\n\n"].concat()).collect::<Vec<_>>().concat();
        is_worth("/v1/chat/completions", true, text.as_bytes())
    };
    let (word, end) =
        (r#"{"choices":[{"delta":{"content":"a"}}]}"#, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#);
    let usage = r#"{"choices":[],"usage":{"total_tokens":3}}"#;
    assert!(stream(&[word, end, usage, "[DONE]"]));
    assert!(!stream(&[word, end]), "no end");
    assert!(!stream(&[word, "[DONE]"]), "no reason");
    assert!(!stream(&["[DONE]", word, end, "[DONE]"]));
    assert!(!stream(&[word, r#"{"error":{"message":"no"}}"#, "[DONE]"]));
    assert!(!stream(&[word, r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#, "[DONE]"]));
    assert!(!stream(&[r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, end, "[DONE]"]));
    assert!(!stream(&[end, r#"{"choices":[{"index":1,"delta":{"content":"b"}}]}"#, "[DONE]"]), "one never ended");
}

const BOUNDS: Bounds = Bounds { ttl_ms: 100, stale_ms: 1000, max_bytes: 5 * 4096, max_entries: 4 };

/// The table again, as a list in the order of use.
#[derive(Default)]
struct Plain(Vec<(Key, Entry)>);

impl Plain {
    fn insert(&mut self, key: Key, entry: Entry) {
        self.0.retain(|(there, _)| *there != key);
        self.0.push((key, entry));
        let blocks = |plain: &Plain| plain.0.iter().map(|(_, entry)| entry.bytes.div_ceil(4096)).sum::<u64>();
        while blocks(self) > 5 || self.0.len() > 4 {
            self.0.remove(0);
        }
    }

    fn look(&self, key: &Key, now_ms: u64) -> Option<Standing> {
        let (_, entry) = self.0.iter().find(|(there, _)| there == key)?;
        let age_ms = now_ms - entry.stored_ms;
        match age_ms {
            0..100 => Some(Standing::Fresh(age_ms)),
            100..=1000 => Some(Standing::Stale(age_ms)),
            _ => None,
        }
    }

    fn touch(&mut self, key: &Key) {
        if let Some(at) = self.0.iter().position(|(there, _)| there == key) {
            let used = self.0.remove(at);
            self.0.push(used);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u8, u64),
    Use(u8),
    Remove(u8),
    Wait(u64),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u8, 0..20_000u64).prop_map(|(key, bytes)| Step::Insert(key, bytes)),
        3 => (0..8u8).prop_map(Step::Use),
        1 => (0..8u8).prop_map(Step::Remove),
        2 => prop_oneof![Just(1), Just(99), Just(100), Just(900), Just(1001)].prop_map(Step::Wait),
        1 => Just(Step::Expire),
    ]
}

proptest! {
    #[test]
    fn the_table_does_what_a_list_does(script in proptest::collection::vec(step(), 1..80)) {
        let (mut shelf, mut plain, mut now_ms) = (Shelf::new(BOUNDS), Plain::default(), 0);
        let mut files: BTreeMap<Key, Entry> = BTreeMap::new();
        for step in script {
            match step {
                Step::Insert(key, bytes) => {
                    let (key, entry) = (Key([key; 32]), Entry { stored_ms: now_ms, bytes, sum: 0 });
                    let gone = shelf.insert(key, entry);
                    plain.insert(key, entry);
                    files.insert(key, entry);
                    for (key, entry) in gone {
                        if files.get(&key) == Some(&entry) && shelf.look(&key, entry.stored_ms).is_none() {
                            files.remove(&key);
                        }
                    }
                }
                Step::Use(key) => {
                    shelf.touch(&Key([key; 32]));
                    plain.touch(&Key([key; 32]));
                }
                Step::Remove(key) => {
                    shelf.remove(&Key([key; 32]));
                    files.remove(&Key([key; 32]));
                    plain.0.retain(|(there, _)| *there != Key([key; 32]));
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Expire => {
                    shelf.expire(now_ms).iter().for_each(|(key, _)| { files.remove(key); });
                    plain.0.retain(|(_, entry)| now_ms - entry.stored_ms <= 1000);
                }
            }
            for key in (0..8).map(|key| Key([key; 32])) {
                prop_assert_eq!(shelf.look(&key, now_ms).map(|(_, standing)| standing), plain.look(&key, now_ms));
            }
            prop_assert_eq!(shelf.len(), plain.0.len());
            prop_assert_eq!(shelf.bytes(), plain.0.iter().map(|(_, e)| e.bytes.div_ceil(4096) * 4096).sum::<u64>());
            prop_assert_eq!(files.len(), shelf.len(), "each that leaves is said, so that its file goes");
        }
    }
}

#[test]
fn a_name_says_all_and_a_changed_one_says_nothing() {
    let (key, entry) = (Key([7; 32]), Entry { stored_ms: 77, bytes: 4242, sum: 99 });
    let name = entry::name(&key, &entry);
    assert_eq!(entry::from_name(&name), Some((key, entry)));
    for at in 0..name.len() {
        let mut other = name.clone().into_bytes();
        other[at] = if other[at] == b'1' { b'2' } else { b'1' };
        assert_eq!(entry::from_name(std::str::from_utf8(&other).unwrap()), None, "changed at {at}");
    }
}

fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        ttl_ms: 60_000,
        stale_ms: 600_000,
        max_bytes: 1 << 20,
        min_free: 0,
        shared: false,
    }
}

async fn found(cache: &Cache, key: Key) -> Option<(Bytes, Standing)> {
    let found = cache.get(&key).await?;
    Some((found.body.whole().await.unwrap(), found.standing))
}

fn files(data_dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(data_dir.join("cache")).unwrap().map(|file| file.unwrap().path()).collect()
}

#[tokio::test]
async fn what_is_kept_outlasts_a_restart_and_ages_in_powered_on_time() {
    let folder = tempfile::tempdir().unwrap();
    let (key, answer) = (Key([1; 32]), Bytes::from_static(b"an answer"));
    let large = Bytes::from(vec![b'x'; 300_000]);
    let cache = Cache::open(&options(folder.path()), 1_000_000);
    cache.put(key, answer.clone());
    cache.put(Key([2; 32]), large.clone());
    assert_eq!(found(&cache, key).await.unwrap().0, answer, "before it is on the disk");
    cache.flush().await;
    assert_eq!(found(&cache, Key([2; 32])).await.unwrap().0, large);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path().join("cache")), mode(&files(folder.path())[0])), (0o700, 0o600));
    drop(cache);
    // The service clock lost a little at a power cut.
    let cache = Cache::open(&options(folder.path()), 990_000);
    assert!(matches!(found(&cache, key).await, Some((bytes, Standing::Fresh(_))) if bytes == answer));
    drop(cache);
    let cache = Cache::open(&options(folder.path()), 1_100_000);
    assert!(matches!(found(&cache, key).await, Some((_, Standing::Stale(age_ms))) if age_ms >= 99_000));
    assert!(!cache.has_fresh(&key));
    drop(cache);
    let cache = Cache::open(&options(folder.path()), 1_700_000);
    cache.flush().await;
    assert!(found(&cache, key).await.is_none() && files(folder.path()).is_empty());
}

#[tokio::test]
async fn a_damaged_or_torn_answer_is_none_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&options(folder.path()), 5);
    let damages: [fn(&Path); 3] = [
        |file| std::fs::write(file, b"an ansWer").unwrap(),
        |file| std::fs::write(file, b"an ans").unwrap(),
        |file| std::fs::remove_file(file).unwrap(),
    ];
    for (n, damage) in damages.iter().enumerate() {
        let key = Key([n as u8; 32]);
        cache.put(key, Bytes::from_static(b"an answer"));
        cache.flush().await;
        damage(&files(folder.path())[0]);
        assert!(found(&cache, key).await.is_none(), "damage {n}");
        assert!(!cache.has_fresh(&key) && cache.size() == (0, 0));
        cache.flush().await;
        assert!(files(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn it_stays_within_its_size_and_can_be_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&options(folder.path()), 5);
    std::fs::write(folder.path().join("cache/stranger"), b"x").unwrap();
    for n in 0..100u8 {
        cache.put(Key([n; 32]), Bytes::from(vec![n; 40_000]));
        cache.flush().await;
    }
    let (entries, bytes) = cache.size();
    assert!(bytes <= 1 << 20 && entries > 20, "{entries} {bytes}");
    assert_eq!(files(folder.path()).len() as u64, entries + 1);
    assert!(found(&cache, Key([99; 32])).await.is_some() && found(&cache, Key([0; 32])).await.is_none());
    assert_eq!(cache.purge().await, entries);
    assert_eq!(files(folder.path()).len(), 1);
    drop(cache);
    drop(Cache::open(&options(folder.path()), 5));
    assert!(files(folder.path()).is_empty(), "what is not ours to keep goes at a start");
    let off = Cache::open(&Options { ttl_ms: 0, ..options(folder.path()) }, 5);
    assert!(!off.is_on() && !folder.path().join("cache").exists());
}

/// The thread before the disk stands still: what it still holds counts, also where a newer answer took its place.
#[tokio::test]
async fn a_disk_that_hangs_holds_no_more_than_its_share_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Cache::open(&options(dir.path()), 0);
    let inner = opened.0.as_ref().unwrap();
    let (jobs, hangs) = std::sync::mpsc::channel();
    let (table, folder) = (inner.table.clone(), inner.folder.clone());
    let reads = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let cache =
        Cache(Some(std::sync::Arc::new(super::Inner { table, folder, jobs, reads, shared: false, time: inner.time })));
    for n in 0..8u8 {
        cache.put(Key([1; 32]), Bytes::from(vec![n; ANSWER_BYTES_MAX]));
    }
    let held = hangs.try_iter().filter(|job| matches!(job, super::disk::Job::Write(..))).count();
    assert_eq!(held * ANSWER_BYTES_MAX, super::PENDING_BYTES_MAX as usize);
}

#[tokio::test]
async fn a_disk_without_room_keeps_nothing_and_a_folder_that_cannot_be_is_off() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&Options { min_free: u64::MAX / 2, ..options(folder.path()) }, 5);
    cache.put(Key([1; 32]), Bytes::from_static(b"a"));
    cache.flush().await;
    assert!(found(&cache, Key([1; 32])).await.is_none() && files(folder.path()).is_empty());
    cache.put(Key([2; 32]), Bytes::from_static(b"a"));
    assert_eq!(cache.size(), (0, 0), "for a while nothing is even tried");
    std::fs::remove_dir(folder.path().join("cache")).unwrap();
    std::fs::write(folder.path().join("cache"), b"a file").unwrap();
    assert!(!Cache::open(&options(folder.path()), 5).is_on());
}

fn lead(part: Part<u8>) -> super::flights::Lead<u8> {
    let Part::Leader(lead) = part else { panic!("somebody leads already") };
    lead
}

fn follow(part: Part<u8>) -> super::flights::Follow<u8> {
    let Part::Follower(follow) = part else { panic!("nobody leads") };
    follow
}

const LONG: Duration = Duration::from_mins(1);

#[tokio::test]
async fn one_leads_the_others_get_what_came_of_it() {
    let flights: Flights<u8> = Flights::default();
    let key = Key([1; 32]);
    let leader = lead(flights.join(key));
    let followers: Vec<_> = (0..10).map(|_| follow(flights.join(key))).collect();
    let _other = lead(flights.join(Key([2; 32])));
    leader.land(7);
    for follower in followers {
        assert_eq!(follower.wait(LONG).await, Waited::Landed(7));
    }
    let again = lead(flights.join(key));
    let follower = follow(flights.join(key));
    drop(again);
    assert_eq!(follower.wait(LONG).await, Waited::Lost);
    let _leader = lead(flights.join(key));
    assert_eq!(follow(flights.join(key)).wait(Duration::ZERO).await, Waited::Late);
}

#[tokio::test]
async fn a_flight_without_followers_ends_and_one_with_them_does_not() {
    let flights: Flights<u8> = Flights::default();
    let key = Key([1; 32]);
    let leader = lead(flights.join(key));
    let follower = follow(flights.join(key));
    assert!(tokio::time::timeout(Duration::from_millis(20), leader.forsaken()).await.is_err());
    drop(follower);
    leader.forsaken().await;
    assert!(flights.is_empty());
    let next = lead(flights.join(key));
    drop(leader);
    assert_eq!(flights.len(), 1, "an earlier leader does not end a later flight");
    drop(next);
    assert!(flights.is_empty());
}
