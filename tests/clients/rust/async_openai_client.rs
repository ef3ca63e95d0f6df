//! What an unmodified async-openai must be able to do through holdfast.
//!
//! Usage: async-openai-client TARGET   TARGET is an http:// base address. Each line of standard input is a step's name, a
//! tab and the text to ask; the answer is a line `@ ok NOTE` or `@ failed REASON`.

use std::io::BufRead;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionMessageToolCalls, CreateChatCompletionRequest, CreateChatCompletionResponse,
};
use futures_util::StreamExt;
use serde_json::{Value, json};

const PICTURE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A note for the table, or what was wrong.
type Ended = Result<&'static str, String>;

struct Steps {
    target: String,
}

fn same<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Ended {
    if found == wanted { Ok("") } else { Err(format!("{found:?} is not {wanted:?}")) }
}

fn words(error: OpenAIError) -> String {
    error.to_string()
}

fn request(content: Value, more: Value) -> CreateChatCompletionRequest {
    let mut request = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]});
    for (name, value) in more.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    serde_json::from_value(request).expect("a request of the client's own types")
}

fn content(answer: &CreateChatCompletionResponse) -> &str {
    answer.choices[0].message.content.as_deref().unwrap_or_default()
}

impl Steps {
    fn client(&self, headers: &[(&'static str, &'static str)]) -> Client<OpenAIConfig> {
        let mut config = OpenAIConfig::new().with_api_base(format!("{}/v1", self.target)).with_api_key("anything");
        for (name, value) in headers {
            config = config.with_header(*name, *value).expect("a header");
        }
        Client::with_config(config)
    }

    async fn say(&self, content: Value, more: Value) -> Result<CreateChatCompletionResponse, OpenAIError> {
        self.client(&[]).chat().create(request(content, more)).await
    }

    async fn queue(&self, text: &str) -> Result<CreateChatCompletionResponse, OpenAIError> {
        let client = self.client(&[("x-holdfast-offline", "queue"), ("prefer", "wait=1")]);
        client.chat().create(request(json!(text), json!({}))).await
    }

    /// The pieces of a stream, and the error it ended with.
    async fn pieces(&self, text: &str) -> (Vec<String>, Option<OpenAIError>) {
        let mut seen = Vec::new();
        let mut stream = match self.client(&[]).chat().create_stream(request(json!(text), json!({}))).await {
            Ok(stream) => stream,
            Err(error) => return (seen, Some(error)),
        };
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => seen.extend(chunk.choices.into_iter().filter_map(|choice| choice.delta.content)),
                Err(error) => return (seen, Some(error)),
            }
        }
        (seen, None)
    }

    async fn streamed(&self, text: &str, wanted: String) -> Ended {
        let (seen, error) = self.pieces(text).await;
        if let Some(error) = error {
            return Err(words(error));
        }
        if seen.len() < 3 {
            return Err(format!("it came in {} pieces", seen.len()));
        }
        same(seen.concat(), wanted)
    }

    async fn tools(&self, text: &str) -> Ended {
        let parameters = json!({"type": "object", "properties": {"gauge": {"type": "integer"}}});
        let tools = json!([{"type": "function", "function": {"name": "read_gauge", "parameters": parameters}}]);
        let answer = self.say(json!(text), json!({"tools": tools})).await.map_err(words)?;
        match answer.choices[0].message.tool_calls.as_deref() {
            Some([ChatCompletionMessageToolCalls::Function(call)]) => {
                let arguments: Value = serde_json::from_str(&call.function.arguments).map_err(|e| e.to_string())?;
                same((call.function.name.as_str(), arguments), ("read_gauge", json!({"gauge": 1})))
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn schema(&self, text: &str) -> Ended {
        let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]});
        let format = json!({"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}});
        let answer = self.say(json!(text), json!({"response_format": format})).await.map_err(words)?;
        same(content(&answer), "{\"ok\":true}")
    }

    async fn picture(&self, text: &str) -> Ended {
        let url = json!({"url": format!("data:image/png;base64,{PICTURE}")});
        let parts = json!([{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]);
        let answer = self.say(parts, json!({})).await.map_err(words)?;
        same(content(&answer), &format!("uplink answer to: {text} (1 images)"))
    }

    async fn refused(&self, text: &str) -> Ended {
        match self.say(json!(text), json!({})).await {
            Err(OpenAIError::ApiError(error)) => {
                same((error.status_code.as_u16(), error.api_error.code.as_deref()), (400, Some("simulated_mistake")))
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn cut(&self, text: &str) -> Ended {
        let (seen, error) = self.pieces(text).await;
        if error.is_none() || !seen.concat().starts_with("uplink answer") {
            return Err(format!("half a stream came as if it were all: {seen:?}, {error:?}"));
        }
        Ok("the stream's last item is an error")
    }

    async fn limited(&self, text: &str) -> Ended {
        let client = self.client(&[("x-holdfast-offline", "fail")]);
        let answer = client.chat().create(request(json!(text), json!({}))).await.map_err(words)?;
        same(content(&answer), &format!("uplink answer to: {text}"))?;
        Ok("waits as `Retry-After` says, then asks once more")
    }

    async fn queued(&self, text: &str) -> Ended {
        let begun = std::time::Instant::now();
        match self.queue(text).await {
            // Of a 5xx it shows the whole body as the message.
            Err(OpenAIError::ApiError(error)) if error.api_error.message.contains("request_queued") => {
                same(error.status_code.as_u16(), 503)?;
                // The ticket's Retry-After is 5 s.
                if begun.elapsed().as_secs() < 5 {
                    return Err("it did not repeat it".to_owned());
                }
                Ok("repeats it by itself, whatever `x-should-retry` says: each time it is the stored one")
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn later(&self, text: &str) -> Ended {
        let answer = self.queue(text).await.map_err(words)?;
        same(content(&answer), &format!("uplink answer to: {text}"))?;
        Ok("its error does not show the id: by asking the same again, which finds the stored request")
    }

    async fn one(&self, name: &str, text: &str) -> Ended {
        let answer = |voice: &str| format!("{voice} answer to: {text}");
        match name {
            "plain" => same(content(&self.say(json!(text), json!({})).await.map_err(words)?), &answer("uplink")),
            "stream" => self.streamed(text, answer("uplink")).await,
            "tools" => self.tools(text).await,
            "schema" => self.schema(text).await,
            "picture" => self.picture(text).await,
            "refused" => self.refused(text).await,
            "failing" => self.streamed(text, answer("local")).await,
            "cut" => self.cut(text).await,
            "limited" => self.limited(text).await,
            "offline" => same(content(&self.say(json!(text), json!({})).await.map_err(words)?), &answer("local")),
            "queued" => self.queued(text).await,
            "later" => self.later(text).await,
            _ => Err("the client's program has no such step".to_owned()),
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let steps = Steps { target: std::env::args().nth(1).expect("the gateway's address") };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (name, text) = line.split_once('\t').unwrap_or((&line, ""));
        match steps.one(name, text).await {
            Ok(note) => println!("@ ok {note}"),
            Err(wrong) => println!("@ failed {}", wrong.replace('\n', " ")),
        }
    }
}
