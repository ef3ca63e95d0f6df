//! The rows of the table: which clients, where they come from, and which of holdfast's sides they speak to.
//!
//! Data only; a row's checks are in its own program under `python/`, `node/` or `rust/`.

/// Where a client comes from.
pub enum Kind {
    /// Packages of PyPI; the first one is the client.
    Python { packages: &'static [&'static str] },
    /// Packages of npm; the first one is the client.
    Node { packages: &'static [&'static str] },
    /// A crate of crates.io, built with the program of its own.
    Rust { name: &'static str },
}

/// What a client speaks to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// OpenAI's API, answered by an uplink.
    Uplink,
    /// Ollama's own API, answered by the local Ollama.
    Ollama,
}

/// One row.
pub struct Client {
    /// As the table calls it.
    pub name: &'static str,
    pub kind: Kind,
    /// Its program, without the ending.
    pub program: &'static str,
    /// It can be told to use a UNIX socket; others use TCP on loopback.
    pub by_socket: bool,
    pub side: Side,
}

const fn python(name: &'static str, program: &'static str, packages: &'static [&'static str]) -> Client {
    Client { name, kind: Kind::Python { packages }, program, by_socket: false, side: Side::Uplink }
}

const fn node(name: &'static str, program: &'static str, packages: &'static [&'static str]) -> Client {
    Client { name, kind: Kind::Node { packages }, program, by_socket: false, side: Side::Uplink }
}

const fn by_socket(client: Client) -> Client {
    Client { by_socket: true, ..client }
}

const fn of_ollama(client: Client) -> Client {
    Client { side: Side::Ollama, ..client }
}

/// The table, from top to bottom.
pub const ALL: [Client; 11] = [
    by_socket(python("openai-python 1", "openai_client", &["openai==1.*"])),
    by_socket(python("openai-python 2", "openai_client", &["openai==2.*"])),
    by_socket(python("openai-python 3", "openai_client", &["openai==3.*"])),
    by_socket(node("openai-node", "openai_client", &["openai", "undici@7"])),
    python("LangChain", "langchain_client", &["langchain-openai"]),
    python("LlamaIndex", "llamaindex_client", &["llama-index-llms-openai"]),
    python("llm", "llm_client", &["llm"]),
    node("Vercel ai", "ai_client", &["ai", "@ai-sdk/openai-compatible"]),
    Client {
        name: "async-openai",
        kind: Kind::Rust { name: "async-openai" },
        program: "async-openai-client",
        by_socket: false,
        side: Side::Uplink,
    },
    of_ollama(by_socket(python("ollama-python", "ollama_client", &["ollama"]))),
    of_ollama(node("ollama-js", "ollama_client", &["ollama"])),
];
