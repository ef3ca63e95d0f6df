//! What tasks promise: arguments stay inside their request, answers fit or are said not to.

use std::collections::BTreeMap;
use std::io::Write;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(super) fn options(prompt: &str) -> Options {
    Options {
        id: 12,
        name: "weld".to_owned(),
        model: "gpt-4.1".to_owned(),
        system: String::new(),
        prompt: prompt.to_owned(),
        schema_file: None,
        offline: None,
        max_answer: 200,
        args: Vec::new(),
        pictures: PICTURES_MAX,
        code: String::new(),
        value: String::new(),
        text: String::new(),
        codes: BTreeMap::new(),
    }
}

fn task(prompt: &str) -> Task {
    Task::new(options(prompt)).unwrap()
}

fn with_schema(schema: &Value, change: impl FnOnce(&mut Options)) -> Result<Task, Vec<Wrong>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(schema.to_string().as_bytes()).unwrap();
    let mut options = Options { schema_file: Some(file.path().to_owned()), ..options("judge") };
    change(&mut options);
    Task::new(options)
}

fn weld() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["code", "value", "text"], "properties":
        {"code": {"type": "integer"}, "value": {"type": "number"}, "text": {"type": "string"}}})
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// The body with `<n>` where picture n belongs.
fn body(filled: &Filled) -> Value {
    let bytes: Vec<u8> = filled.pieces.iter().fold(Vec::new(), |mut all, piece| {
        match piece {
            Piece::Json(json) => all.extend_from_slice(json),
            Piece::Picture(index) => all.extend_from_slice(format!("<{index}>").as_bytes()),
        }
        all
    });
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn arguments_become_a_chat() {
    let mut options = options("Seam {seam} at {temp} °C");
    options.system = "You are strict.".to_owned();
    let task = Task::new(options).unwrap();
    let values = strings(&["Naht \"7\"", "23.5"]);
    let filled = task.fill(Args::Positional(&values), &[Picture::Jpeg, Picture::Png]).unwrap();
    assert_eq!((filled.endpoint, filled.model.as_str()), ("/v1/chat/completions", "gpt-4.1"));
    let expected = json!({"model": "gpt-4.1", "max_tokens": 200, "messages": [
        {"role": "system", "content": "You are strict."},
        {"role": "user", "content": [
            {"type": "text", "text": "Seam Naht \"7\" at 23.5 °C"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,<0>"}},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,<1>"}},
        ]},
    ]});
    assert_eq!(body(&filled), expected);
    let named = BTreeMap::from([("temp".to_owned(), "1".to_owned()), ("seam".to_owned(), "x".to_owned())]);
    let filled = task.fill(Args::Named(&named), &[]).unwrap();
    assert_eq!(body(&filled)["messages"][1]["content"], "Seam x at 1 °C");
}

#[test]
fn a_schema_goes_along() {
    let task = with_schema(&weld(), |_| {}).unwrap();
    let body = body(&task.fill(Args::Positional(&[]), &[]).unwrap());
    assert_eq!(body["response_format"]["json_schema"], json!({"name": "task_12", "strict": true, "schema": weld()}));
    assert_eq!(body["max_tokens"], 456);
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let mut options = options("{temp} {amps} {note}");
    let number = Argument { kind: Kind::Number, min: Some(-40.0), max: Some(1200.0), ..Argument::text("temp") };
    let whole = Argument { kind: Kind::Integer, ..Argument::text("amps") };
    options.args = vec![number, whole, Argument::text("note")];
    options.pictures = 1;
    let task = Task::new(options).unwrap();
    let long = "x".repeat(ARGUMENT_BYTES_MAX + 1);
    for (values, argument, words) in [
        (vec!["1", "2"], "note", "is missing"),
        (vec!["1", "2", "3", "4"], "args", "too many"),
        (vec!["23,5", "2", ""], "temp", "must be a number"),
        (vec!["inf", "2", ""], "temp", "must be a number"),
        (vec!["NaN", "2", ""], "temp", "must be a number"),
        (vec!["-41", "2", ""], "temp", "below -40"),
        (vec!["1e9", "2", ""], "temp", "above 1200"),
        (vec!["1", "2.5", ""], "amps", "whole number"),
        (vec!["1", "2", &long], "note", "240"),
    ] {
        let fault = task.fill(Args::Positional(&strings(&values)), &[]).unwrap_err();
        assert_eq!(fault.argument, argument, "{values:?}");
        assert!(fault.message.contains(words), "{}", fault.message);
    }
    let fine = strings(&["23.5", "-2", "x"]);
    assert!(task.fill(Args::Positional(&fine), &[]).is_ok());
    let fault = task.fill(Args::Positional(&fine), &[Picture::Png; 2]).unwrap_err();
    assert_eq!(fault.argument, "images");
    let mut named = BTreeMap::from([("temp".to_owned(), "1".to_owned()), ("amp".to_owned(), "2".to_owned())]);
    assert_eq!(task.fill(Args::Named(&named), &[]).unwrap_err().argument, "amp");
    named.remove("amp");
    assert_eq!(task.fill(Args::Named(&named), &[]).unwrap_err().argument, "amps");
}

