//! Ollama's way of answering, and of failing.

use serde_json::json;

use super::*;

const HELLO: &str = concat!(
    r#"{"model":"llama3.2:latest","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"Hel"},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2:latest","message":{"role":"assistant","content":"lo ü"},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2:latest","message":{"role":"assistant","content":""},"done_reason":"stop","done":true,"total_duration":5,"prompt_eval_count":26,"eval_count":2}"#,
    "\n",
);

fn hello(stream: bool) -> Value {
    json!({"model": "gpt-4o", "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
}

#[tokio::test]
async fn a_plain_answer_is_put_together() {
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(HELLO)]).await;
    let answer = ask(&local, CHAT, hello(false)).await.unwrap();
    assert_eq!(answer.model, "llama3.2:latest");
    assert_eq!(
        whole(answer),
        json!({
            "id": "chatcmpl-0123abc", "object": "chat.completion", "created": 1_700_000_000, "model": "llama3.2:latest",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello ü"}, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 26, "completion_tokens": 2, "total_tokens": 28},
        })
    );
    let (head, body) = server.request().await;
    assert!(head.starts_with("POST /api/chat HTTP/1.1\r\n"), "{head}");
    assert_eq!(
        body,
        json!({"model": "llama3.2:latest", "messages": [{"role": "user", "content": "hi"}], "stream": true, "truncate": false, "options": {}})
    );
    assert_eq!(local.load().in_flight, 0);
}

#[tokio::test]
async fn a_stream_comes_in_openai_chunks() {
    let (_server, local) = start(Api::Ollama, vec![Script::ok(HELLO)]).await;
    let mut body = hello(true);
    body["stream_options"] = json!({"include_usage": true});
    let (events, error) = events(ask(&local, CHAT, body).await.unwrap()).await;
    assert_eq!(error, None);
    let chunks = chunks(&events);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == "chatcmpl-0123abc"));
    let deltas: Vec<_> = chunks.iter().map(|c| c["choices"][0]["delta"].clone()).collect();
    assert_eq!(deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(deltas[1..4], [json!({"content": "Hel"}), json!({"content": "lo ü"}), json!({})]);
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"]["total_tokens"], 28);
    assert_eq!(chunks.len(), 5);
}

#[tokio::test]
async fn usage_comes_only_if_asked_for() {
    let (_server, local) = start(Api::Ollama, vec![Script::ok(HELLO)]).await;
    let (events, _) = events(ask(&local, CHAT, hello(true)).await.unwrap()).await;
    assert!(chunks(&events).iter().all(|c| c.get("usage").is_none()));
}

#[tokio::test]
async fn a_stream_reads_the_same_wherever_it_is_split() {
    let script = Script::ok(HELLO);
    let (_server, local) = start(Api::Ollama, vec![script.clone(); script.len() + 1]).await;
    let (expected, _) = events(ask(&local, CHAT, hello(true)).await.unwrap()).await;
    let splits: Vec<_> = (0..script.len()).map(|at| script.clone().split(at)).collect();
    let (_server, local) = start(Api::Ollama, splits).await;
    for at in 0..script.len() {
        let (split, error) = events(ask(&local, CHAT, hello(true)).await.unwrap()).await;
        assert_eq!((split, error), (expected.clone(), None), "split at {at}");
    }
}

#[tokio::test]
async fn byte_by_byte_reads_the_same() {
    let mut script = Script::ok(HELLO);
    script.pieces = script.pieces.concat().chunks(1).map(<[u8]>::to_vec).collect();
    let (_server, local) = start(Api::Ollama, vec![script]).await;
    let answer = whole(ask(&local, CHAT, hello(false)).await.unwrap());
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello ü");
}

#[tokio::test]
async fn a_cut_at_each_byte_is_never_a_success() {
    let body_at = Script::ok("").len();
    let done_at = body_at + HELLO.len() - 1;
    let cut = |at: usize| {
        let mut script = Script::ok(HELLO);
        script.pieces[0].truncate(at);
        script
    };
    let (_server, local) = start(Api::Ollama, (body_at..done_at).map(cut).collect()).await;
    for at in body_at..done_at {
        assert_eq!(ask(&local, CHAT, hello(false)).await.unwrap_err(), LocalError::Truncated, "cut at {at}");
    }
}

#[tokio::test]
async fn a_cut_midway_comes_through_the_channel() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let line = HELLO.lines().next().unwrap();
    let script =
        Script { pieces: vec![format!("{chunked}{:x}\r\n{line}\n\r\n", line.len() + 1).into_bytes()], hang: false };
    let (_server, local) = start(Api::Ollama, vec![script]).await;
    let (events, error) = events(ask(&local, CHAT, hello(true)).await.unwrap()).await;
    assert_eq!(events.len(), 2, "role and first content");
    assert_eq!(error, Some(LocalError::Truncated));
}

