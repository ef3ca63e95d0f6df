//! What becomes of requests: realistic ones, and those that a local model cannot serve.

use serde_json::json;

use super::*;

const DONE: &str = "{\"model\":\"m\",\"message\":{\"content\":\"ok\"},\"done\":true}\n";

/// What Ollama is sent for `body`.
async fn sent(body: Value) -> Value {
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(DONE)]).await;
    ask(&local, CHAT, body).await.unwrap();
    server.request().await.1
}

/// How `body` is refused, without the server being asked.
async fn refused(endpoint: &str, body: Value) -> LocalError {
    let local = Local::new(options("http://127.0.0.1:1", Api::Ollama)).unwrap();
    let error = ask(&local, endpoint, &body).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    error
}

#[tokio::test]
async fn settings_are_translated() {
    let body = json!({
        "model": "gpt-4o-mini", "messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.2, "top_p": 0.9, "seed": 7, "stop": ["a", "b"], "frequency_penalty": 0.5, "presence_penalty": 0,
        "max_tokens": 9, "max_completion_tokens": 5, "n": 1, "logprobs": false, "user": "u", "response_format": {"type": "json_object"},
        "reasoning_effort": "none",
    });
    assert_eq!(
        sent(body).await,
        json!({
            "model": "qwen3:0.6b", "stream": true, "truncate": false, "format": "json", "think": false,
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
            "options": {"temperature": 0.2, "top_p": 0.9, "seed": 7, "stop": ["a", "b"], "frequency_penalty": 0.5,
                        "presence_penalty": 0, "num_predict": 5},
        })
    );
}

#[tokio::test]
async fn nulls_are_as_good_as_nothing() {
    let body = json!({
        "model": null, "messages": [{"role": "user", "content": "hi", "name": null, "tool_calls": null}], "temperature": null,
        "stop": null, "tools": null, "tool_choice": null, "response_format": null, "max_tokens": null, "n": null,
        "stream": null, "stream_options": null, "functions": null, "logprobs": null, "modalities": null,
    });
    let expected = json!({"model": "llama3.2:latest", "messages": [{"role": "user", "content": "hi"}], "stream": true, "truncate": false, "options": {}});
    assert_eq!(sent(body).await, expected);
}

#[tokio::test]
async fn a_schema_is_passed_as_the_format() {
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "response_format": format});
    assert_eq!(sent(body).await["format"], schema);
}

#[tokio::test]
async fn pictures_go_to_the_vision_model_without_their_prefix() {
    // The second one is mapped, to a model for text.
    for model in ["gpt-4o", "gpt-4o-mini"] {
        let body = json!({"model": model, "messages": [{"role": "user", "content": [
            {"type": "text", "text": "what is"}, {"type": "text", "text": "this?"},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ==", "detail": "low"}},
        ]}]});
        let sent = sent(body).await;
        assert_eq!(sent["model"], "llava:7b");
        assert_eq!(sent["messages"][0], json!({"role": "user", "content": "what is\nthis?", "images": ["/9j/4AAQ=="]}));
    }
}

#[tokio::test]
async fn a_big_picture_arrives_whole() {
    let data = "QUJD".repeat(500_000);
    let part = json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
    let sent = sent(json!({"messages": [{"role": "user", "content": [part]}]})).await;
    assert!(sent["messages"][0]["images"][0] == data.as_str());
}

#[tokio::test]
async fn tool_talk_is_translated() {
    let tools =
        json!([{"type": "function", "function": {"name": "temp", "parameters": {"type": "object", "properties": {}}}}]);
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "temp", "arguments": "{\"unit\": \"C\"}"}});
    let mut body = json!({"messages": [
        {"role": "user", "content": "how warm?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "21"}]},
    ], "tools": tools, "tool_choice": "auto"});
    let with = sent(body.clone()).await;
    assert_eq!(with["tools"], tools);
    assert_eq!(
        with["messages"][1],
        json!({"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "function": {"name": "temp", "arguments": {"unit": "C"}}}]})
    );
    let result = json!({"role": "tool", "content": "21", "tool_name": "temp", "tool_call_id": "call_1"});
    assert_eq!(with["messages"][2], result);
    body["tool_choice"] = json!("none");
    assert_eq!(sent(body).await.get("tools"), None);
}

#[tokio::test]
async fn what_cannot_be_done_is_said_before_asking() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let with = |key: &str, value: Value| {
        let mut body = user(json!("secret"));
        body[key] = value;
        body
    };
    let remote = json!([{"type": "image_url", "image_url": {"url": "https://secret.example/a.png"}}]);
    let bodies = [
        user(remote.clone()),
        user(json!([{"type": "input_audio", "input_audio": {"data": "secret", "format": "wav"}}])),
        user(json!([{"type": "file", "file": {"file_data": "secret"}}])),
        with("n", json!(2)),
        with("logprobs", json!(true)),
        with("modalities", json!(["text", "audio"])),
        with("response_format", json!({"type": "grammar"})),
    ];
    for body in bodies {
        assert_eq!(refused(CHAT, body.clone()).await.kind(), "unsupported_by_local_model", "{body}");
    }
    assert!(refused(CHAT, user(remote)).await.to_string().contains("data: URL"));
    for prompt in [json!([1, 2]), json!([[1, 2]]), json!(["a", "b"])] {
        let error = refused("/v1/completions", json!({"prompt": prompt})).await;
        assert_eq!(error.kind(), "unsupported_by_local_model");
    }
    let tokens = json!({"model": "text-embedding-3-small", "input": [[1, 2]]});
    assert_eq!(refused("/v1/embeddings", tokens).await.kind(), "unsupported_by_local_model");
    let unmapped = json!({"model": "text-embedding-3-large", "input": "a"});
    assert_eq!(refused("/v1/embeddings", unmapped).await.kind(), "unsupported_by_local_model");
    assert_eq!(refused("/v1/responses", json!({})).await.kind(), "unsupported_by_local_model");
}

#[tokio::test]
async fn malformed_requests_are_invalid_and_not_quoted() {
    let bodies = [
        json!("secret"),
        json!({"messages": "secret"}),
        json!({"messages": []}),
        json!({"messages": [{"role": "secret", "content": "x"}]}),
        json!({"messages": [{"role": "user", "content": {"secret": 1}}]}),
        json!({"messages": [{"role": "user", "content": "x"}], "temperature": "secret"}),
        json!({"messages": [{"role": "user", "content": "x"}], "model": {"secret": 1}}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,sec ret"}}]}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "secret"}}]}]}),
    ];
    for body in bodies {
        assert_eq!(refused(CHAT, body.clone()).await.kind(), "invalid", "{body}");
    }
}

#[test]
fn addresses_are_checked_at_the_start() {
    for good in ["http://127.0.0.1:11434", "http://localhost:8080/v1/", "http://[::1]:1/a/v1", "http://ollama"] {
        assert!(Local::new(options(good, Api::OpenAi)).is_ok(), "{good}");
    }
    for bad in ["", "127.0.0.1:11434", "https://x", "http://u:p@x", "ftp://x", "http://x/?a=b"] {
        assert_eq!(Local::new(options(bad, Api::Ollama)).err().map(|e| e.kind()), Some("invalid"), "{bad}");
    }
}
