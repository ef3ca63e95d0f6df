//! An OpenAI-compatible server behind the room.

use serde_json::json;

use super::*;

const STREAM: &str = concat!(
    ": comment\n\n",
    "id: 1\nevent: message\nretry: 5\ndata: {\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null},\"finish_reason\":null}]}\n\n",
    "data:\n\n",
    "data:{\"model\":\"tiny\",\"choices\":[{\"delta\":{\"content\":\"Hi ü\"}}],\"extra\":1.50}\r\n\r\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
);

const EVENTS: [&str; 4] = [
    "data: {\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null},\"finish_reason\":null}]}\n\n",
    "data: {\"model\":\"tiny\",\"choices\":[{\"delta\":{\"content\":\"Hi ü\"}}],\"extra\":1.50}\n\n",
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
];

const ASK: &str =
    r#"{ "messages":[{"role":"user","content":"h\u00fc"}], "model" : "gpt-4o" ,"x": 1.0e1,"stream":true}"#;

#[tokio::test]
async fn only_the_model_is_replaced() {
    let answer = r#"{"id":"1","object":"chat.completion","model":"tiny", "choices":[{"message":{"content":"x"}}]}"#;
    let mut server = Server::start(vec![Script::ok(answer); 3]).await;
    let local = Local::new(options(&format!("{}/v1", server.url), Api::OpenAi)).unwrap();
    let cases = [
        (
            r#"{"messages" : [], "model":"a\"b" , "x": 1.0e1}"#,
            r#"{"messages" : [], "model":"llama3.2:latest" , "x": 1.0e1}"#,
        ),
        (r#" { "messages":[]}"#, r#" {"model":"llama3.2:latest", "messages":[]}"#),
        (r#"{"model":"gpt-4o-mini","messages":[]}"#, r#"{"model":"qwen3:0.6b","messages":[]}"#),
    ];
    for (body, expected) in cases {
        let got = ask(&local, CHAT, body).await.unwrap();
        assert_eq!(got.model, "tiny");
        assert!(matches!(got.content, Content::Whole(bytes) if bytes == answer));
        let (head, sent) = server.raw_request().await;
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
        assert_eq!(sent, expected);
    }
}

#[tokio::test]
async fn a_stream_is_reframed_wherever_it_is_split() {
    let script = Script::ok(STREAM);
    let splits: Vec<_> = (0..script.len()).map(|at| script.clone().split(at)).collect();
    let (_server, local) = start(Api::OpenAi, splits).await;
    for at in 0..script.len() {
        let answer = ask(&local, CHAT, ASK).await.unwrap();
        assert_eq!(answer.model, "tiny");
        let (events, error) = events(answer).await;
        assert_eq!(error, None);
        assert_eq!(events, EVENTS, "split at {at}");
    }
}

#[tokio::test]
async fn a_missing_done_is_forgiven_only_after_a_finish_reason() {
    let finished = STREAM.strip_suffix("data: [DONE]\n\n").unwrap();
    let cut = &STREAM[..STREAM.find("data: {\"choices\"").unwrap()];
    let half = &STREAM[..cut.len() + 20];
    let (_server, local) = start(Api::OpenAi, vec![Script::ok(finished), Script::ok(cut), Script::ok(half)]).await;
    assert_eq!(events(ask(&local, CHAT, ASK).await.unwrap()).await.0, EVENTS);
    for _ in 0..2 {
        match ask(&local, CHAT, ASK).await {
            Ok(answer) => assert_eq!(events(answer).await.1, Some(LocalError::Truncated)),
            Err(error) => assert_eq!(error, LocalError::Truncated),
        }
    }
}

#[tokio::test]
async fn error_answers_are_understood() {
    let context = r#"{"error":{"code":400,"message":"request (302 tokens) exceeds the available context size (256 tokens), try increasing it","type":"exceed_context_size_error"}}"#;
    let event = format!("data: {context}\n\n");
    let picture = r#"{"error":{"code":500,"message":"image input is not supported - hint: if this is unexpected, you may need to provide the mmproj","type":"server_error"}}"#;
    let cases = [
        (
            "503 Service Unavailable",
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
            "busy",
        ),
        ("400 Bad Request", context, "context_length"),
        ("200 OK", event.as_str(), "context_length"),
        ("200 OK", "data: [DONE]\n\n", "truncated"),
        ("500 Internal Server Error", picture, "unsupported_by_local_model"),
        ("404 Not Found", r#"{"object":"error","message":"The model `x` does not exist."}"#, "model_missing"),
        ("200 OK", "<html>", "truncated"),
        ("200 OK", "data: nonsense\n\n", "failed"),
    ];
    let scripts = cases.iter().map(|(status, body, _)| Script::new(status, body)).collect();
    let (_server, local) = start(Api::OpenAi, scripts).await;
    for (_, body, kind) in cases {
        assert_eq!(ask(&local, CHAT, ASK).await.unwrap_err().kind(), kind, "{body}");
    }
}

#[tokio::test]
async fn a_bad_whole_answer_is_no_answer() {
    let cases = [
        (r#"{"choices":[{"mess"#, "truncated"),
        ("<html>", "failed"),
        ("{}", "failed"),
        (r#"{"error":"x"}"#, "failed"),
        (r#"{"choices":[]}"#, "failed"),
        (r#"{"choices":[{}]}"#, "failed"),
        (r#"{"data":[]}"#, "failed"),
    ];
    let (_server, local) = start(Api::OpenAi, cases.iter().map(|(body, _)| Script::ok(body)).collect()).await;
    for (body, kind) in cases {
        assert_eq!(ask(&local, CHAT, json!({"messages": []})).await.unwrap_err().kind(), kind, "{body}");
    }
}

#[tokio::test]
async fn remote_addresses_are_refused_however_they_are_written() {
    let local = Local::new(options("http://127.0.0.1:1", Api::OpenAi)).unwrap();
    let part = |part: &str| format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
    let parts = [
        r#"{"type":"image_url","image_url":{"url":"http://10.0.0.1/x"}}"#,
        r#"{"type":"image_url","image_url":"http:\/\/10.0.0.1/x"}"#,
        r#"{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}"#,
        r#"{"image\u005furl":{"url":"http://10.0.0.1/x"}}"#,
        r#"{"type":"video_url","video_url":{"url":"http://10.0.0.1/x"}}"#,
    ];
    for text in parts {
        assert_eq!(ask(&local, CHAT, part(text)).await.unwrap_err().kind(), "unsupported_by_local_model", "{text}");
    }
    let twice = r#"{"image_url":{"url":"data:;base64,AA=="},"image_url":{"url":"http://10.0.0.1/x"}}"#;
    assert_eq!(ask(&local, CHAT, part(twice)).await.unwrap_err().kind(), "invalid");
}
