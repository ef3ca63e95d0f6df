"""The device's side of the holdfast link, version 1, for cameras and PCs.

    from holdfast_link import Client

    with Client("/dev/ttyUSB0", state="camera.state") as link:
        print(link.chat("Is the weld in this picture whole?", pictures=[open("weld.jpg", "rb").read()]).wait(60).text)

What `task`, `chat` and `raw` return is on this machine's disk; it is repeated over restarts until the gateway has it
on its own, and its answer is handed over once.
"""

from .client import Client, Refused, Request, ResultGone
from .memory import Answer

__all__ = ["Answer", "Client", "Refused", "Request", "ResultGone"]
