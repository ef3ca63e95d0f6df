//! OpenAI's requests, as far as this room must understand them.
//!
//! Owns the shapes of what clients send; never changes a request. Unknown fields are ignored here, as model
//! servers do.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Endpoint, LocalError};

/// What must be known of every request, whichever server answers it.
#[derive(Deserialize)]
pub(super) struct Glance<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    #[serde(borrow, default)]
    messages: Option<Vec<GlanceMessage<'a>>>,
    #[serde(skip)]
    name: String,
}

#[derive(Deserialize)]
struct GlanceMessage<'a> {
    #[serde(borrow, default)]
    content: Option<GlanceContent<'a>>,
}

/// Strict on purpose: what is not understood here could hide an address for the model server to fetch.
#[derive(Deserialize)]
#[serde(untagged)]
enum GlanceContent<'a> {
    #[expect(dead_code, reason = "only its being a string matters")]
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(#[serde(borrow)] Vec<GlancePart<'a>>),
}

#[derive(Deserialize)]
struct GlancePart<'a> {
    #[serde(borrow, default)]
    image_url: Option<ImageUrl<'a>>,
    #[serde(default, alias = "audio_url")]
    video_url: Option<IgnoredAny>,
}

/// The address of a picture; the API says an object, many clients send the bare string.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ImageUrl<'a> {
    Bare(#[serde(borrow)] Cow<'a, str>),
    Object {
        #[serde(borrow)]
        url: Cow<'a, str>,
    },
}

impl<'a> Glance<'a> {
    pub(super) fn at(endpoint: Endpoint, body: &'a [u8]) -> Result<Self, LocalError> {
        let mut glance: Self = serde_json::from_slice(body).map_err(|e| LocalError::unreadable(endpoint.path(), &e))?;
        if let Some(model) = glance.model {
            glance.name =
                serde_json::from_str(model.get()).map_err(|_| LocalError::invalid("`model` must be a string"))?;
        }
        if glance.parts().any(|part| part.video_url.is_some()) {
            return Err(LocalError::unsupported("it takes text and pictures only, no `video_url` or `audio_url`"));
        }
        for picture in glance.pictures() {
            picture.data()?;
        }
        Ok(glance)
    }

    /// The model that the client asked for; empty if it named none.
    pub(super) fn model(&self) -> &str {
        &self.name
    }

    /// Where the value of `model` stands in the body.
    pub(super) fn raw_model(&self) -> Option<&'a RawValue> {
        self.model
    }

    pub(super) fn has_picture(&self) -> bool {
        self.pictures().next().is_some()
    }

    fn pictures(&self) -> impl Iterator<Item = &ImageUrl<'a>> {
        self.parts().filter_map(|part| part.image_url.as_ref())
    }

    fn parts(&self) -> impl Iterator<Item = &GlancePart<'a>> {
        let lists = self.messages.iter().flatten().filter_map(|message| match &message.content {
            Some(GlanceContent::Parts(parts)) => Some(parts),
            Some(GlanceContent::Text(_)) | None => None,
        });
        lists.flatten()
    }
}

impl ImageUrl<'_> {
    /// The base64 text of a data URL. Other addresses are refused: the model server must not fetch for a client
    /// what that client cannot reach itself.
    pub(super) fn data(&self) -> Result<&str, LocalError> {
        let (Self::Bare(url) | Self::Object { url }) = self;
        let head = url.get(..5).unwrap_or_default();
        if !head.eq_ignore_ascii_case("data:") {
            return Err(LocalError::unsupported(
                "the local model does not fetch pictures; send the picture itself as a data: URL in base64",
            ));
        }
        let (kind, data) =
            url[5..].split_once(',').ok_or_else(|| LocalError::invalid("a picture's data: URL has no data"))?;
        let base64 = kind.len() >= 7 && kind.is_char_boundary(kind.len() - 7);
        if !(base64 && kind[kind.len() - 7..].eq_ignore_ascii_case(";base64")) {
            return Err(LocalError::invalid("a picture's data: URL must be in base64"));
        }
        if data.is_empty() || !data.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)) {
            return Err(LocalError::invalid("a picture's data: URL is not valid base64"));
        }
        Ok(data)
    }
}

/// A chat request.
#[derive(Deserialize)]
pub(super) struct Chat<'a> {
    #[serde(borrow)]
    pub(super) messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    pub(super) tools: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) tool_choice: Option<ToolChoice>,
    #[serde(borrow, default)]
    pub(super) response_format: Option<ResponseFormat<'a>>,
    #[serde(default)]
    pub(super) reasoning_effort: Option<String>,
    #[serde(default)]
    pub(super) max_completion_tokens: Option<i64>,
    #[serde(default)]
    pub(super) modalities: Option<Vec<String>>,
    #[serde(default)]
    pub(super) functions: Option<IgnoredAny>,
}

/// What chat and completions have in common, read in a pass of its own.
#[derive(Deserialize)]
pub(super) struct Common {
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<u64>,
    pub(super) best_of: Option<u64>,
    pub(super) logprobs: Option<serde_json::Value>,
    pub(super) echo: Option<bool>,
    pub(super) max_tokens: Option<i64>,
    pub(super) temperature: Option<serde_json::Number>,
    pub(super) top_p: Option<serde_json::Number>,
    pub(super) seed: Option<serde_json::Number>,
    pub(super) frequency_penalty: Option<serde_json::Number>,
    pub(super) presence_penalty: Option<serde_json::Number>,
    pub(super) stop: Option<OneOrMore>,
}

#[derive(Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// A string or a list of strings.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub(super) fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(list) => list,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ToolChoice {
    Mode(String),
    Named(IgnoredAny),
}

#[derive(Deserialize)]
pub(super) struct ResponseFormat<'a> {
    pub(super) r#type: String,
    #[serde(borrow, default)]
    pub(super) json_schema: Option<JsonSchema<'a>>,
}

#[derive(Deserialize)]
pub(super) struct JsonSchema<'a> {
    #[serde(borrow, default)]
    pub(super) schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    pub(super) role: String,
    #[serde(borrow, default)]
    pub(super) content: Option<Content<'a>>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    pub(super) tool_call_id: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Parts(#[serde(borrow)] Vec<Part<'a>>),
}

#[derive(Deserialize)]
pub(super) struct Part<'a> {
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) refusal: Option<String>,
    #[serde(borrow, default)]
    pub(super) image_url: Option<ImageUrl<'a>>,
}

#[derive(Deserialize)]
pub(super) struct ToolCall {
    #[serde(default)]
    pub(super) id: String,
    pub(super) function: Function,
}

#[derive(Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    #[serde(default)]
    pub(super) arguments: String,
}

/// A completion request.
#[derive(Deserialize)]
pub(super) struct Completion<'a> {
    #[serde(borrow)]
    pub(super) prompt: Prompt<'a>,
    #[serde(default)]
    pub(super) suffix: Option<String>,
}

/// The text to complete or embed.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Prompt<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Texts(Vec<String>),
    Tokens(IgnoredAny),
}

/// An embeddings request.
#[derive(Deserialize)]
pub(super) struct Embeddings<'a> {
    #[serde(borrow)]
    pub(super) input: Prompt<'a>,
    #[serde(default)]
    pub(super) encoding_format: Option<String>,
    #[serde(default)]
    pub(super) dimensions: Option<u32>,
}
