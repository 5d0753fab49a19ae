"""Rate limits arrive as the client's own exception, with the headers that its users read."""

import openai
import pytest
from conftest import HELLO, connect, setting


def test_a_rate_limit(upstream):
    hasty = connect(setting("TOLLKEEPER_HASTY_KEY"), max_retries=0)
    first = hasty.chat.completions.with_raw_response.create(model="up/plain", messages=HELLO)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-limit-tokens"] == "5000"
    # What time has given back since then may be in it already.
    assert int(first.headers["x-ratelimit-remaining-tokens"]) >= 5000 - first.parse().usage.total_tokens

    with pytest.raises(openai.RateLimitError) as caught:
        hasty.chat.completions.create(model="up/plain", messages=HELLO)
    error = caught.value
    assert error.code == "rate_limit_exceeded"
    assert "hasty" in error.message
    assert "requests_per_minute" in error.message
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 60_000
    assert 0 < int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(upstream.requests()) == 1