#[test]
fn an_answer_becomes_code_value_and_text() {
    let task = with_schema(&weld(), |_| {}).unwrap();
    let reading = task.read(r#"{"code": -2, "value": 0.5, "text": "NIO: Pore"}"#);
    assert_eq!((reading.fits, reading.code, reading.value, reading.text.as_str()), (true, -2, 0.5, "NIO: Pore"));
    assert_eq!(task.read(r#"{"code": 0, "value": 0.93, "text": ""}"#).value.to_string(), "0.93", "as it came");
    for fenced in [
        "```json\n{\"code\": 1, \"value\": 2, \"text\": \"x\"}\n```",
        "Here it is:\n```\n{\"code\": 1, \"value\": 2, \"text\": \"x\"}\n``` Anything else?",
        "{\"code\": 1.0, \"value\": 2, \"text\": \"x\"}",
    ] {
        let reading = task.read(fenced);
        assert_eq!((reading.fits, reading.code, reading.value), (true, 1, 2.0), "{fenced}: {:?}", reading.why);
    }
}

#[test]
fn an_answer_that_does_not_fit_keeps_its_words() {
    let task = with_schema(&weld(), |_| {}).unwrap();
    for (text, why) in [
        ("I cannot see a seam.", "no JSON"),
        (r#"{"code": "x", "value": 1, "text": ""}"#, "/properties/code"),
        (r#"{"code": 1, "value": 1}"#, "required"),
        (r#"{"code": 5000000000, "value": 1, "text": ""}"#, "32 bits"),
        (r#"{"code": 1, "value": 1e300, "text": ""}"#, "32 bits"),
    ] {
        let reading = task.read(text);
        assert_eq!((reading.fits, reading.code, reading.text.as_str()), (false, 0, text));
        let said = reading.why.unwrap();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn fields_may_have_other_names_and_codes_may_be_words() {
    let schema = json!({"type": "object", "properties": {"verdict": {"enum": ["OK", "NOK", "maybe"]},
        "measured": {"type": "object"}, "why": {"type": "string"}}});
    let task = with_schema(&schema, |options| {
        options.code = "verdict".to_owned();
        options.value = "/measured/mm".to_owned();
        options.text = "why".to_owned();
        options.codes = BTreeMap::from([("OK".to_owned(), 0), ("NOK".to_owned(), -1)]);
    });
    let task = task.unwrap();
    let reading = task.read(r#"{"verdict": "NOK", "measured": {"mm": 1.25}, "why": "Pore"}"#);
    assert_eq!((reading.fits, reading.code, reading.value, reading.text.as_str()), (true, -1, 1.25, "Pore"));
    let reading = task.read(r#"{"verdict": "maybe"}"#);
    assert!(!reading.fits && reading.why.unwrap().contains("codes"));
}

#[test]
fn without_a_schema_the_text_is_the_answer() {
    let reading = task("x").read("  Alles gut.\n");
    let expected = ("Alles gut.", true, 0, 0.0, false);
    assert_eq!((reading.text.as_str(), reading.fits, reading.code, reading.value, reading.cut), expected);
    let mut words = options("OK or NOK?");
    words.codes = BTreeMap::from([("OK".to_owned(), 0), ("NOK".to_owned(), -1)]);
    let words = Task::new(words).unwrap();
    assert_eq!((words.read(" nok. ").code, words.read("NOK").code, words.read("OK!").code), (-1, -1, 0));
    assert!(!words.read("It is OK").fits);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let reading = task("x").read(&"ä".repeat(150));
    assert_eq!((reading.text.len(), reading.cut, reading.fits), (200, true, true));
    let mut short = options("x");
    short.max_answer = 3;
    assert_eq!(Task::new(short).unwrap().read("ää").text, "ä");
}

#[test]
fn faults_of_the_configuration_name_their_key() {
    let keys = |task: Result<Task, Vec<Wrong>>| task.unwrap_err().iter().map(|wrong| wrong.key).collect::<Vec<_>>();
    assert_eq!(keys(Task::new(options("{"))), ["prompt"]);
    let mut unknown = options("{temp} {amps}");
    unknown.args = vec![Argument::text("temp")];
    assert_eq!(keys(Task::new(unknown)), ["prompt"]);
    let mut twice = options("{temp}");
    twice.args = vec![Argument::text("temp"), Argument::text("temp"), Argument::text("9")];
    assert_eq!(keys(Task::new(twice)), ["args", "args"]);
    let many = (0..17).map(|n| format!("{{a{n}}}")).collect::<Vec<_>>().concat();
    assert_eq!(keys(Task::new(options(&many))), ["prompt"]);
    let mut digits = options("x");
    digits.name = "7".to_owned();
    digits.code = "verdict".to_owned();
    assert_eq!(keys(Task::new(digits)), ["code", "name"]);
    let absent = Options { schema_file: Some("/nowhere/x.json".into()), ..options("x") };
    assert_eq!(keys(Task::new(absent)), ["schema_file"]);
    let device = Options { schema_file: Some("/dev/zero".into()), ..options("x") };
    assert_eq!(keys(Task::new(device)), ["schema_file"]);
    assert_eq!(keys(with_schema(&weld(), |options| options.code = "/verdict/x".to_owned())), ["code"]);
}

#[test]
fn tasks_are_found_by_number_and_name() {
    let book = Book::new(vec![options("x")]).unwrap();
    let found = |which: &str| book.find(which).map(Task::id);
    assert_eq!(
        [found("12"), found("weld"), found("13"), found(""), found("012")],
        [Some(12), Some(12), None, None, Some(12)]
    );
    assert!(Book::new(vec![options("{"), options("x")]).is_err());
}

#[test]
fn the_words_of_an_answer_are_found() {
    let text = |message: Value| said(json!({"choices": [{"message": message}]}).to_string().as_bytes());
    assert_eq!(text(json!({"content": "hi"})).as_deref(), Some("hi"));
    assert_eq!(text(json!({"content": [{"type": "text", "text": "a"}, {"text": "b"}]})).as_deref(), Some("ab"));
    assert_eq!(text(json!({"content": null, "refusal": "no"})).as_deref(), Some("no"));
    assert_eq!(said(&b"{\"choices\":[]}"[..]), None);
    assert_eq!(said(&b"{\"choices\":[{\"text\":\"old\"}]}"[..]).as_deref(), Some("old"));
}

proptest! {
    /// Whatever a device sends, the request is the same JSON with another text in one place.
    #[test]
    fn arguments_stay_inside(values in proptest::collection::vec("\\PC{0,60}|.{0,60}|[{}\"\\\\]{0,20}", 3), prefix in "[^{}]{0,20}") {
        let task = task(&format!("{prefix}{{a}}|{{b}}|{{{{a}}}}{{c}}{{a}}"));
        let filled = task.fill(Args::Positional(&values), &[Picture::Png]).unwrap();
        let (a, b, c) = (&values[0], &values[1], &values[2]);
        let text = format!("{prefix}{a}|{b}|{{a}}{c}{a}");
        let expected = json!({"model": "gpt-4.1", "max_tokens": 200, "messages": [{"role": "user", "content": [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,<0>"}}]}]});
        prop_assert_eq!(body(&filled), expected);
    }

    /// Any prompt is taken or refused with a reason, and one that is taken can be filled.
    #[test]
    fn any_prompt(prompt in "[{}a-c_\"\\\\ äß]{0,40}", values in proptest::collection::vec(".{0,20}", 0..5)) {
        match Task::new(options(&prompt)) {
            Err(wrong) => prop_assert!(wrong.iter().all(|wrong| wrong.key == "prompt" && !wrong.message.is_empty())),
            Ok(task) => match task.fill(Args::Positional(&values), &[]) {
                Ok(filled) => prop_assert!(values.len() == task.args().len() && body(&filled).is_object()),
                Err(fault) => prop_assert!(values.len() != task.args().len() && !fault.message.is_empty()),
            },
        }
    }

    /// Any answer is read, and its text is never longer than allowed.
    #[test]
    fn any_answer(text in "\\PC{0,300}|[`{}\":,a-z0-9\\[\\] \n]{0,80}") {
        for task in [task("x"), with_schema(&weld(), |_| {}).unwrap()] {
            let reading = task.read(&text);
            prop_assert!(reading.text.len() <= 200);
            prop_assert_eq!(reading.fits, reading.why.is_none());
        }
    }
}
