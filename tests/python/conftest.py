"""Where the gateway and its scripted upstream are, as the Rust test that starts them (tests/it/python.rs) tells us."""

import json
import os
import time
import urllib.request

import openai
import pytest


def setting(name):
    if name not in os.environ:
        pytest.exit(f"{name} is not set: these tests are run by `cargo test -p tollkeeper-tests python`", returncode=3)
    return os.environ[name]


class Upstream:
    """The scripted upstream's books, from the moment the test began."""

    def __init__(self):
        self.url = setting("UPSTREAM_URL")
        self.before = len(self._all())

    def _all(self):
        with urllib.request.urlopen(f"{self.url}/_count", timeout=20) as answer:
            return json.load(answer)["requests"]

    def requests(self):
        """What it was asked since the test began; each with its `body` as JSON under `json`."""
        fresh = self._all()[self.before :]
        return [request | {"json": json.loads(request["body"])} for request in fresh]

    def only(self):
        (request,) = self.requests()
        return request

    def wait_for_end(self, end):
        """Waits until its newest answer has ended in this way."""
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            request = self.only()
            if request["end"] == end:
                return request
            time.sleep(0.02)
        raise AssertionError(f"the upstream's answer did not end with {end}: {self.only()}")


def metric(name, **labels):
    """The sum of a metric's samples that have these labels."""
    total = 0.0
    with urllib.request.urlopen(setting("TOLLKEEPER_URL") + "/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.split("{")[0] == name and all(f'{label}="{text}"' in sample for label, text in labels.items()):
                total += float(value)
    return total


def connect(key, **options):
    return openai.OpenAI(base_url=setting("TOLLKEEPER_URL") + "/v1", api_key=key, timeout=20, **options)


@pytest.fixture
def upstream():
    return Upstream()


@pytest.fixture
def client():
    """The client of an agent that may spend, with the retries every user has."""
    return connect(setting("TOLLKEEPER_KEY"))


@pytest.fixture
def poor():
    """The client of an agent whose budget affords nothing."""
    return connect(setting("TOLLKEEPER_POOR_KEY"))


HELLO = [{"role": "user", "content": "Say something."}]
# What the scripted upstream's plain answer says: five words, one token each.
FIVE_WORDS = "000 001 002 003 004 "
