//! Lines byte by byte as they are promised, and what a conversation promises.

use holdfast_wire::Code;

use super::line::{self, Content, Said};
use super::message::{self, Asked, Parted, Told};
use super::session::{Deed, Found, OFFER_MS, Offer, Options, Session};

fn read(line: &str) -> Asked {
    message::read(&line::parse(line.as_bytes(), true).unwrap()).unwrap()
}

fn said(told: &Told) -> String {
    String::from_utf8(told.line(false)).unwrap()
}

fn fresh(options: Options) -> Session {
    Session::new(options, String::new())
}

fn nio() -> Offer {
    Offer { request: 4711, key: "815-5".to_owned(), about: (0, 1, -2), text: "NIO: Pore".to_owned() }
}

/// Nobody edits these: PLCs in the field speak them.
#[test]
fn vectors_of_version_1() {
    assert_eq!(read("$HLO,1,S7-1214-03,815*8B1A"), Asked::Hello { uid: "S7-1214-03".to_owned() });
    let submit = Asked::Submit {
        key: "815-5".to_owned(),
        prio: 1,
        ttl_s: 86_400,
        task: 12,
        args: vec!["Naht 7".to_owned(), "23.5".to_owned()],
    };
    assert_eq!(read("$SUB,815-5,1,86400,12,Naht 7,23.5*3682"), submit);
    assert_eq!(read("$RAK,815-5,1*62EA"), Asked::ResultAck { key: "815-5".to_owned(), part: 1 });
    assert_eq!(read("$QRY,815-5*5FD3"), Asked::Query { key: "815-5".to_owned() });
    assert_eq!(read("$CAN,815-5*E721"), Asked::Cancel { key: "815-5".to_owned() });
    assert_eq!(read("$PNG,1*259E"), Asked::Ping { nonce: 1 });
    let key = || "815-5".to_owned();
    assert_eq!(said(&Told::Hello(7, 2, 1_795_200_000)), "$HLA,1,7,2,1795200000*4C03\r\n");
    assert_eq!(said(&Told::Ack(key(), 4711, false)), "$ACK,815-5,4711,0*257F\r\n");
    assert_eq!(said(&Told::Ack(key(), 4711, true)), "$ACK,815-5,4711,1*E5BE\r\n");
    assert_eq!(said(&Told::Nak("815-6".to_owned(), Code::StorageFull, 30)), "$NAK,815-6,7,30*DEC0\r\n");
    assert_eq!(said(&Told::State(key(), 2, 3, 90)), "$STA,815-5,2,3,90*C655\r\n");
    assert_eq!(said(&Told::Pong(1, 7, 2, 1_795_200_000)), "$PON,1,7,2,1795200000*C557\r\n");
    let result = Parted::new("815-5", (0, 1, -2), "NIO: Pore", 240, false);
    assert_eq!(result.line(1), b"$RES,815-5,0,1,-2,1/1,NIO: Pore*E265\r\n");
}

#[test]
fn what_is_wrong_with_a_line_has_a_code() {
    let code = |content: &str| {
        let line = line::framed(content, false);
        message::read(&line::parse(line.trim_ascii_end(), true).unwrap()).map_err(|wrong| (wrong.key, wrong.code))
    };
    let refused = |key: &str, code| Err((key.to_owned(), code));
    assert_eq!(code("HLO,2,x,0"), refused("", Code::Version));
    assert_eq!(code("SUB,a_b,1,0,12"), refused("", Code::BadPayload));
    assert_eq!(code(&format!("SUB,{},1,0,12", "9".repeat(21))), refused("", Code::BadPayload));
    assert_eq!(code("SUB,a,1,0"), refused("a", Code::BadPayload));
    assert_eq!(code("SUB,a,-1,0,12"), refused("a", Code::BadPayload));
    assert_eq!(code("SUB,a,1,0,+12"), refused("a", Code::BadPayload));
    assert_eq!(code("SUB,a,1,0,65536"), refused("a", Code::BadPayload));
    assert_eq!(code(&format!("SUB,a,1,0,12{}", ",x".repeat(17))), refused("a", Code::TooLarge));
    assert_eq!(code("FOO,a"), refused("", Code::Unknown));
    assert_eq!(code("SUB,a,1,0,12,%zz"), refused("a", Code::BadPayload));
    assert_eq!(code("SUB,a,1,0,12,x%2"), refused("a", Code::BadPayload));
    assert_eq!(code("SUB,%zz,1,0,12"), refused("", Code::BadPayload));
    assert!(code("SUB,a,1,0,12,%2C%24").is_ok());
}

