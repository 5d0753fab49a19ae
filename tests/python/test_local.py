"""The model that ships answers through the official client, offline, and its tokens are metered."""

import json
from decimal import Decimal

import openai
import pytest
from conftest import HELLO

MODEL = "toll-tiny"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_a_streamed_answer(client):
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, temperature=0, stream_options={"include_usage": True})
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in said
    assert chunks[-1].usage.prompt_tokens > 0
    assert chunks[-1].usage.completion_tokens > 0
    assert Decimal(chunks[-1].usage.cost_usd) > 0


def test_the_same_whole(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def test_a_limit_is_kept_exactly(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=2)
    assert answer.usage.completion_tokens == 2
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("encoding", ["float", None])
def test_embeddings(client, encoding):
    options = {"encoding_format": encoding} if encoding else {}
    same, again, other = client.embeddings.create(model=MODEL, input=["a cat", "a cat", "seven times nine"], **options).data
    assert list(same.embedding) == pytest.approx(list(again.embedding), abs=1e-3)
    assert list(same.embedding) != pytest.approx(list(other.embedding), abs=1e-3)


def test_a_prompt_that_is_too_long(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"


def test_leaving_frees_the_slot(client):
    # More clients than slots leave in the middle; the model still answers.
    for _ in range(12):
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0).choices[0].message.content


def test_a_tool_must_be_called(client):
    parameters = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    options = {"model": MODEL, "messages": HELLO, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.chat.completions.create(**options).choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["unit"] in ("C", "F")
