"""What an unmodified openai-python (1, 2 or 3) must be able to do through holdfast. Usage: see steps.py."""
import base64
import io
import json
import struct
import time

import openai
import steps
from steps import TARGET, same

WAITING = {}


def client(**more):
    options = dict(api_key="anything", timeout=60)
    if steps.HAS_STEPS_GIVEN:
        # Nothing may be hidden by a second try.
        options.update(timeout=20, max_retries=0)
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


def kept(text):
    def once(expected):
        raw = client().chat.completions.with_raw_response.create(**ask(text, temperature=0))
        assert raw.headers["x-cache"] == expected, dict(raw.headers)
        pieces, usage = [], None
        more = dict(temperature=0, stream=True, stream_options={"include_usage": True})
        for chunk in say(text + " stream", **more):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
        embedded = client().embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        return raw.parse(), "".join(pieces), usage, embedded

    first, second = once("MISS"), once("HIT")
    assert first == second, (first, second)
    same(second[1], f"uplink answer to: {text} stream")
    assert second[2].total_tokens > 0, second


def lines():
    for n in range(3):
        body = ask("python line %d" % n)
        yield json.dumps(dict(custom_id="line-%d" % n, method="POST", url="/v1/chat/completions", body=body))


def begin(_text):
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


def fetch(ids):
    """After the outage: the batch and the response that these ids name are there."""
    batch_id, response_id = ids.split()
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


STEPS = dict(
    plain=plain, stream=stream, tools=tools, schema=schema, json=json_mode, picture=picture, embeddings=embeddings,
    models=models, error=error, refused=refused, failing=failing, cut=cut, limited=limited, offline=offline,
    offline_stream=offline_stream, queued=queued, later=later,
    kept=kept, begin=begin, fetch=fetch,
)
steps.main(STEPS, "python")
