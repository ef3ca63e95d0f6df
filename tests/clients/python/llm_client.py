"""What an unmodified `llm` (the command) must be able to do through holdfast. Usage: see steps.py.

Its models stand in extra-openai-models.yaml, as its documentation says.
"""
import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import steps
from steps import TARGET, same

HOME = pathlib.Path(tempfile.mkdtemp(prefix="llm"))
LLM = pathlib.Path(sys.executable).with_name("llm")
MODELS = """
- model_id: {name}
  model_name: gpt-4o
  api_base: "{target}/v1"
  supports_tools: true
  supports_schema: true
  vision: true
  headers: {headers}
"""
FUNCTION = '''
def read_gauge(gauge: int) -> str:
    "Reads one gauge."
    return f"gauge {gauge} is at 71 C"
'''


def write_models():
    wanted = dict(hf="{}", hf_fail="{X-Holdfast-Offline: fail}", hf_queue="{X-Holdfast-Offline: queue, Prefer: wait=1}")
    text = "".join(MODELS.format(name=name, target=TARGET, headers=headers) for name, headers in wanted.items())
    (HOME / "extra-openai-models.yaml").write_text(text)


def llm(*arguments, model="hf"):
    """What it prints, what it complains of, and how it ended."""
    command = [LLM, "-m", model, "--no-log", *arguments]
    environment = dict(os.environ, LLM_USER_PATH=str(HOME))
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr.strip(), done.returncode


def well(*arguments, **more):
    said, complaint, code = llm(*arguments, **more)
    assert code == 0, complaint
    return said


def badly(*arguments, **more):
    said, complaint, code = llm(*arguments, **more)
    assert code != 0, f"it ended well and said {said!r}"
    return said, complaint


def plain(text):
    same(well("--no-stream", text), "uplink answer to: " + text)


def stream(text):
    same(well(text), "uplink answer to: " + text)


def tools(text):
    said = well("--functions", FUNCTION, "--no-stream", text)
    assert "gauge 1 is at 71 C" in said, said
    return "runs the tool itself and asks again with its result"


def schema(text):
    same(json.loads(well("--no-stream", "--schema", json.dumps(steps.VERDICT), text)), {"ok": True})


def picture(text):
    file = HOME / "picture.png"
    file.write_bytes(base64.b64decode(steps.PICTURE))
    same(well("--no-stream", "-a", str(file), text), f"uplink answer to: {text} (1 images)")


def refused(text):
    _, complaint = badly("--no-stream", text)
    assert "400" in complaint and "Simulated error 400." in complaint, complaint


def failing(text):
    same(well(text), "local answer to: " + text)


def cut(text):
    said, complaint = badly(text)
    assert said.startswith("uplink answer") and said != "uplink answer to: " + text, said
    assert "Error" in complaint, complaint
    return "ends with an error after the pieces that came"


def limited(text):
    same(well("--no-stream", text, model="hf_fail"), "uplink answer to: " + text)
    return "waits as `Retry-After` says, then asks once more"


def offline(text):
    same(well("--no-stream", text), "local answer to: " + text)


def queued(text):
    _, complaint = badly("--no-stream", text, model="hf_queue")
    assert "503" in complaint and "the request is stored" in complaint and "/requests/req_" in complaint, complaint


def later(text):
    same(well("--no-stream", text, model="hf_queue"), "uplink answer to: " + text)
    return "has no fetch by id: by asking the same again, which finds the stored request"


write_models()
steps.main(
    dict(plain=plain, stream=stream, tools=tools, schema=schema, picture=picture, refused=refused, failing=failing,
         cut=cut, limited=limited, offline=offline, queued=queued, later=later),
    "llm",
)
