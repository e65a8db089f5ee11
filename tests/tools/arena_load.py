"""Load on a real arena in a process of its own: kills, double submits, and voters at once.

    python tests/tools/arena_load.py kills 200    # kill -9 after replies: is every vote there?
    python tests/tools/arena_load.py voters 50    # votes a second of 50 voters at once

It makes a results folder of small pictures, needs nothing but this repository, and prints JSON.
"""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from quantarena.leaderboard.arena.log import Log

ROOT = Path(__file__).parent.parent.parent
STARTS = "from quantarena.bench.cli import main; main()"


def synthetic(folder):
    """The results folder that the tests of the leaderboard use."""
    where = ROOT / "tests" / "leaderboard" / "conftest.py"
    spec = importlib.util.spec_from_file_location("leaderboard_conftest", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(folder, plan=module.grid(images=64))
    return folder


class Server:
    """``quantarena vote`` in a process of its own."""

    def __init__(self, folder, log, *, per_minute=60_000, extra=()):
        command = [sys.executable, "-c", STARTS, "vote", str(folder), "--port", "0", "--json"]
        command += ["--log", str(log), "--per-minute", str(per_minute), *extra]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = []
        while "}" not in (line := self.process.stdout.readline()):
            if not line:
                raise RuntimeError("the server did not start")
            lines.append(line)
        self.url = json.loads("".join([*lines, line]))["url"]
        self.netloc = urlsplit(self.url).netloc

    def kill(self):
        """End it at once, as a power cut would end the process."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        """End it as Ctrl-C does; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


class Voter:
    """A client on one connection."""

    def __init__(self, netloc, token=None):
        self.netloc, self.token = netloc, token
        self.connection = http.client.HTTPConnection(netloc, timeout=30)
        value = self.post("/api/session", {})[1]
        self.token, self.session = value["token"], value["session"]

    def post(self, path, body):
        headers = {"content-type": "application/json", "origin": f"http://{self.netloc}"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        self.connection.request("POST", path, json.dumps(body), headers)
        reply = self.connection.getresponse()
        return reply.status, json.loads(reply.read())

    def set(self, holding=()):
        return self.post("/api/set", {"session": self.session, "holding": list(holding)})

    def vote(self, issued, **changes):
        return self.post("/api/vote", answer(issued, self.session) | changes)


def answer(issued, session, holding=()):
    return {
        "id": str(uuid.uuid4()),
        "set": issued["id"],
        "mode": "rank",
        "tiers": [[n] for n in range(len(issued["images"]))],
        "dwell_ms": 1500,
        "session": session,
        "holding": list(holding),
    }


def kills(folder, log, times, *, votes_each=3):
    """Kill the server right after replies, and count what the log lost.

    Before each kill one vote is sent whose reply is not awaited: it may be there or not, whole.
    """
    promised, unanswered, duplicates, token = set(), set(), 0, None
    began = time.monotonic()
    for _ in range(times):
        server = Server(folder, log)
        voter = Voter(server.netloc, token)
        token = voter.token
        for _ in range(votes_each):
            issued = voter.set()[1]
            body = answer(issued, voter.session)
            status, receipt = voter.post("/api/vote", body)
            assert status == 200, receipt
            promised.add(body["id"])
        # The same answer again, as a page sends it whose reply was lost.
        status, receipt = voter.post("/api/vote", body)
        assert (status, receipt["duplicate"]) == (200, True), receipt
        duplicates += 1
        body = answer(receipt["next"], voter.session)
        unanswered.add(body["id"])
        with contextlib.suppress(OSError):
            head = (
                f"POST /api/vote HTTP/1.1\r\nhost: {server.netloc}\r\norigin: {server.url[:-1]}\r\n"
            )
            data = json.dumps(body).encode()
            head += f"authorization: Bearer {token}\r\ncontent-type: application/json\r\n"
            voter.connection.sock.sendall(
                head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data
            )
        server.kill()
    with Log(log, create=False) as opened:
        found = [event.id for event in opened.events()]
        intact = opened.transact(
            lambda db: db.execute("PRAGMA integrity_check").fetchone()
        ).result()
    return {
        "kills": times,
        "promised": len(promised),
        "lost": len(promised - set(found)),
        "double": len(found) - len(set(found)),
        "double_submits": duplicates,
        "strange": len(set(found) - promised - unanswered),
        "in_flight_kept": len(unanswered & set(found)),
        "integrity": intact[0],
        "seconds": round(time.monotonic() - began, 1),
    }


async def _voter(netloc, stop, times):
    host, port = netloc.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    token = ""

    async def post(path, body):
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {netloc}\r\norigin: http://{netloc}\r\n"
            f"authorization: Bearer {token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        size = int(top.partition("content-length:")[2].split("\r\n")[0])
        return int(top.split()[1]), json.loads(await reader.readexactly(size))

    _, visit = await post("/api/session", {})
    token, session = visit["token"], visit["session"]
    _, issued = await post("/api/set", {"session": session, "holding": []})
    while time.monotonic() < stop:
        began = time.monotonic()
        status, receipt = await post("/api/vote", answer(issued, session))
        assert status == 200, receipt
        times.append(time.monotonic() - began)
        issued = receipt["next"]
    writer.close()


def voters(folder, log, count, seconds):
    """Votes a second of voters who answer as fast as they get sets, each vote flushed to disk."""
    server = Server(folder, log)

    async def crowd():
        times = []
        stop = time.monotonic() + seconds
        began = time.monotonic()
        await asyncio.gather(*(_voter(server.netloc, stop, times) for _ in range(count)))
        return times, time.monotonic() - began

    try:
        times, took = asyncio.run(crowd())
    finally:
        server.stop()
    with Log(log, create=False) as opened:
        stored = len(opened.events())
    assert stored == len(times), (stored, len(times))
    ordered = sorted(times)
    return {
        "voters": count,
        "votes": len(times),
        "seconds": round(took, 2),
        "votes_per_second": round(len(times) / took, 1),
        "median_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[int(0.99 * len(ordered))], 1),
        "stored": stored,
    }


def main():
    what, number = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=os.environ.get("ARENA_DIR")) as place:
        folder, log = synthetic(Path(place) / "results"), Path(place) / "votes.sqlite"
        if what == "kills":
            found = kills(folder, log, number)
        else:
            found = voters(folder, log, number, float(sys.argv[3]) if len(sys.argv) > 3 else 20.0)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps(found | machine | {"load": os.getloadavg()[0]}, indent=1))


if __name__ == "__main__":
    main()
