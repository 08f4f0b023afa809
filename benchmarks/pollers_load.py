"""The clients of the `pollers` benchmark, in a process of their own: they obey Retry-After and count what fails."""

import asyncio
import json
import random
import sys
import time
from datetime import datetime
from typing import Any

import aiohttp

OPEN = ("accepted", "running")
LIST_EVERY_S = 5.0
TIMEOUT_S = 30.0


class Load:
    """Pollers and event streams on one gateway.

    Args:
        given: url, pollers, streams, seconds, ramp_s (they arrive spread over so long), seed.
    """

    def __init__(self, given: dict[str, Any]):
        self.given = given
        self.random = random.Random(given["seed"])
        self.latencies_s: list[float] = []
        self.statuses: dict[str, int] = {}
        self.waits_s: list[int] = []
        self.errors: dict[str, int] = {}
        self.event_delays_s: list[float] = []
        self.ended_streams = self.events = 0
        self.jobs: list[str] = []
        self.end = 0.0

    async def run(self) -> dict[str, Any]:
        """Everybody at once until the time is over; what they saw."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        async with aiohttp.ClientSession(self.given["url"], connector=connector, timeout=timeout) as self.session:
            await self._list()
            began = time.monotonic()
            self.end = began + self.given["seconds"]
            clients = [self._keep_listing()]
            clients += [self._poll(self._arrival_s()) for _ in range(self.given["pollers"])]
            clients += [self._stream(self._arrival_s()) for _ in range(self.given["streams"])]
            await asyncio.gather(*clients)
            took_s = time.monotonic() - began
        return {
            "seconds": took_s, "latencies_s": self.latencies_s, "statuses": self.statuses, "errors": self.errors,
            "waits_s": self.waits_s, "events": self.events, "ended_streams": self.ended_streams,
            "event_delays_s": self.event_delays_s,
        }  # fmt: skip

    def _arrival_s(self) -> float:
        return self.random.uniform(0, self.given["ramp_s"])

    async def _keep_listing(self) -> None:
        while time.monotonic() < self.end:
            await self._list()
            await self._sleep(LIST_EVERY_S)

    async def _list(self) -> None:
        """The jobs to look at: those that are open, the newest hundred of each kind."""
        found = []
        for status in OPEN:
            async with self.session.get(f"/v1/jobs?status={status}&limit=100") as answer:
                found += [job["jobID"] for job in (await answer.json())["jobs"]]
        self.jobs = found or self.jobs

    async def _poll(self, after_s: float) -> None:
        await self._sleep(after_s)
        job = etag = None
        while time.monotonic() < self.end:
            if job is None:
                job, etag = self.random.choice(self.jobs), None
            headers = {"If-None-Match": etag} if etag else {}
            began = time.perf_counter()
            try:
                async with self.session.get(f"/v1/jobs/{job}", headers=headers) as answer:
                    body = await answer.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._fault(f"poll: {type(error).__name__}")
                await self._sleep(1.0)
                continue
            self.latencies_s.append(time.perf_counter() - began)
            self.statuses[str(answer.status)] = self.statuses.get(str(answer.status), 0) + 1
            wait_s = int(answer.headers.get("Retry-After", 0))
            if answer.status not in (200, 304):
                self._fault(f"poll: HTTP {answer.status}")
            elif answer.status == 200:
                etag = answer.headers["ETag"]
                if json.loads(body)["status"] not in OPEN:
                    job = None
            if wait_s:
                self.waits_s.append(wait_s)
            await self._sleep(wait_s or 1.0)

    async def _stream(self, after_s: float) -> None:
        """Follow one job after the other to its end."""
        await self._sleep(after_s)
        while time.monotonic() < self.end:
            try:
                async with asyncio.timeout(max(0.1, self.end - time.monotonic())):
                    await self._follow(self.random.choice(self.jobs))
            except TimeoutError:
                if time.monotonic() < self.end - 0.5:
                    self._fault("stream: silent for longer than a heartbeat")
                return
            except (aiohttp.ClientError, OSError, ValueError) as error:
                self._fault(f"stream: {type(error).__name__}")
                await self._sleep(1.0)

    async def _follow(self, job: str) -> None:
        last = None
        async with self.session.get(f"/v1/jobs/{job}/events") as answer:
            if answer.status != 200:
                self._fault(f"stream: HTTP {answer.status}")
                await self._sleep(float(answer.headers.get("Retry-After", 1)))
                return
            name = ""
            async for line in answer.content:
                if line.startswith(b"event: "):
                    name = line[7:].strip().decode()
                elif line.startswith(b"data: "):
                    self.events += 1
                    first, last = last is None, json.loads(line[6:]) if name == "status" else last
                    if not first and name == "status" and last["finished"]:
                        self.event_delays_s.append(time.time() - datetime.fromisoformat(last["finished"]).timestamp())
        if last is None or last["status"] in OPEN:
            self._fault("stream: ended before its job")
        self.ended_streams += 1

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, min(seconds, self.end - time.monotonic())) if self.end else seconds)

    def _fault(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


if __name__ == "__main__":
    json.dump(asyncio.run(Load(json.loads(sys.argv[1])).run()), sys.stdout)
