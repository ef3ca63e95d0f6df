//! The simulators do what the other tests rely on.

use std::process::Stdio;
use std::time::Duration;

use holdfast::cli::simulate::{Faults, Mode, Simulator, UplinkOptions, serve_uplink};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::{Ask, chat_body, within};

/// One chat over TCP; the raw answer, empty where the connection ended without one.
async fn chat(simulator: &Simulator, user: &str) -> std::io::Result<String> {
    let address = simulator.base_url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(address).await?;
    let body = chat_body(user).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length:";
    stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn refusing_is_real_and_ends_at_the_same_address() {
    let simulator = serve_uplink(UplinkOptions::default()).await.unwrap();
    let before = simulator.base_url();
    for round in 0..3 {
        simulator.set_faults(Faults::failing(Mode::Refuse)).await;
        let refused = chat(&simulator, "nobody").await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        simulator.set_faults(Faults::default()).await;
        assert!(chat(&simulator, "somebody").await.unwrap().starts_with("HTTP/1.1 200"), "round {round}");
    }
    assert_eq!(simulator.base_url(), before);
    assert_eq!(simulator.requests_total(), 3);
}

#[tokio::test]
async fn silence_hides_a_request_from_the_model_and_reset_does_not() {
    let simulator = serve_uplink(UplinkOptions::default()).await.unwrap();
    simulator.set_faults(Faults::failing(Mode::Silence)).await;
    let silent = tokio::time::timeout(Duration::from_millis(300), chat(&simulator, "unheard")).await;
    assert!(silent.is_err(), "{silent:?}");
    assert_eq!(simulator.requests_total(), 0);
    simulator.set_faults(Faults::failing(Mode::Reset)).await;
    let ended = within("the reset", 5, chat(&simulator, "heard")).await;
    assert!(ended.is_err() || ended.unwrap().is_empty());
    let log = simulator.log();
    assert_eq!((log.len(), log[0].status, log[0].user.as_str()), (1, 0, "heard"));
}

#[tokio::test]
async fn a_status_that_no_answer_can_have_is_refused() {
    for (status, is_known) in [("99", false), ("100", true), ("599", true), ("600", false), ("9999", false)] {
        let words = ["simulate", "uplink", "--listen", "127.0.0.1:0", "--status", status];
        let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_holdfast"));
        program.args(words).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = program.spawn().unwrap();
        let mut said = String::new();
        if is_known {
            let mut first = BufReader::new(running.stdout.take().unwrap());
            within("its address", 20, first.read_line(&mut said)).await.unwrap();
            assert!(said.starts_with("http://127.0.0.1:"), "{said}");
        } else {
            let mut stderr = running.stderr.take().unwrap();
            within("its words", 20, stderr.read_to_string(&mut said)).await.unwrap();
            assert_eq!(running.wait().await.unwrap().code(), Some(2), "{said}");
            assert!(said.contains("--status") && said.contains("599"), "{said}");
        }
    }
    let simulator =
        serve_uplink(UplinkOptions { control: Some(([127, 0, 0, 1], 0).into()), ..UplinkOptions::default() });
    let control = simulator.await.unwrap();
    let address = control.control_url().unwrap().strip_prefix("http://").unwrap().to_owned();
    let switch = |body| Ask::put("/simulator/faults", body).send_to_tcp(&address);
    let refused = switch("{\"status\":9999}").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("599"), "{}", refused.text());
    assert_eq!(control.faults(), Faults::default());
    assert_eq!(switch("{\"status\":503}").await.status, 200);
    assert_eq!(control.faults(), Faults::status(503));
    assert_eq!(switch("{\"status\":null}").await.status, 200);
}

#[tokio::test]
async fn one_model_can_fail_alone_and_the_log_can_be_cleared() {
    let simulator = serve_uplink(UplinkOptions::default()).await.unwrap();
    let only_model = Some("gpt-4o".to_owned());
    let faults = Faults { status: Some(429), retry_after: Some("3".to_owned()), only_model, ..Faults::default() };
    simulator.set_faults(faults).await;
    let answer = chat(&simulator, "limited").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 3"), "{answer}");
    simulator.set_faults(Faults { only_model: Some("another".to_owned()), ..simulator.faults() }).await;
    let answer = chat(&simulator, "not limited").await.unwrap();
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "uplink answer to: not limited");
    simulator.clear_log();
    assert!(simulator.log().is_empty());
}