#[test]
fn json_says_the_same() {
    let json = r#"{"SUB": {"key": "815-5", "prio": 1, "ttl": 86400, "task": 12, "args": ["Naht 7", 23.5]}}"#;
    let content = Content { said: Said::Json(json.to_owned()), fault: None };
    assert_eq!(message::read(&content).unwrap(), read("$SUB,815-5,1,86400,12,Naht 7,23.5*3682"));
    let mut session = fresh(Options { needs_crc: false, ..Options::default() });
    let deeds = session.receive(format!("{json}\n").as_bytes(), 0);
    assert!(matches!(deeds.as_slice(), [Deed::Store { .. }]));
    let sent = text(&session.stored("815-5", Ok((4711, false))));
    let (content, _) = sent.split_once('*').unwrap();
    let ack: serde_json::Value = serde_json::from_str(content).unwrap();
    assert_eq!(ack, serde_json::json!({"ACK": {"key": "815-5", "request": 4711, "again": 0}}));
    let long = Offer { text: "a \"quoted\" \\ path\n".repeat(20), ..nio() };
    let sent = text(&session.found("815-5", None, Found::Result(long)));
    assert!(sent.len() <= 240);
    assert!(serde_json::from_str::<serde_json::Value>(sent.rsplit_once('*').unwrap().0).is_ok(), "{sent}");
}

