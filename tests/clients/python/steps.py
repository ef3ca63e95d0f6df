"""The loop of every Python client: reads one step a line, does it, says in one line how it ended.

Usage of a client: CLIENT.py TARGET [STEP[=TEXT]...]   TARGET is the path of a UNIX socket or an http:// base address.
Steps given are done in their order, up to the first that fails; so tests/promises/clients.rs uses it. Without any, each
line of standard input is one: its name, a tab, the text to ask; the answer is a line `@ ok`, `@ n/a REASON` or `@ failed
REASON`.

A step is a function of the text, or a text: the reason why this client has no such thing.
"""
import sys
import traceback

TARGET = sys.argv[1]
HAS_STEPS_GIVEN = len(sys.argv) > 2

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
GAUGE = {"type": "object", "properties": {"gauge": {"type": "integer"}}, "required": ["gauge"]}
VERDICT = {
    "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False,
}


def one(steps, name, text):
    step = steps.get(name, "the client's program has no such step")
    if isinstance(step, str):
        return "n/a " + step
    try:
        note = step(text)
    except Exception as error:  # noqa: BLE001 - whatever a client raises is the result
        traceback.print_exc()
        return "failed " + f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    return "ok " + (note or "")


def main(steps, prefix):
    """Does what the command line or standard input asks for."""
    for step in sys.argv[2:]:
        name, _, text = step.partition("=")
        steps[name](text or f"{prefix} {name}" + (": use the tool" if name == "tools" else ""))
        print("ok", name, flush=True)
    if HAS_STEPS_GIVEN:
        return
    for line in sys.stdin:
        name, text = line.rstrip("\n").split("\t")
        print("@", one(steps, name, text), flush=True)


def same(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"
