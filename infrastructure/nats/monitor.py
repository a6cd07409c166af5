"""Prints a line about the server every few seconds, read from its monitoring endpoint.

    python monitor.py [--url http://127.0.0.1:8222] [--interval 5] [--once]
"""

import argparse
import json
import sys
import time
import urllib.request
from http.client import HTTPException

COLUMNS = (
    "{time:>8}  {clients:>7}  {subs:>5}  {ins:>9}  {outs:>9}"
    "  {slow:>4}  {mem:>8}  {streams:>7}  {stored:>10}"
)


def fetch(url: str, path: str) -> dict:
    with urllib.request.urlopen(f"{url.rstrip('/')}/{path}", timeout=5) as answer:
        return json.load(answer)


def line(url: str) -> str:
    server, jetstream = fetch(url, "varz"), fetch(url, "jsz")
    if "connections" not in server:
        raise ValueError("what answers is no nats-server")
    return COLUMNS.format(
        time=time.strftime("%H:%M:%S"),
        clients=server["connections"],
        subs=server["subscriptions"],
        ins=server["in_msgs"],
        outs=server["out_msgs"],
        slow=server["slow_consumers"],
        mem=f"{server['mem'] / 2**20:.0f} MiB",
        streams=jetstream.get("streams", 0),
        stored=f"{jetstream.get('storage', 0) / 2**20:.1f} MiB",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch a nats-server.")
    parser.add_argument("--url", default="http://127.0.0.1:8222")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between lines")
    parser.add_argument("--once", action="store_true", help="print one line and end")
    options = parser.parse_args()
    if options.interval <= 0:
        parser.error("--interval is a number of seconds above 0")
    print(
        COLUMNS.format(
            time="time", clients="clients", subs="subs", ins="msgs in", outs="msgs out",
            slow="slow", mem="memory", streams="streams", stored="stored",
        )
    )  # fmt: skip
    while True:
        try:
            print(line(options.url), flush=True)
        except (OSError, HTTPException, ValueError) as error:
            if options.once:
                sys.exit(f"monitor: no answer from {options.url}: {error}")
            print(f"{time.strftime('%H:%M:%S')}  no answer: {error}", flush=True)
        if options.once:
            return
        time.sleep(options.interval)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
