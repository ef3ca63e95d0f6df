"""What an unmodified `ollama` package must be able to do through holdfast (or directly). Usage: see steps.py."""
import base64

import httpx
import ollama
import steps
from steps import TARGET, same

MODEL = "llama3.2"
LOCAL = "it asks the local Ollama, not an uplink: "


def client():
    if TARGET.startswith("http"):
        return ollama.Client(host=TARGET, timeout=60)
    return ollama.Client(host="http://hf", transport=httpx.HTTPTransport(uds=TARGET), timeout=60)


def say(text, **more):
    return dict(model=MODEL, messages=[{"role": "user", "content": text, **more}])


def plain(text):
    answer = client().chat(**say(text))
    same(answer.message.content, "local answer to: " + text)
    assert answer.done and answer.done_reason == "stop" and answer.eval_count > 0, answer


def stream(text):
    parts = list(client().chat(stream=True, **say(text)))
    same("".join(part.message.content for part in parts), "local answer to: " + text)
    assert parts[-1].done and len(parts) > 2, parts


def generate(text):
    same(client().generate(model=MODEL, prompt=text).response, "local answer to: " + text)
    parts = [part.response for part in client().generate(model=MODEL, prompt=text, stream=True)]
    same("".join(parts), "local answer to: " + text)


def picture(text):
    images = [base64.b64decode(steps.PICTURE)]
    answer = client().chat(model="llava", messages=[{"role": "user", "content": text, "images": images}])
    same(answer.message.content, f"local answer to: {text} (1 images)")


def tools(text):
    def read_gauge(gauge: int) -> str:
        """Read one gauge."""

    call = client().chat(tools=[read_gauge], **say(text)).message.tool_calls[0].function
    same((call.name, call.arguments), ("read_gauge", {"gauge": 1}))


def schema(text):
    same(client().chat(format=steps.VERDICT, **say(text)).message.content, '{"ok":true}')


def embed(_text):
    answer = client().embed(model="nomic-embed-text", input=["a", "b"])
    assert len(answer.embeddings) == 2 and len(answer.embeddings[0]) == 8, answer
    assert len(client().embeddings(model="nomic-embed-text", prompt="a").embedding) == 8


def lists(_text):
    assert "llama3.2:latest" in [model.model for model in client().list().models]
    assert client().show(MODEL).details.family == "llama"
    loaded = client().generate(model=MODEL, prompt="", keep_alive="5m")
    assert loaded.done_reason == "load", loaded
    assert "llama3.2:latest" in [model.model for model in client().ps().models]


def refused(text):
    try:
        client().chat(model="no-such", messages=[{"role": "user", "content": text}])
    except ollama.ResponseError as raised:
        same((raised.status_code, raised.error), (404, 'model "no-such" not found, try pulling it first'))
        return
    raise AssertionError("an unknown model answered")


def failing(text):
    try:
        list(client().chat(stream=True, **say(text)))
    except ollama.ResponseError as raised:
        same((raised.status_code, raised.error), (500, "simulated error 500"))
        return "the local Ollama's own 500 is the client's error: nothing stands behind it"
    raise AssertionError("a failure came as an answer")


def cut(text):
    seen = []
    try:
        for part in client().chat(stream=True, **say(text)):
            seen.append(part.message.content)
    except (ollama.ResponseError, httpx.HTTPError) as raised:
        assert "".join(seen) != "local answer to: " + text, seen
        return f"raises {type(raised).__name__} after the pieces that came"
    raise AssertionError(f"half a stream came as if it were all: {seen}")


STEPS = dict(
    plain=plain, chat=plain, stream=stream, generate=generate, picture=picture, tools=tools, schema=schema, embed=embed,
    lists=lists, refused=refused, failing=failing, cut=cut,
    limited="an Ollama has no rate limit",
    offline=plain,
    queued=LOCAL + "nothing of it is stored",
    later=LOCAL + "nothing of it is stored",
)
steps.main(STEPS, "ollama")
