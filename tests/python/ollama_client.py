"""What an unmodified `ollama` package must be able to do through holdfast (or directly: TARGET is an address).

Usage: ollama_client.py TARGET STEP...   TARGET is a UNIX socket path or an http:// base address.
"""
import sys

import httpx
import ollama

TARGET = sys.argv[1]
MODEL = "llama3.2"


def client():
    if TARGET.startswith("http"):
        return ollama.Client(host=TARGET, timeout=20)
    made = ollama.Client(host="http://hf", timeout=20)
    # The package has no option for a socket; its transport is replaced, nothing else.
    made._client = httpx.Client(base_url="http://hf", transport=httpx.HTTPTransport(uds=TARGET), timeout=20)
    return made


def say(text, **more):
    return dict(model=MODEL, messages=[{"role": "user", "content": text, **more}])


def chat():
    answer = client().chat(**say("ollama chat"))
    assert answer.message.content == "local answer to: ollama chat", answer
    assert answer.done and answer.done_reason == "stop" and answer.eval_count > 0, answer


def stream():
    parts = list(client().chat(stream=True, **say("ollama stream")))
    assert "".join(part.message.content for part in parts) == "local answer to: ollama stream", parts
    assert parts[-1].done and len(parts) > 2, parts


def generate():
    assert client().generate(model=MODEL, prompt="ollama gen").response == "local answer to: ollama gen"
    parts = [part.response for part in client().generate(model=MODEL, prompt="ollama gen", stream=True)]
    assert "".join(parts) == "local answer to: ollama gen", parts


def image():
    answer = client().chat(model="llava", messages=[{"role": "user", "content": "see", "images": [b"\x89PNG fake"]}])
    assert answer.message.content == "local answer to: see (1 images)", answer


def tools():
    def read_gauge(gauge: int) -> str:
        """Read one gauge."""

    answer = client().chat(tools=[read_gauge], **say("use the tool"))
    call = answer.message.tool_calls[0].function
    assert call.name == "read_gauge" and call.arguments == {"gauge": 1}, answer


def schema():
    wanted = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    assert client().chat(format=wanted, **say("json")).message.content == '{"ok":true}'


def embed():
    answer = client().embed(model="nomic-embed-text", input=["a", "b"])
    assert len(answer.embeddings) == 2 and len(answer.embeddings[0]) == 8, answer
    assert len(client().embeddings(model="nomic-embed-text", prompt="a").embedding) == 8


def lists():
    assert "llama3.2:latest" in [model.model for model in client().list().models]
    assert client().show(MODEL).details.family == "llama"
    loaded = client().generate(model=MODEL, prompt="", keep_alive="5m")
    assert loaded.done_reason == "load", loaded
    assert "llama3.2:latest" in [model.model for model in client().ps().models]


def error():
    try:
        client().chat(model="no-such", messages=[{"role": "user", "content": "x"}])
    except ollama.ResponseError as refused:
        assert refused.status_code == 404, refused
        assert refused.error == 'model "no-such" not found, try pulling it first', refused
        return
    raise AssertionError("an unknown model answered")


STEPS = dict(chat=chat, stream=stream, generate=generate, image=image, tools=tools, schema=schema, embed=embed,
             lists=lists, error=error)

for name in sys.argv[2:] or STEPS:
    STEPS[name]()
    print("ok", name, flush=True)