/// Everything that is to be written, as text.
fn text(deeds: &[Deed]) -> String {
    let sent = |deed: &Deed| match deed {
        Deed::Send(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        _ => String::new(),
    };
    deeds.iter().map(sent).collect()
}

#[test]
fn what_would_come_so_again_is_refused_as_it_was_asked() {
    let mut session = fresh(Options::default());
    let mut answer = |content: &str, is_json| text(&session.receive(&line::framed(content, is_json), 0));
    assert!(answer(&format!("SUB,815-5,1,0,12,{}", "x".repeat(300)), false).starts_with("$NAK,815-5,5,0*"));
    let json = |arg: &str| format!(r#"{{"SUB":{{"key":"815-5","task":12,"args":["{arg}"]}}}}"#);
    for (arg, key, code) in [("Näht 7", "815-5", 1), (r"\", "", 1), (&"x".repeat(300), "", 5)] {
        let told = answer(&json(arg), true);
        let nak = serde_json::json!({"NAK": {"key": key, "code": code, "retry": 0}});
        assert_eq!(serde_json::from_str::<serde_json::Value>(told.split_once('*').unwrap().0).unwrap(), nak);
    }
}

#[test]
fn an_echo_of_our_own_is_not_answered() {
    for is_json in [false, true] {
        let mut session = fresh(Options { needs_crc: false, ..Options::default() });
        let wrong: &[u8] = if is_json { b"{\"FOO\": {}}\n" } else { b"$FOO,a*-\r\n" };
        let told = text(&session.receive(wrong, 0));
        assert!(told.contains("NAK"), "{told}");
        assert_eq!((session.receive(told.as_bytes(), 0), session.dropped()), (Vec::new(), 1));
        assert_eq!(session.receive(b"$RES,815-5,0,1,-2,1/1,NIO: Pore*E265\r\n", 0), []);
        assert_eq!(session.dropped(), 2);
    }
}

const QUERY: &[u8] = b"$QRY,815-5*5FD3\r\n";
const TAKEN: &[u8] = b"$RAK,815-5,1*62EA\r\n";
const RESULT: &str = "$RES,815-5,0,1,-2,1/1,NIO: Pore*E265\r\n";

#[test]
fn a_result_is_offered_every_five_seconds_until_it_is_taken() {
    let mut session = fresh(Options::default());
    assert_eq!(session.changed(), [Deed::Look]);
    assert_eq!(session.changed(), [], "one look at a time");
    let offered = session.offer(vec![nio()], 1_000);
    assert_eq!((text(&offered).as_str(), offered.first()), (RESULT, Some(&Deed::Look)), "and no change is missed");
    assert_eq!(session.offer(Vec::new(), 1_001), []);
    assert_eq!(session.deadline_ms(), Some(1_000 + OFFER_MS));
    assert_eq!(session.tick(1_000 + OFFER_MS - 1), []);
    assert_eq!(text(&session.tick(1_000 + OFFER_MS)), RESULT);
    assert_eq!(session.receive(TAKEN, 9_000), [Deed::Taken(4711), Deed::Look]);
    // The spool may still name it while it is being noted down.
    assert_eq!((session.offer(vec![nio()], 9_001), session.deadline_ms()), (Vec::new(), None));
    assert_eq!(session.taken(4711, true, 9_002), [Deed::Look]);
    // The PLC may have missed that it was noted down.
    assert_eq!(session.receive(TAKEN, 9_500), [Deed::Find("815-5".to_owned(), Some(1))]);
    assert_eq!(session.found("815-5", Some(1), Found::Result(nio())), [Deed::Taken(4711)]);
}

#[test]
fn a_result_whose_note_failed_is_offered_again_and_not_at_full_speed() {
    let mut session = fresh(Options::default());
    assert_eq!(text(&session.offer(vec![nio()], 1_000)), RESULT);
    assert_eq!(session.receive(TAKEN, 2_000), [Deed::Taken(4711), Deed::Look]);
    session.offer(Vec::new(), 2_001);
    assert_eq!(session.taken(4711, false, 2_100), [Deed::Look]);
    assert_eq!(text(&session.offer(vec![nio()], 2_101)), "", "not at once");
    assert_eq!(session.deadline_ms(), Some(2_100 + OFFER_MS));
    assert_eq!(text(&session.tick(2_100 + OFFER_MS)), RESULT);
}

#[test]
fn without_push_a_result_comes_only_when_it_is_asked_for() {
    let mut session = fresh(Options { push: false, ..Options::default() });
    assert_eq!((session.changed(), session.deadline_ms()), (Vec::new(), None));
    assert_eq!(session.receive(QUERY, 0), [Deed::Find("815-5".to_owned(), None)]);
    assert_eq!(text(&session.found("815-5", None, Found::Waits(2, 3, 90))), "$STA,815-5,2,3,90*C655\r\n");
    assert!(text(&session.found("815-5", None, Found::Unknown)).starts_with("$NAK,815-5,8,0*"));
    assert_eq!(text(&session.found("815-5", None, Found::Result(nio()))), RESULT);
    assert_eq!((session.tick(60_000), session.deadline_ms()), (Vec::new(), None));
    assert_eq!(session.receive(TAKEN, 60_000), [Deed::Taken(4711)]);
}

#[test]
fn a_long_result_comes_in_parts_that_are_taken_one_by_one() {
    let mut session = fresh(Options { line_max: 80, ..Options::default() });
    let words = "Grösse $5, 100 % * ok\n".repeat(6);
    let long = Offer { text: words.clone(), ..nio() };
    let mut sent = text(&session.offer(vec![long], 0));
    let (mut said, mut part) = (String::new(), 1);
    loop {
        assert!(sent.len() <= 80 && sent.is_ascii(), "{sent}");
        let read = line::parse(sent.trim_end().as_bytes(), true).map(|content| content.said);
        let Some(Said::Fields(fields)) = read else { panic!("{sent}") };
        let (number, all) = fields[5].split_once('/').unwrap();
        assert_eq!(number, part.to_string());
        said += &fields[6];
        let deeds = session.receive(&line::framed(&format!("RAK,815-5,{part}"), false), 100);
        if number == all {
            assert_eq!(deeds, [Deed::Taken(4711), Deed::Look]);
            break;
        }
        sent = text(&deeds);
        part += 1;
    }
    assert_eq!(said, words.replace('ö', "oe"));
    assert!(part > 2);
}

#[test]
fn a_result_that_nobody_takes_holds_up_no_other() {
    let mut session = fresh(Options::default());
    let other = Offer { request: 4712, key: "815-6".to_owned(), ..nio() };
    assert_eq!(text(&session.offer(vec![nio(), other], 0)), RESULT);
    assert!(text(&session.tick(OFFER_MS)).starts_with("$RES,815-6,"));
    assert_eq!(text(&session.tick(2 * OFFER_MS)), RESULT);
}

#[test]
fn a_repeat_of_what_is_being_stored_is_stored_once() {
    let mut session = fresh(Options::default());
    let submit = b"$SUB,815-5,1,86400,12,Naht 7,23.5*3682\r\n";
    assert!(matches!(session.receive(submit, 0).as_slice(), [Deed::Store { .. }]));
    assert_eq!(session.receive(submit, 3_000), []);
    assert_eq!(text(&session.stored("815-5", Ok((4711, false)))), "$ACK,815-5,4711,0*257F\r\n");
    assert!(matches!(session.receive(submit, 6_000).as_slice(), [Deed::Store { .. }]));
    assert_eq!(text(&session.stored("815-5", Ok((4711, true)))), "$ACK,815-5,4711,1*E5BE\r\n");
    let mut many = fresh(Options::default());
    for n in 0..8 {
        let line = line::framed(&format!("SUB,{n},1,0,12"), false);
        assert!(matches!(many.receive(&line, 0).as_slice(), [Deed::Store { .. }]));
    }
    assert!(text(&many.receive(&line::framed("SUB,8,1,0,12", false), 0)).starts_with("$NAK,8,6,3*"));
}

#[test]
fn another_device_on_the_line_gets_none_of_the_lasts_results() {
    let mut session = fresh(Options::default());
    let _ = session.offer(vec![nio()], 0);
    let deeds = session.receive(b"$HLO,1,S7-1214-03,815*8B1A\r\n", 100);
    assert_eq!((deeds, session.uid()), (vec![Deed::Greet(None), Deed::Look], "S7-1214-03"));
    assert_eq!(session.generation(), 1, "what is under way is the last one's");
    assert_eq!(text(&session.greet(None, 7, 2, 1_795_200_000)), "$HLA,1,7,2,1795200000*4C03\r\n");
    assert_eq!(session.tick(60_000), []);
}
