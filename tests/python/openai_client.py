"""What an unmodified openai-python (1, 2 or 3) must be able to do through holdfast.

Usage: openai_client.py TARGET STEP...   TARGET is the path of a UNIX socket, or an http:// base address.
Steps: plain stream tools json embeddings models error offline kept ticket begin fetch. Prints one line per step; exits 1 at the
first broken promise.
"""
import base64
import io
import json
import struct
import sys
import time

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


def kept():
    def once(expected):
        raw = client().chat.completions.with_raw_response.create(**ask("python kept", temperature=0))
        assert raw.headers["x-cache"] == expected, dict(raw.headers)
        pieces, usage = [], None
        options = {"include_usage": True}
        more = dict(temperature=0, stream=True, stream_options=options)
        for chunk in client().chat.completions.create(**ask("python kept stream", **more)):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
        embedded = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        return raw.parse(), "".join(pieces), usage, embedded

    first, second = once("MISS"), once("HIT")
    assert first == second, (first, second)
    assert second[1] == "uplink answer to: python kept stream" and second[2].total_tokens > 0, second


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


def lines():
    for n in range(3):
        body = ask("python line %d" % n)
        yield json.dumps(dict(custom_id="line-%d" % n, method="POST", url="/v1/chat/completions", body=body))


def begin():
    """In the outage: a batch and a background response are taken."""
    content = io.BytesIO("\n".join(lines()).encode())
    file = client().files.create(file=("lines.jsonl", content), purpose="batch")
    assert file.object == "file" and file.purpose == "batch" and file.bytes > 0, file
    assert file.id in [known.id for known in client().files.list(purpose="batch")]
    assert client().files.retrieve(file.id).filename == "lines.jsonl"
    batch = client().batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                    metadata={"shift": "late"})
    assert batch.status in ("validating", "in_progress") and batch.metadata == {"shift": "late"}, batch
    unwanted = client().batches.create(input_file_id=file.id, endpoint="/v1/chat/completions",
                                       completion_window="24h")
    assert client().batches.cancel(unwanted.id).status in ("cancelling", "cancelled")
    # Two pages of one.
    assert [known.id for known in client().batches.list(limit=1)] == [unwanted.id, batch.id]
    response = client().responses.create(model="gpt-4o", input="python background", background=True)
    assert response.status == "queued" and client().responses.retrieve(response.id).output_text == "", response
    doomed = client().responses.create(model="gpt-4o", input="python doomed", background=True)
    assert client().responses.cancel(doomed.id).status == "cancelled"
    client().responses.delete(doomed.id)
    print("later", batch.id, response.id)


def fetch():
    """After the outage: both are there."""
    batch_id, response_id = sys.argv[-2:]
    until = time.monotonic() + 60
    while client().batches.retrieve(batch_id).status != "completed":
        assert time.monotonic() < until, client().batches.retrieve(batch_id)
        time.sleep(0.05)
    batch = client().batches.retrieve(batch_id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 0), batch
    answers = [json.loads(line) for line in client().files.content(batch.output_file_id).text.splitlines()]
    said = {a["custom_id"]: a["response"]["body"]["choices"][0]["message"]["content"] for a in answers}
    assert said == {"line-%d" % n: "uplink answer to: python line %d" % n for n in range(3)}, said
    client().files.delete(batch.input_file_id)
    try:
        client().files.retrieve(batch.input_file_id)
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a deleted file is there")
    while client().responses.retrieve(response_id).status in ("queued", "in_progress"):
        assert time.monotonic() < until, client().responses.retrieve(response_id)
        time.sleep(0.05)
    response = client().responses.retrieve(response_id)
    assert response.status == "completed" and response.id == response_id, response
    assert response.output_text == "uplink answer to: python background", response
    assert response.usage.output_tokens > 0, response


STEPS = dict(plain=plain, stream=stream, tools=tools, json=json_mode, embeddings=embeddings, models=models,
             error=error, offline=offline, kept=kept, ticket=ticket, begin=begin, fetch=fetch)

for name in sys.argv[2:]:
    if name not in STEPS:
        break  # What the last step was given.
    STEPS[name]()
    print("ok", name, flush=True)