#[tokio::test]
async fn an_error_line_is_a_failure_before_and_after_the_first_content() {
    let line = "{\"error\":\"an error was encountered while running the model: secret\"}\n";
    let first = HELLO.lines().next().unwrap();
    let mut later = Script::ok(&format!("{first}\n"));
    later.pieces.push(line.into());
    let (_server, local) = start(Api::Ollama, vec![Script::ok(line), later]).await;
    let error = ask(&local, CHAT, hello(true)).await.unwrap_err();
    assert_eq!(error, LocalError::Failed { status: 500 });
    assert!(!format!("{error} {error:?}").contains("secret"));
    match ask(&local, CHAT, hello(true)).await {
        Ok(answer) => assert_eq!(events(answer).await.1, Some(LocalError::Failed { status: 500 })),
        Err(error) => assert_eq!(error, LocalError::Failed { status: 500 }),
    }
}

#[tokio::test]
async fn error_answers_are_understood() {
    let missing = LocalError::ModelMissing { model: "llama3.2:latest".into() };
    let cases = [
        ("404 Not Found", r#"{"error":"model \"llama3.2:latest\" not found, try pulling it first"}"#, missing),
        ("404 Not Found", "404 page not found", LocalError::Failed { status: 404 }),
        (
            "503 Service Unavailable",
            r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#,
            LocalError::Busy,
        ),
        ("400 Bad Request", r#"{"error":"the input length exceeds the context length"}"#, LocalError::ContextLength),
        (
            "400 Bad Request",
            r#"{"error":"{\"error\":{\"code\":400,\"message\":\"request (351 tokens) exceeds the available context size\"}}"}"#,
            LocalError::ContextLength,
        ),
        (
            "500 Internal Server Error",
            r#"{"error":"timed out waiting for llama runner"}"#,
            LocalError::Failed { status: 500 },
        ),
    ];
    let scripts = cases.iter().map(|(status, body, _)| Script::new(status, body)).collect();
    let (_server, local) = start(Api::Ollama, scripts).await;
    for (_, body, expected) in cases {
        assert_eq!(ask(&local, CHAT, hello(false)).await.unwrap_err(), expected, "{body}");
    }
    assert_eq!(ask(&local, CHAT, hello(false)).await.unwrap_err().kind(), "unreachable");
}

#[tokio::test]
async fn a_capability_that_lacks_is_unsupported() {
    let body = r#"{"error":"registry.ollama.ai/library/llama3.2:latest does not support tools"}"#;
    let (_server, local) = start(Api::Ollama, vec![Script::new("400 Bad Request", body)]).await;
    let error = ask(&local, CHAT, hello(false)).await.unwrap_err();
    assert_eq!(error.kind(), "unsupported_by_local_model");
    assert!(error.to_string().contains("tools"));
}

#[tokio::test]
async fn nonsense_and_endless_lines_fail() {
    let endless = "x".repeat(2 * 1024 * 1024);
    let (_server, local) = start(Api::Ollama, vec![Script::ok("<html>\n"), Script::ok(&endless)]).await;
    for _ in 0..2 {
        assert_eq!(ask(&local, CHAT, hello(false)).await.unwrap_err(), LocalError::Failed { status: 200 });
    }
}

#[tokio::test]
async fn tool_calls_and_thinking_are_passed_on() {
    let lines = concat!(
        r#"{"model":"m","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}"#,
        "\n",
        r#"{"model":"m","message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"b":1,"a":[2]}}}]},"done":false}"#,
        "\n",
        r#"{"model":"m","message":{"role":"assistant","content":"","tool_calls":[{"id":"call_x","function":{"name":"g","arguments":{}}}]},"done":true,"done_reason":"stop"}"#,
    );
    let (_server, local) = start(Api::Ollama, vec![Script::ok(lines), Script::ok(lines)]).await;
    let answer = whole(ask(&local, CHAT, hello(false)).await.unwrap());
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning_content"], "hm");
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([
            {"id": "call_0123abc_0", "type": "function", "function": {"name": "f", "arguments": r#"{"b":1,"a":[2]}"#}},
            {"id": "call_x", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ])
    );
    let (events, _) = events(ask(&local, CHAT, hello(true)).await.unwrap()).await;
    let chunks = chunks(&events);
    assert_eq!(chunks[1]["choices"][0]["delta"], json!({"reasoning_content": "hm"}));
    assert_eq!(chunks[2]["choices"][0]["delta"]["tool_calls"][0]["index"], 0);
    assert_eq!(chunks[3]["choices"][0]["delta"]["tool_calls"][0]["index"], 1);
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn completions_go_to_generate() {
    let lines = "{\"model\":\"m\",\"response\":\"a+b\",\"done\":false}\n{\"model\":\"m\",\"response\":\"\",\"done\":true,\"done_reason\":\"length\",\"prompt_eval_count\":3,\"eval_count\":1}\n";
    let (mut server, local) = start(Api::Ollama, vec![Script::ok(lines), Script::ok(lines)]).await;
    let mut body = json!({"model": "x", "prompt": ["def add("], "suffix": "}", "max_tokens": 1, "stop": "\n"});
    let answer = whole(ask(&local, "/v1/completions", &body).await.unwrap());
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["id"], "cmpl-0123abc");
    assert_eq!(answer["choices"][0]["text"], "a+b");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let (head, sent) = server.request().await;
    assert!(head.starts_with("POST /api/generate "));
    assert_eq!(
        sent,
        json!({"model": "llama3.2:latest", "prompt": "def add(", "suffix": "}", "stream": true, "truncate": false, "options": {"num_predict": 1, "stop": ["\n"]}})
    );
    body["stream"] = json!(true);
    let (events, _) = events(ask(&local, "/v1/completions", &body).await.unwrap()).await;
    let chunks = chunks(&events);
    assert_eq!(chunks[0]["choices"][0], json!({"index": 0, "text": "a+b", "logprobs": null, "finish_reason": null}));
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn embeddings_come_as_numbers_and_as_base64() {
    let answer = r#"{"model":"nomic-embed-text","embeddings":[[1.0,-0.5],[0.25,2]],"prompt_eval_count":7}"#;
    let scripts = [answer, answer, answer, r#"{"embeddings":[[1.0],[]]}"#];
    let (mut server, local) = start(Api::Ollama, scripts.map(Script::ok).to_vec()).await;
    let mut body = json!({"model": "text-embedding-3-small", "input": ["a", "b"], "dimensions": 2});
    let floats = whole(ask(&local, "/v1/embeddings", &body).await.unwrap());
    assert_eq!(floats["data"][1], json!({"object": "embedding", "index": 1, "embedding": [0.25, 2.0]}));
    assert_eq!(floats["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}));
    let (head, sent) = server.request().await;
    assert!(head.starts_with("POST /api/embed "));
    assert_eq!(sent, json!({"model": "nomic-embed-text", "input": ["a", "b"], "truncate": false, "dimensions": 2}));
    body["encoding_format"] = json!("base64");
    let coded = whole(ask(&local, "/v1/embeddings", &body).await.unwrap());
    // python: base64.b64encode(struct.pack("<2f", 1.0, -0.5))
    assert_eq!(coded["data"][0]["embedding"], "AACAPwAAAL8=");
    // Without a vector for each text it is no answer.
    for texts in [json!("a"), json!(["a", "b"])] {
        body["input"] = texts;
        let failed = ask(&local, "/v1/embeddings", &body).await.map(|_| ());
        assert_eq!(failed, Err(LocalError::Failed { status: 200 }));
    }
}

#[tokio::test]
async fn the_first_token_the_silence_and_the_whole_have_limits_of_their_own() {
    let first = format!("{}\n", HELLO.lines().next().unwrap());
    let scripts = vec![Script { pieces: vec![], hang: true }, Script::ok(&first).hanging()];
    let (mut server, local) = start(Api::Ollama, scripts).await;
    let begun = crate::clock::now();
    let asking = tokio::spawn({
        let local = local.clone();
        async move { ask(&local, CHAT, hello(false)).await.map(|_| ()) }
    });
    server.raw_request().await;
    // From here on only timers are left, and a paused clock jumps to the next one.
    tokio::time::pause();
    let before = super::super::transport::after(Duration::ZERO);
    assert_eq!(asking.await.unwrap(), Err(LocalError::Timeout));
    let waited = super::super::transport::after(Duration::ZERO) - before;
    assert!((100..=121).contains(&waited.as_secs()), "{waited:?}");
    server.gone().await;
    tokio::time::resume();

    let answer = ask(&local, CHAT, hello(true)).await.unwrap();
    tokio::time::pause();
    let before = super::super::transport::after(Duration::ZERO);
    assert_eq!(events(answer).await.1, Some(LocalError::Timeout));
    let waited = super::super::transport::after(Duration::ZERO) - before;
    assert!((18..=21).contains(&waited.as_secs()), "{waited:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "the clock was to be turned, not waited for");
}
