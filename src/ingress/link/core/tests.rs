//! The rules that need no line: what is refused, what a key's content is, which answer is the result.

use super::tasks::NoTasks;
use super::*;
use crate::spool::record::{Ask, LastError, LocalAnswer, Record, UplinkAnswer};

fn question(user: &str) -> Submission {
    Submission {
        uid: "0a0b0c0d".to_owned(),
        key: DeviceKey::Number(5),
        prio: 2,
        ttl_s: 0,
        flags: 0,
        max_reply: 0,
        op: Op::Chat {
            model: String::new(),
            system: String::new(),
            user: user.to_owned(),
            max_tokens: 0,
            pictures: Vec::new(),
        },
    }
}

#[test]
fn content_is_what_is_asked_and_no_more() {
    let same = Submission { prio: 0, ttl_s: 9, key: DeviceKey::Number(6), ..question("a") };
    assert_eq!(question("a").content(), same.content());
    assert_ne!(question("a").content(), question("b").content());
    assert_ne!(question("a").content(), Submission { flags: NO_RESULT, ..question("a") }.content());
}

#[test]
fn w13_limits_are_refused_with_their_codes() {
    let args = |args: Vec<String>| Submission { op: Op::Task { id: 1, args, pictures: Vec::new() }, ..question("a") };
    assert!(check(&args(vec!["x".repeat(240); 16])).is_ok());
    assert_eq!(check(&args(vec!["x".repeat(241)])).unwrap_err().code, Code::TooLarge);
    assert_eq!(check(&args(vec![String::new(); 17])).unwrap_err().code, Code::TooLarge);
    let upload = |len| Upload { len, crc32: 0, mime: 1, file: None };
    let picture =
        |len| Submission { op: Op::Task { id: 1, args: Vec::new(), pictures: vec![upload(len)] }, ..question("a") };
    assert!(check(&picture(BLOB_BYTES_MAX)).is_ok());
    assert_eq!(check(&picture(BLOB_BYTES_MAX + 1)).unwrap_err().code, Code::TooLarge);
    let pictures = vec![upload(BLOB_BYTES_MAX / 2), upload(BLOB_BYTES_MAX / 2 + 1)];
    let both = Submission { op: Op::Task { id: 1, args: Vec::new(), pictures }, ..question("a") };
    assert_eq!(check(&both).unwrap_err().code, Code::TooLarge, "together they are one upload");
    assert_eq!(check(&Submission { prio: 4, ..question("a") }).unwrap_err().code, Code::Unknown);
    assert_eq!(check(&Submission { flags: 8, ..question("a") }).unwrap_err().code, Code::Unknown);
    assert_eq!(
        check(&Submission { flags: LOCAL_ONLY | UPLINK_ONLY, ..question("a") }).unwrap_err().code,
        Code::BadArguments
    );
}

fn request(ask: Ask, max_reply: u16) -> DeviceRequest {
    DeviceRequest {
        seq: 9,
        id: "req_1".to_owned(),
        uid: "0a0b0c0d".to_owned(),
        key: Some(DeviceKey::Number(5)),
        state: State::Answered,
        reason: None,
        wants_result: true,
        handed_over: false,
        ask,
        content: [0; 32],
        max_reply,
        has_local: false,
        policy: Policy::Both,
    }
}

fn record(state: State) -> Record {
    Record {
        seq: 9,
        id: "req_1".to_owned(),
        state,
        reason: Some("refused".to_owned()),
        source: "link:a".to_owned(),
        label: None,
        endpoint: "/v1/chat/completions".to_owned(),
        model: "m".to_owned(),
        priority: Priority::Normal,
        policy: Policy::Both,
        created_unix_ms: 0,
        ttl_left_ms: 0,
        attempts: 1,
        maybe_billed: false,
        body_bytes: 1,
        body_hash: [0; 32],
        task: None,
        position: 0,
        last_error: None,
        local: None,
        uplink: None,
    }
}

fn said(text: &str) -> String {
    serde_json::json!({"choices": [{"message": {"role": "assistant", "content": text}}]}).to_string()
}

fn by_uplink(name: &str, text: &str) -> (UplinkAnswer, u64) {
    let answer = UplinkAnswer {
        uplink: name.to_owned(),
        model: "m".to_owned(),
        status: 200,
        content_type: "application/json".to_owned(),
        latency_ms: 1,
        usage: None,
        body: said(text).into_bytes().into(),
    };
    (answer, 0)
}

fn told(request: &DeviceRequest, record: &Record) -> (u8, u8, String) {
    let outcome = outcome::of(request, record, &NoTasks).unwrap();
    (outcome.status, outcome.source, String::from_utf8(outcome.text.to_vec()).unwrap())
}

#[test]
fn the_local_answer_stays_the_result_when_an_uplink_answers_later() {
    let answer = LocalAnswer { model: "small".to_owned(), latency_ms: 1, body: said("here").into() };
    let waiting = Record { local: Some((answer, 0)), ..record(State::Queued) };
    assert_eq!(told(&request(Ask::Chat, 0), &waiting), (0, 2, "here".to_owned()));
    let later = Record { state: State::Answered, uplink: Some(by_uplink("cloud", "there")), ..waiting };
    assert_eq!(told(&request(Ask::Chat, 0), &later), (0, 2, "here".to_owned()));
}

#[test]
fn an_uplinks_answer_is_told_with_its_source_and_cut_between_characters() {
    let answered = Record { uplink: Some(by_uplink("cloud", "Nähte")), ..record(State::Answered) };
    assert_eq!(told(&request(Ask::Chat, 0), &answered), (0, 1, "Nähte".to_owned()));
    assert_eq!(told(&request(Ask::Chat, 2), &answered), (4, 1, "N".to_owned()));
    let here = Record { uplink: Some(by_uplink("", "x")), ..record(State::Answered) };
    assert_eq!(told(&request(Ask::Chat, 0), &here), (0, 2, "x".to_owned()));
    let long = Record { uplink: Some(by_uplink("cloud", &"y".repeat(9000))), ..record(State::Answered) };
    assert_eq!(told(&request(Ask::Chat, 0), &long).2.len(), 8192);
    assert_eq!(told(&request(Ask::Raw, 10), &long), (4, 1, "{\"choices\"".to_owned()));
}

#[test]
fn every_other_end_is_told_too() {
    let ask = request(Ask::Chat, 0);
    assert_eq!(told(&ask, &record(State::Expired)), (2, 0, "expired".to_owned()));
    assert_eq!(told(&ask, &record(State::Cancelled)), (3, 0, "cancelled".to_owned()));
    let error = Some(LastError { kind: "unknown".to_owned(), message: String::new() });
    let dead = Record { last_error: error, ..record(State::Dead) };
    assert_eq!(told(&ask, &dead), (1, 0, "unknown".to_owned()));
    assert!(outcome::of(&ask, &record(State::Sending), &NoTasks).is_none());
}
