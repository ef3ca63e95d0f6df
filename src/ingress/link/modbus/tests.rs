//! Modbus byte by byte as it is promised, and what registers and framing promise.

use proptest::prelude::*;

use super::frame::{FRAME_MAX, Frame, Framer, HEADER_BYTES, header, rtu, tcp};
use super::unit::{Deed, Order, Shown, Unit};
use crate::ingress::link::WordOrder;

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

const SUBMIT: &str =
    "11 10 00 00 00 0C 18 00 06 00 0C 00 01 00 01 51 80 00 00 00 01 00 00 41 BC 00 00 00 00 00 00 59 3B";
const SUBMITTED: &str = "11 10 00 00 00 0C C2 9C";
const LOOK: &str = "11 04 03 E8 00 0E F3 2E";
const SEEN: &str = "11 04 1C 00 06 00 00 00 00 12 67 00 02 00 03 00 05 00 00 00 00 00 00 00 00 00 00 00 00 00 00 B9 DC";
const TAKE: &str = "11 06 00 78 00 05 CB 40";
const BUSY: &str = "11 90 06 CD C7";

fn ready() -> Unit {
    let mut unit = Unit::new(WordOrder::HighFirst);
    unit.restore(&[]);
    unit
}

/// One question of unit 17 and its answer, as frames.
fn ask(unit: &mut Unit, question: &str) -> (Vec<u8>, Vec<Deed>) {
    let frames = Framer::default().receive(&hex(question));
    assert_eq!((frames.len(), frames[0].unit, frames[0].is_reply), (1, 17, false), "{question}");
    let mut deeds = Vec::new();
    let answer = unit.ask(&frames[0].pdu, &mut deeds);
    (rtu(17, &answer), deeds)
}

fn order() -> Order {
    let args = vec!["23.5".to_owned()];
    Order { slot: 0, seq: 6, task: 12, prio: 1, ttl_s: 86_400, flags: 0, args }
}

fn result(seq: u16, request: u64) -> Shown {
    Shown { seq, request, status: 0, source: 0, code: 0, value: 0.0, text: String::new() }
}

/// Nobody edits these: PLCs in the field speak them.
#[test]
fn vectors_of_version_1() {
    let mut unit = ready();
    let (answer, deeds) = ask(&mut unit, SUBMIT);
    assert_eq!((answer, deeds), (hex(SUBMITTED), vec![Deed::Store(order())]));
    unit.stored(0, 6, Ok(4711));
    unit.progress(0, 4711, 2, 3);
    unit.results(vec![(0, result(5, 4700))]);
    assert_eq!(ask(&mut unit, LOOK).0, hex(SEEN));
    assert_eq!(ask(&mut unit, TAKE), (hex(TAKE), vec![Deed::Taken(4700)]));
    let mut starting = Unit::new(WordOrder::HighFirst);
    assert_eq!(ask(&mut starting, SUBMIT), (hex(BUSY), Vec::new()));
}

fn write(unit: &mut Unit, from: u16, values: &[u16]) -> (Vec<u8>, Vec<Deed>) {
    let mut pdu = vec![16];
    pdu.extend_from_slice(&from.to_be_bytes());
    pdu.extend_from_slice(&(values.len() as u16).to_be_bytes());
    pdu.push(values.len() as u8 * 2);
    for value in values {
        pdu.extend_from_slice(&value.to_be_bytes());
    }
    let mut deeds = Vec::new();
    (unit.ask(&pdu, &mut deeds), deeds)
}

