"""What an unmodified openai-python (1, 2 or 3) must be able to do through holdfast.

Usage: openai_client.py TARGET STEP...   TARGET is the path of a UNIX socket, or an http:// base address.
Steps: plain stream tools json embeddings models error offline ticket. Prints one line per step; exits 1 at the
first broken promise.
"""
import base64
import json
import struct
import sys

import openai

TARGET = sys.argv[1]


def client(**more):
    options = dict(api_key="anything", timeout=20, max_retries=0)
    options.update(more)
    if TARGET.startswith("http"):
        return openai.OpenAI(base_url=TARGET + "/v1", **options)
    try:
        import httpx2 as http
    except ImportError:
        import httpx as http
    transport = http.HTTPTransport(uds=TARGET)
    return openai.OpenAI(base_url="http://hf/v1", http_client=openai.DefaultHttpxClient(transport=transport), **options)


def ask(text, model="gpt-4o", **more):
    return dict(model=model, messages=[{"role": "user", "content": text}], **more)


def plain():
    answer = client().chat.completions.create(**ask("python plain"))
    assert answer.choices[0].message.content == "uplink answer to: python plain", answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 0, answer


def stream():
    pieces, usage = [], None
    options = {"include_usage": True}
    for chunk in client().chat.completions.create(**ask("python stream", stream=True, stream_options=options)):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == "uplink answer to: python stream", pieces
    assert usage is not None and usage.total_tokens > 0, usage


def tools():
    tool = {"type": "function", "function": {"name": "read_gauge", "parameters": {
        "type": "object", "properties": {"gauge": {"type": "integer"}}}}}
    answer = client().chat.completions.create(**ask("please use the tool", tools=[tool]))
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "read_gauge" and json.loads(call.function.arguments) == {"gauge": 1}, answer


def json_mode():
    answer = client().chat.completions.create(**ask("as json", response_format={"type": "json_object"}))
    assert json.loads(answer.choices[0].message.content) == {"ok": True}, answer


def embeddings():
    floats = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    # Without a format the SDK asks for base64 by itself and decodes it.
    decoded = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert len(floats.data) == 2 and floats.data[0].embedding != floats.data[1].embedding, floats
    for left, right in zip(floats.data[1].embedding, decoded.data[1].embedding):
        assert abs(left - right) < 1e-6, (left, right)
    raw = client().embeddings.create(model="text-embedding-3-small", input="a", encoding_format="base64")
    assert len(struct.unpack("<8f", base64.b64decode(raw.data[0].embedding))) == 8, raw


def models():
    names = [model.id for model in client().models.list()]
    assert "gpt-4o" in names, names
    assert client().models.retrieve("gpt-4o").id == "gpt-4o"


def error():
    try:
        client().chat.completions.create(**ask("too hot", temperature=9))
    except openai.BadRequestError as refused:
        assert refused.code == "decimal_out_of_range", refused
        assert "temperature" in str(refused), refused
        return
    raise AssertionError("a temperature of 9 was accepted")


def offline():
    raw = client().chat.completions.with_raw_response.create(**ask("python offline"))
    answer = raw.parse()
    assert answer.choices[0].message.content == "local answer to: python offline", answer
    assert raw.headers["x-holdfast-state"] == "queued", dict(raw.headers)
    assert raw.headers["x-holdfast-route"].startswith("local:"), dict(raw.headers)
    pieces = client().chat.completions.create(**ask("python offline stream", stream=True))
    text = "".join(choice.delta.content or "" for chunk in pieces for choice in chunk.choices)
    assert text == "local answer to: python offline stream", text


def ticket():
    # Two retries, as every user has: x-should-retry must keep the SDK from spending them.
    impatient = client(timeout=2, max_retries=2, default_headers={"X-Holdfast-Offline": "queue"})
    try:
        impatient.chat.completions.create(**ask("python ticket"))
    except openai.InternalServerError as queued:
        assert queued.status_code == 503 and queued.code == "request_queued", queued
        headers = queued.response.headers
        assert headers["location"] and 1 <= int(headers["retry-after"]) <= 30, dict(headers)
        print("id", headers["x-holdfast-id"])
        return
    raise AssertionError("a queued request was answered during the outage")


STEPS = dict(plain=plain, stream=stream, tools=tools, json=json_mode, embeddings=embeddings, models=models,
             error=error, offline=offline, ticket=ticket)

for name in sys.argv[2:]:
    STEPS[name]()
    print("ok", name, flush=True)
