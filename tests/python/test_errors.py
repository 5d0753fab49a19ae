"""Errors arrive as the exception classes that users of the client catch, and are retried only when that helps."""

import openai
import pytest
from conftest import HELLO, connect, metric, setting


def test_a_wrong_key(upstream):
    with pytest.raises(openai.AuthenticationError) as caught:
        connect("tk-nobody").chat.completions.create(model="up/plain", messages=HELLO)
    assert caught.value.code == "invalid_api_key"
    assert upstream.requests() == []


def test_an_unknown_model(client, upstream):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="team/fasst", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert "team/fast" in caught.value.message, "it suggests what may have been meant"
    assert upstream.requests() == []


def test_a_model_the_agent_may_not_use(poor, upstream):
    with pytest.raises(openai.PermissionDeniedError):
        poor.chat.completions.create(model="up/long", messages=HELLO)
    assert upstream.requests() == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"messages": "hello"}, "messages"), ({"messages": []}, "messages"), ({"temperature": "hot"}, "temperature"), ({"max_tokens": -1}, "max_tokens")],
)
def test_a_bad_request(client, upstream, wrong, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="up/plain", messages=HELLO, extra_body=wrong)
    assert caught.value.type == "invalid_request_error"
    assert field in caught.value.message
    assert upstream.requests() == []


def test_the_provider_refuses_the_request(client, upstream):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="up/bad-request", messages=HELLO)
    assert "The upstream says 400." in caught.value.message
    assert len(upstream.requests()) == 1, "a bad request is not tried again"


def test_the_provider_limits_the_rate(upstream):
    impatient = connect(setting("TOLLKEEPER_KEY"), max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        impatient.chat.completions.create(model="up/rate-limited", messages=HELLO)
    assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("model", ["up/broken", "up/overloaded", "up/error-first", "up/expired-key"])
def test_the_provider_fails(model):
    impatient = connect(setting("TOLLKEEPER_KEY"), max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        impatient.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.status_code in (502, 503)
    assert "up" in caught.value.message, "it says which provider"


def test_a_stream_that_breaks_raises(client):
    with pytest.raises(openai.APIError):
        for _ in client.chat.completions.create(model="up/dies", messages=HELLO, stream=True):
            pass


def test_no_money_is_no_reason_to_retry(poor, upstream):
    denied = metric("tollkeeper_denied_total", agent="poor")
    with pytest.raises(openai.APIStatusError) as caught:
        poor.chat.completions.create(model="up/plain", messages=HELLO)
    error = caught.value
    assert error.status_code == 402
    assert (error.type, error.code) == ("budget_exceeded", "budget_exceeded")
    assert error.response.headers["x-should-retry"] == "false"
    assert set(error.body["budget"]) == {"scope", "id", "window", "limit_usd", "spent_usd", "reserved_usd", "estimate_usd", "resets_at"}
    assert error.body["budget"]["id"] == "poor"
    assert metric("tollkeeper_denied_total", agent="poor") == denied + 1, "the client asked once"
    assert upstream.requests() == []


def test_a_stream_without_money(poor, upstream):
    with pytest.raises(openai.APIStatusError) as caught:
        poor.chat.completions.create(model="up/plain", messages=HELLO, stream=True)
    assert caught.value.status_code == 402
    assert upstream.requests() == []