fn read(unit: &mut Unit, from: u16, count: u16) -> Vec<u16> {
    let mut pdu = vec![4];
    pdu.extend_from_slice(&from.to_be_bytes());
    pdu.extend_from_slice(&count.to_be_bytes());
    let answer = unit.ask(&pdu, &mut Vec::new());
    assert_eq!(answer[0], 4, "{answer:?}");
    answer[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn a_bell_that_rings_again_is_the_same_request() {
    let mut unit = ready();
    assert_eq!(write(&mut unit, 0, &[6, 12, 1]).1.len(), 1);
    assert_eq!(write(&mut unit, 0, &[6, 12, 1]).1, [], "on its way to the disk");
    assert_eq!(read(&mut unit, 1000, 2), [0, 0], "not durable yet");
    assert_eq!(write(&mut unit, 0, &[7, 12, 1]), (vec![0x90, 6], Vec::new()), "one at a time");
    unit.stored(0, 6, Ok(4711));
    assert_eq!(read(&mut unit, 1000, 6), [6, 0, 0, 4711, 2, 0]);
    assert_eq!(write(&mut unit, 0, &[6, 12, 1]).1, [], "stored already");
    assert_eq!(write(&mut unit, 0, &[7, 12, 1]).1.len(), 1);
    unit.stored(0, 7, Err(7));
    assert_eq!(read(&mut unit, 1000, 2), [6, 7], "refused: the code, and the last that is durable");
    assert_eq!(write(&mut unit, 0, &[7, 12, 1]).1.len(), 1, "what was refused may be asked again");
    assert_eq!(read(&mut unit, 1001, 1), [0]);
}

#[test]
fn after_a_restart_the_mailbox_knows_its_last_number() {
    let mut unit = Unit::new(WordOrder::HighFirst);
    assert_eq!(write(&mut unit, 0, &[6]).0, [0x90, 6], "nothing is known yet");
    unit.restore(&[(0, 6, 4711), (3, 65_535, 4800)]);
    assert_eq!(write(&mut unit, 0, &[6, 12]).1, []);
    assert_eq!((read(&mut unit, 1000, 1), read(&mut unit, 1768, 1)), (vec![6], vec![65_535]));
    assert_eq!(unit.open(), [(0, 4711), (3, 4800)]);
    unit.progress(0, 4711, 4, 0);
    assert_eq!(unit.open(), [(3, 4800)]);
}

#[test]
fn an_old_acknowledgement_takes_no_new_result() {
    let mut unit = ready();
    unit.results(vec![(1, result(6, 11))]);
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [Deed::Taken(11)]);
    unit.noted(11, true);
    // Named once more by a look that began before that was noted down: it is taken already.
    unit.results(vec![(1, result(6, 11))]);
    assert_eq!(unit.taken(), [11]);
    unit.noted(11, true);
    unit.results(vec![(1, result(6, 12))]);
    assert_eq!((unit.taken(), read(&mut unit, 1262, 1)), (Vec::new(), vec![6]));
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [Deed::Taken(12)]);
}

/// A master writes its acknowledgement once, however long the disk needs for it.
#[test]
fn what_could_not_be_noted_down_is_tried_again_without_the_master() {
    let mut unit = ready();
    unit.results(vec![(1, result(6, 11))]);
    assert_eq!(unit.taken(), [0; 0], "nobody took it yet");
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [Deed::Taken(11)]);
    assert_eq!(unit.taken(), [0; 0], "it is under way");
    unit.noted(11, false);
    assert_eq!(unit.taken(), [11]);
    assert_eq!(unit.taken(), [0; 0]);
    unit.noted(11, true);
    unit.results(vec![(1, result(7, 12))]);
    assert_eq!((unit.taken(), read(&mut unit, 1262, 1)), (Vec::new(), vec![7]));
}

#[test]
fn a_result_is_shown_until_it_is_taken_and_then_the_next() {
    let mut unit = ready();
    let first = Shown { status: 0, source: 1, code: -2, value: 0.5, text: "NIO: Pöre".to_owned(), ..result(6, 11) };
    let both = vec![(1, first), (1, result(7, 12)), (9, result(1, 13))];
    unit.results(both.clone());
    let shown = read(&mut unit, 1262, 12);
    assert_eq!(shown[..8], [6, 0, 1, 0xFFFF, 0xFFFE, 0x3F00, 0, 10]);
    assert_eq!(shown[8..], [0x4E49, 0x4F3A, 0x2050, 0x6F65]);
    assert_eq!(write(&mut unit, 256 + 120, &[5]).1, [], "another number takes nothing");
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [Deed::Taken(11)]);
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [], "it is being noted down already");
    assert_eq!(read(&mut unit, 1262, 1), [6], "until that is durable");
    unit.noted(11, false);
    assert_eq!(write(&mut unit, 256 + 120, &[6]).1, [Deed::Taken(11)], "it could not be");
    unit.noted(11, true);
    assert_eq!(read(&mut unit, 1262, 1), [0]);
    unit.results(vec![both[1].clone()]);
    assert_eq!(read(&mut unit, 1262, 1), [7]);
    let long = Shown { text: "x".repeat(300), ..result(8, 14) };
    unit.results(vec![(2, long)]);
    assert_eq!(read(&mut unit, 1518, 8), [8, 4, 0, 0, 0, 0, 0, 220]);
}

