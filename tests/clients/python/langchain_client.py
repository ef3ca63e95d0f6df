"""What an unmodified langchain-openai must be able to do through holdfast. Usage: see steps.py."""
import langchain_openai
import openai
import pydantic
import steps
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from steps import TARGET, same


class Verdict(pydantic.BaseModel):
    """What is the matter."""

    ok: bool


@tool
def read_gauge(gauge: int) -> str:
    """Reads one gauge."""
    return f"gauge {gauge}"


def model(word=None, **more):
    headers = {"X-Holdfast-Offline": word} if word else {}
    return langchain_openai.ChatOpenAI(
        model="gpt-4o", base_url=TARGET + "/v1", api_key="anything", default_headers=headers, **more
    )


def plain(text):
    same(model().invoke(text).content, "uplink answer to: " + text)


def stream(text):
    pieces = [chunk.content for chunk in model().stream(text)]
    same("".join(pieces), "uplink answer to: " + text)
    assert len(pieces) > 2, pieces


def tools(text):
    call = model().bind_tools([read_gauge]).invoke(text).tool_calls[0]
    same((call["name"], call["args"]), ("read_gauge", {"gauge": 1}))


def schema(text):
    same(model().with_structured_output(Verdict, method="json_schema").invoke(text), Verdict(ok=True))


def picture(text):
    url = {"url": "data:image/png;base64," + steps.PICTURE}
    message = HumanMessage(content=[{"type": "text", "text": text}, {"type": "image_url", "image_url": url}])
    same(model().invoke([message]).content, f"uplink answer to: {text} (1 images)")


def refused(text):
    try:
        model().invoke(text)
    except openai.BadRequestError as raised:
        same((raised.status_code, raised.code), (400, "simulated_mistake"))
        return
    raise AssertionError("a refusal came as an answer")


def failing(text):
    same("".join(chunk.content for chunk in model().stream(text)), "local answer to: " + text)


def cut(text):
    seen = []
    try:
        for chunk in model().stream(text):
            seen.append(chunk.content)
    except openai.APIError as raised:
        assert "".join(seen).startswith("uplink answer") and "".join(seen) != "uplink answer to: " + text, seen
        return f"raises openai's {type(raised).__name__} after the pieces that came"
    raise AssertionError(f"half a stream came as if it were all: {seen}")


def limited(text):
    same(model("fail").invoke(text).content, "uplink answer to: " + text)
    return "waits as `Retry-After` says, then asks once more"


def offline(text):
    same(model().invoke(text).content, "local answer to: " + text)


def queued(text):
    try:
        model("queue", timeout=2).invoke(text)
    except openai.InternalServerError as raised:
        same((raised.status_code, raised.code), (503, "request_queued"))
        return
    raise AssertionError("a queued request was answered during the outage")


def later(text):
    same(model("queue", timeout=2).invoke(text).content, "uplink answer to: " + text)
    return "has no fetch by id: by asking the same again, which finds the stored request"


steps.main(
    dict(plain=plain, stream=stream, tools=tools, schema=schema, picture=picture, refused=refused, failing=failing,
         cut=cut, limited=limited, offline=offline, queued=queued, later=later),
    "langchain",
)
