"""``python -m gateway.lab.client.udp ADDRESS PORT``: send datagrams, print the answers of a site, one JSON a line.

``--port`` fixes the source port; ``--count`` and ``--interval`` keep one socket busy. Exit code 1 if an answer was
missing. Each line is ``{"n", "after" (ms), "answer" (the site's record, or null)}``.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("target", type=int)
    parser.add_argument("--port", type=int, default=0, help="source port")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--interval", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--text", default="ping")
    options = parser.parse_args()
    six = ":" in options.address
    missing = 0
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("::" if six else "0.0.0.0", options.port))
        for number in range(options.count):
            begun = time.monotonic()
            answer = exchange(client, (options.address, options.target), f"{options.text} {number}", options.timeout)
            missing += answer is None
            took = round((time.monotonic() - begun) * 1000, 1)
            print(json.dumps({"n": number, "after": took, "answer": answer}), flush=True)
            if number + 1 < options.count:
                time.sleep(max(0.0, begun + options.interval - time.monotonic()))
    return 1 if missing else 0


def exchange(client: socket.socket, target: tuple[str, int], text: str, timeout: float) -> object | None:
    """The answer to this very datagram, None after ``timeout`` seconds or an ICMP error."""
    deadline = time.monotonic() + timeout
    try:
        client.sendto(text.encode(), target)
        while (left := deadline - time.monotonic()) > 0:
            client.settimeout(left)
            found: dict[str, object] = json.loads(client.recv(65535))
            if found.get("text") == text:
                return found
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
