"""What an unmodified llama-index-llms-openai must be able to do through holdfast. Usage: see steps.py."""
import base64

import openai
import pydantic
import steps
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from steps import TARGET, same


class Verdict(pydantic.BaseModel):
    """What is the matter."""

    ok: bool


def read_gauge(gauge: int) -> str:
    """Reads one gauge."""
    return f"gauge {gauge}"


def model(word=None, **more):
    headers = {"X-Holdfast-Offline": word} if word else {}
    return OpenAI(model="gpt-4o", api_base=TARGET + "/v1", api_key="anything", default_headers=headers, **more)


def ask(text):
    return [ChatMessage(role="user", content=text)]


def plain(text):
    same(model().chat(ask(text)).message.content, "uplink answer to: " + text)


def stream(text):
    pieces = [chunk.delta or "" for chunk in model().stream_chat(ask(text))]
    same("".join(pieces), "uplink answer to: " + text)
    assert len(pieces) > 2, pieces


def tools(text):
    answer = model().chat_with_tools([FunctionTool.from_defaults(read_gauge)], user_msg=text)
    call = model().get_tool_calls_from_response(answer)[0]
    same((call.tool_name, call.tool_kwargs), ("read_gauge", {"gauge": 1}))


def schema(text):
    same(model().as_structured_llm(Verdict).chat(ask(text)).raw, Verdict(ok=True))


def picture(text):
    blocks = [TextBlock(text=text), ImageBlock(image=base64.b64decode(steps.PICTURE), image_mimetype="image/png")]
    answer = model().chat([ChatMessage(role="user", blocks=blocks)])
    same(answer.message.content, f"uplink answer to: {text} (1 images)")


def refused(text):
    try:
        model().chat(ask(text))
    except openai.BadRequestError as raised:
        same((raised.status_code, raised.code), (400, "simulated_mistake"))
        return
    raise AssertionError("a refusal came as an answer")


def failing(text):
    same("".join(chunk.delta or "" for chunk in model().stream_chat(ask(text))), "local answer to: " + text)


def cut(text):
    seen = []
    try:
        for chunk in model().stream_chat(ask(text)):
            seen.append(chunk.delta or "")
    except openai.APIError as raised:
        assert "".join(seen).startswith("uplink answer") and "".join(seen) != "uplink answer to: " + text, seen
        return f"raises openai's {type(raised).__name__} after the pieces that came"
    raise AssertionError(f"half a stream came as if it were all: {seen}")


def limited(text):
    same(model("fail").chat(ask(text)).message.content, "uplink answer to: " + text)
    return "waits as `Retry-After` says, then asks once more"


def offline(text):
    same(model().chat(ask(text)).message.content, "local answer to: " + text)


def queued(text):
    try:
        model("queue", timeout=2).chat(ask(text))
    except openai.InternalServerError as raised:
        same((raised.status_code, raised.code), (503, "request_queued"))
        return
    raise AssertionError("a queued request was answered during the outage")


def later(text):
    same(model("queue", timeout=2).chat(ask(text)).message.content, "uplink answer to: " + text)
    return "has no fetch by id: by asking the same again, which finds the stored request"


steps.main(
    dict(plain=plain, stream=stream, tools=tools, schema=schema, picture=picture, refused=refused, failing=failing,
         cut=cut, limited=limited, offline=offline, queued=queued, later=later),
    "llamaindex",
)
