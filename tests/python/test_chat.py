"""Chat, whole and streamed, with what the gateway adds: cost and headers."""

import asyncio
from decimal import Decimal

import openai
from conftest import FIVE_WORDS, HELLO, setting


def test_a_whole_answer(client, upstream):
    answer = client.chat.completions.create(model="up/plain", messages=HELLO)
    assert answer.choices[0].message.content == FIVE_WORDS
    assert answer.choices[0].finish_reason == "stop"
    served = upstream.only()
    assert answer.usage.prompt_tokens == served["input_tokens"]
    assert answer.usage.completion_tokens == served["output_tokens"] == 5


def test_headers_tell_backend_and_cost(client):
    raw = client.chat.completions.with_raw_response.create(model="team/fast", messages=HELLO)
    assert raw.headers["x-tollkeeper-backend"] == "up/plain"
    assert raw.headers["x-tollkeeper-request-id"]
    assert raw.headers["x-tollkeeper-why"]
    assert Decimal(raw.headers["x-tollkeeper-cost-usd"]) > 0
    assert raw.parse().choices[0].message.content == FIVE_WORDS


def test_unknown_fields_reach_the_provider(client, upstream):
    client.chat.completions.create(model="team/fast", messages=HELLO, extra_body={"safety_identifier": "abc", "made_up": [1, 2.50]})
    sent = upstream.only()["json"]
    assert sent["safety_identifier"] == "abc"
    assert '"made_up":[1,2.5]' in upstream.only()["body"].replace(" ", "")
    assert sent["model"] == "plain"


def test_a_stream(client, upstream):
    stream = client.chat.completions.create(model="up/plain", messages=HELLO, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FIVE_WORDS
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for usage"
    assert upstream.only()["json"]["stream_options"] == {"include_usage": True}, "the gateway must meter it nevertheless"


def test_a_stream_with_usage_tells_its_cost(client, upstream):
    stream = client.chat.completions.create(model="up/plain", messages=HELLO, stream=True, stream_options={"include_usage": True})
    *_, last = stream
    assert last.choices == []
    assert last.usage.completion_tokens == 5
    assert Decimal(last.usage.cost_usd) > 0
    assert upstream.only()["end"] == "Complete"


def test_the_stream_helper_of_the_client(client):
    with client.chat.completions.stream(model="up/plain", messages=HELLO) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == FIVE_WORDS


def test_text_completions(client):
    answer = client.completions.create(model="up/plain", prompt="Once upon a time")
    assert answer.choices[0].text == FIVE_WORDS
    stream = client.completions.create(model="up/plain", prompt="Once upon a time", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == FIVE_WORDS


def test_several_answers(client):
    answer = client.chat.completions.create(model="up/plain", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 15


def test_the_async_client():
    async def ask():
        async with openai.AsyncOpenAI(base_url=setting("TOLLKEEPER_URL") + "/v1", api_key=setting("TOLLKEEPER_KEY"), timeout=20) as client:
            stream = await client.chat.completions.create(model="up/plain", messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == FIVE_WORDS


def test_a_client_that_leaves_stops_the_provider(client, upstream):
    stream = client.chat.completions.create(model="up/stalls", messages=HELLO, stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    upstream.wait_for_end("ClientGone")
