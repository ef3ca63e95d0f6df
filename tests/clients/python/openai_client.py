"""What an unmodified openai-python (1, 2 or 3) must be able to do through holdfast. Usage: see steps.py."""
import base64
import json
import struct

import openai
import steps
from steps import TARGET, same

WAITING = {}


def client(**more):
    options = dict(api_key="anything", timeout=60)
    options.update(more)
    if TARGET.startswith("http"):
        return openai.OpenAI(base_url=TARGET + "/v1", **options)
    try:
        import httpx2 as http
    except ImportError:
        import httpx as http
    transport = http.HTTPTransport(uds=TARGET)
    return openai.OpenAI(base_url="http://hf/v1", http_client=openai.DefaultHttpxClient(transport=transport), **options)


def policy(word):
    return {"default_headers": {"X-Holdfast-Offline": word}}


def ask(text, model="gpt-4o", **more):
    return dict(model=model, messages=[{"role": "user", "content": text}], **more)


def say(text, options=None, **more):
    return client(**options or {}).chat.completions.create(**ask(text, **more))


def content(answer):
    return answer.choices[0].message.content


def joined(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def plain(text):
    answer = say(text)
    same(content(answer), "uplink answer to: " + text)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 0, answer


def stream(text):
    pieces, usage = [], None
    for chunk in say(text, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    same("".join(pieces), "uplink answer to: " + text)
    assert len(pieces) > 2 and usage is not None and usage.total_tokens > 0, (pieces, usage)


def tools(text):
    tool = {"type": "function", "function": {"name": "read_gauge", "parameters": steps.GAUGE}}
    call = say(text, tools=[tool]).choices[0].message.tool_calls[0].function
    same((call.name, json.loads(call.arguments)), ("read_gauge", {"gauge": 1}))


def schema(text):
    wanted = {"name": "verdict", "strict": True, "schema": steps.VERDICT}
    answer = say(text, response_format={"type": "json_schema", "json_schema": wanted})
    same(json.loads(content(answer)), {"ok": True})


def json_mode(text):
    same(json.loads(content(say(text, response_format={"type": "json_object"}))), {"ok": True})


def picture(text):
    url = {"url": "data:image/png;base64," + steps.PICTURE}
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
    answer = client().chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    same(content(answer), f"uplink answer to: {text} (1 images)")


def embeddings(_text):
    floats = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    # Without a format the SDK asks for base64 by itself and decodes it.
    decoded = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert len(floats.data) == 2 and floats.data[0].embedding != floats.data[1].embedding, floats
    for left, right in zip(floats.data[1].embedding, decoded.data[1].embedding):
        assert abs(left - right) < 1e-6, (left, right)
    raw = client().embeddings.create(model="text-embedding-3-small", input="a", encoding_format="base64")
    assert len(struct.unpack("<8f", base64.b64decode(raw.data[0].embedding))) == 8, raw


def models(_text):
    names = [model.id for model in client().models.list()]
    assert "gpt-4o" in names, names
    assert client().models.retrieve("gpt-4o").id == "gpt-4o"


def error(text):
    try:
        say(text, temperature=9)
    except openai.BadRequestError as refused:
        assert refused.code == "decimal_out_of_range", refused
        assert "temperature" in str(refused), refused
        return
    raise AssertionError("a temperature of 9 was accepted")


def refused(text):
    try:
        say(text)
    except openai.BadRequestError as raised:
        same((raised.status_code, raised.code), (400, "simulated_mistake"))
        return
    raise AssertionError("a refusal came as an answer")


def failing(text):
    same(joined(say(text, stream=True)), "local answer to: " + text)


def cut(text):
    seen = []
    try:
        for chunk in say(text, stream=True):
            seen += [choice.delta.content or "" for choice in chunk.choices]
    except openai.APIError as raised:
        assert "".join(seen).startswith("uplink answer") and "".join(seen) != "uplink answer to: " + text, seen
        return f"raises {type(raised).__name__} after the pieces that came"
    raise AssertionError(f"half a stream came as if it were all: {seen}")


def limited(text):
    same(content(say(text, policy("fail"))), "uplink answer to: " + text)
    return "waits as `Retry-After` says, then asks once more"


def offline(text):
    raw = client().chat.completions.with_raw_response.create(**ask(text))
    same(content(raw.parse()), "local answer to: " + text)
    same(raw.headers["x-holdfast-state"], "queued")
    assert raw.headers["x-holdfast-route"].startswith("local:"), dict(raw.headers)


def offline_stream(text):
    same(joined(say(text, stream=True)), "local answer to: " + text)


def queued(text):
    # Two retries, as every user has: x-should-retry must keep the SDK from spending them.
    try:
        say(text, dict(timeout=2, max_retries=2, **policy("queue")))
    except openai.InternalServerError as raised:
        same((raised.status_code, raised.code), (503, "request_queued"))
        headers = raised.response.headers
        assert headers["location"] and 1 <= int(headers["retry-after"]) <= 30, dict(headers)
        WAITING[text] = headers["x-holdfast-id"]
        print("id", headers["x-holdfast-id"])
        return
    raise AssertionError("a queued request was answered during the outage")


def later(text):
    same(content(client().chat.completions.retrieve(WAITING[text])), "uplink answer to: " + text)
    return "by its id"


STEPS = dict(
    plain=plain, stream=stream, tools=tools, schema=schema, json=json_mode, picture=picture, embeddings=embeddings,
    models=models, error=error, refused=refused, failing=failing, cut=cut, limited=limited, offline=offline,
    offline_stream=offline_stream, queued=queued, later=later,
)
steps.main(STEPS, "python")
