"""langchain-tests' own suite for chat models, against one server.

Usage: langchain_suite.py BASE_URL KEY. Prints a line `@ OUTCOME NAME` for each test; which of them pass is for the caller to
compare. Its exit code is 0 if the suite ran to its end.
"""
import sys

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

BASE_URL, KEY = sys.argv[1:3] if len(sys.argv) > 2 else ("", "")


class TestChatOpenAI(ChatModelIntegrationTests):
    """Nothing but the server's address is ours."""

    server = ("", "")

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        base_url, key = self.server
        return {"model": "gpt-4o", "base_url": base_url, "api_key": key, "stream_usage": True, "timeout": 60}

    @property
    def supports_json_mode(self):
        return True


class Outcomes:
    """A test that fails in any of its phases has failed."""

    def __init__(self):
        self.of = {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            item.cls.server = (BASE_URL, KEY)

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1]
        if report.when == "call" or report.outcome != "passed":
            worse = self.of.get(name) == "failed"
            self.of[name] = "failed" if worse else report.outcome


if __name__ == "__main__":
    outcomes = Outcomes()
    options = ["-q", "--disable-recording", "-p", "no:cacheprovider", "--tb=line"]
    # One loop for all: clients that keep connections would meet those of a loop that has ended.
    for option in ("asyncio_mode=auto", "asyncio_default_test_loop_scope=session",
                   "asyncio_default_fixture_loop_scope=session"):
        options += ["-o", option]
    ended = pytest.main([*options, __file__], plugins=[outcomes])
    for name, outcome in sorted(outcomes.of.items()):
        print("@", outcome, name)
    sys.exit(0 if ended in (0, 1) and outcomes.of else 1)
