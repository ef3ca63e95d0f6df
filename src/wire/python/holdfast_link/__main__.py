"""`python3 -m holdfast_link ADDRESS --chat TEXT`: one request from the command line."""

import argparse
import pathlib
import sys

from .client import Client, Refused, ResultGone

parser = argparse.ArgumentParser(prog="holdfast_link", description="Ask a holdfast gateway over a device link.")
parser.add_argument("address", help="/dev/ttyUSB0, unix:/run/holdfast/link.sock, listen:IP:PORT or tcp:HOST:PORT")
parser.add_argument("--baud", type=int, default=115_200)
parser.add_argument("--state", default="holdfast-link.state", help="the file that survives a restart")
parser.add_argument("--chat", metavar="TEXT", help="a prompt")
parser.add_argument("--task", type=int, metavar="N", help="a task of the gateway's configuration")
parser.add_argument("--arg", action="append", default=[], help="an argument of the task; may be given again")
parser.add_argument("--picture", action="append", default=[], help="a JPEG, PNG or WebP file; may be given again")
parser.add_argument("--wait", type=float, default=60, metavar="SECONDS")


def main() -> int:
    args = parser.parse_args()
    pictures = [pathlib.Path(path).read_bytes() for path in args.picture]
    with Client(args.address, args.state, baud=args.baud) as link:
        for request in link.unfinished():
            print(f"still open from an earlier run: {request.key:016x}", file=sys.stderr)
        if args.task is not None:
            request = link.task(args.task, *args.arg, pictures=pictures)
        elif args.chat is not None:
            request = link.chat(args.chat, pictures=pictures)
        else:
            parser.error("--chat or --task")
        try:
            answer = request.wait(args.wait)
        except (TimeoutError, Refused, ResultGone) as error:
            print(error, file=sys.stderr)
            return 1
        print(answer.text)
        return 0 if answer.ok else 1


sys.exit(main())