#[test]
fn words_may_stand_the_other_way_round() {
    let mut unit = Unit::new(WordOrder::LowFirst);
    unit.restore(&[]);
    let block = [1, 12, 1, 0x5180, 1, 0, 1, 0, 0, 0x41BC];
    let expected = Order { seq: 1, ..order() };
    assert_eq!(write(&mut unit, 0, &block).1, [Deed::Store(expected)]);
    unit.stored(0, 1, Ok(0x0001_0002));
    assert_eq!(read(&mut unit, 1002, 2), [2, 1]);
}

#[test]
fn a_text_comes_behind_the_numbers_in_utf8_or_latin_1() {
    let mut unit = ready();
    let mut block = [0u16; 42];
    (block[0], block[6], block[7], block[8], block[9]) = (1, 1, 4, 0x41BC, 0);
    (block[40], block[41]) = (0x4EE4, 0x6874);
    let args = |deeds: &[Deed]| match deeds {
        [Deed::Store(order)] => order.args.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(args(&write(&mut unit, 0, &block).1), ["23.5", "Näht"]);
    unit.stored(0, 1, Ok(1));
    (block[0], block[40], block[41]) = (2, 0xC3A4, 0x6874);
    assert_eq!(args(&write(&mut unit, 0, &block).1), ["23.5", "äht"]);
}

#[test]
fn a_block_that_makes_no_sense_is_refused_by_its_code() {
    for (place, value, code) in [(6, 17, 1), (7, 161, 1), (2, 300, 1), (5, 256, 1), (8, 0x7FC0, 10)] {
        let mut unit = ready();
        let mut block = [0u16; 10];
        (block[0], block[6], block[place]) = (1, 1, value);
        let (answer, deeds) = write(&mut unit, 0, &block);
        assert_eq!((answer[0], deeds), (16, Vec::new()), "received, and not stored");
        assert_eq!(read(&mut unit, 1000, 2), [0, code], "{place}");
    }
}

#[test]
fn questions_that_make_no_sense_get_their_exception() {
    let mut unit = ready();
    for (question, exception) in [
        ("01 00 00 00 01", 1),
        ("17 00", 1),
        ("03 00 79 00 01", 2),
        ("03 00 78 00 02", 2),
        ("03 04 00 00 01", 2),
        ("04 03 8A 00 01", 2),
        ("04 00 00 00 01", 2),
        ("04 FF FF 00 02", 2),
        ("06 04 00 00 01", 2),
        ("03 00 00 00 00", 3),
        ("03 00 00 00 7E", 3),
        ("04 03 E8", 3),
        ("10 00 00 00 01 02 00", 3),
        ("10 00 00 00 00 00", 3),
        ("10 00 78 00 02 04 00 00 00 00", 2),
    ] {
        let pdu = hex(question);
        let answer = unit.ask(&pdu, &mut Vec::new());
        assert_eq!(answer, [pdu[0] | 0x80, exception], "{question}");
    }
    unit.status(2, 70_000, 0x0001_0007, 1_795_200_000);
    assert_eq!(read(&mut unit, 900, 6), [0x0100, 2, 65_535, 7, 0x6B00, 0x9400]);
}

fn units(frames: &[Frame]) -> Vec<(u8, u8, bool)> {
    frames.iter().map(|frame| (frame.unit, frame.pdu[0], frame.is_reply)).collect()
}

#[test]
fn frames_of_a_shared_bus_are_told_apart() {
    let other = [rtu(18, &[3, 0, 0, 0, 2]), rtu(18, &[3, 4, 17, 4, 3, 232]), rtu(18, &[16, 0, 0, 0, 1])].concat();
    let bus = [other, hex(LOOK), hex(SEEN), hex(TAKE), hex(BUSY)].concat();
    let expected = [
        (18, 3, false),
        (18, 3, true),
        (18, 16, true),
        (17, 4, false),
        (17, 4, true),
        (17, 6, false),
        (17, 0x90, true),
    ];
    assert_eq!(units(&Framer::default().receive(&bus)), expected);
    let mut framer = Framer::default();
    let one_by_one: Vec<Frame> = bus.iter().flat_map(|byte| framer.receive(&[*byte])).collect();
    assert_eq!((units(&one_by_one).as_slice(), framer.waits(), framer.dropped), (&expected[..], false, 0));
}

#[test]
fn noise_before_a_question_costs_at_most_a_silence() {
    for noise in ["FF", "00 00 00", "12 03", "12 10 00 00 00 40 80", "11 04 03 E8 00", "11 04 03 E8 00 0E F3 2F"] {
        let mut framer = Framer::default();
        let mut frames = framer.receive(&[hex(noise), hex(LOOK)].concat());
        frames.extend(framer.silent());
        assert_eq!(units(&frames), [(17, 4, false)], "{noise}");
        assert!(!framer.waits());
    }
}

#[test]
fn a_function_that_nobody_knows_ends_where_its_checksum_holds() {
    let frames = Framer::default().receive(&rtu(17, &[0x2B, 0x0E, 1, 0]));
    assert_eq!(units(&frames), [(17, 0x2B, false)]);
}

/// What one byte of noise may cost: a frame's length of checksum for the beginning that it was, and for the one it ends.
#[test]
fn noise_costs_no_more_than_its_length() {
    // Functions of unknown length, of which each byte might be the last.
    let noise: Vec<u8> = (0..4_096u32).map(|n| 0x40 | (n.wrapping_mul(2_654_435_761) >> 20) as u8 & 0x3f).collect();
    let mut framer = Framer::default();
    for byte in &noise {
        framer.receive(&[*byte]);
    }
    framer.silent();
    let each = framer.summed / noise.len();
    assert!(each <= 2 * FRAME_MAX, "{each} bytes summed for each that came");
}

#[test]
fn tcp_has_a_header_instead() {
    let answer = tcp([0, 7], 17, &[0x90, 6]);
    assert_eq!(answer, hex("00 07 00 00 00 03 11 90 06"));
    let bytes: [u8; HEADER_BYTES] = answer[..HEADER_BYTES].try_into().unwrap();
    assert_eq!(header(bytes), Some(([0, 7], 17, 2)));
    for bad in ["00 07 00 01 00 03 11", "00 07 00 00 00 01 11", "00 07 00 00 FF FF 11"] {
        assert_eq!(header(hex(bad).try_into().unwrap()), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_on_the_line(bytes in proptest::collection::vec(any::<u8>(), 0..700), size in 1usize..40) {
        let mut framer = Framer::default();
        for piece in bytes.chunks(size) {
            framer.receive(piece);
        }
        framer.silent();
        prop_assert!(!framer.waits());
    }

    #[test]
    fn any_question(all in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
        let mut unit = ready();
        for pdu in all {
            let function = pdu.first().copied().unwrap_or(0);
            let answer = unit.ask(&pdu, &mut Vec::new());
            prop_assert!(answer.len() <= 253 && answer[0] & 0x7f == function & 0x7f);
        }
    }

    /// Whatever stands between, a question behind a silence is answered.
    #[test]
    fn a_question_behind_a_silence(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut framer = Framer::default();
        framer.receive(&noise);
        framer.silent();
        prop_assert_eq!(units(&framer.receive(&hex(LOOK))), [(17, 4, false)]);
    }
}
