"""Embeddings as the client asks for them by itself (base64) and as numbers."""

from decimal import Decimal

VECTOR = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]


def test_base64_is_what_the_client_asks_for(client, upstream):
    answer = client.embeddings.create(model="up/plain", input="Hello")
    assert upstream.only()["json"]["encoding_format"] == "base64"
    assert list(answer.data[0].embedding) == VECTOR


def test_they_are_charged(client):
    raw = client.embeddings.with_raw_response.create(model="up/plain", input="Hello")
    assert Decimal(raw.headers["x-tollkeeper-cost-usd"]) > 0


def test_floats(client, upstream):
    answer = client.embeddings.create(model="up/plain", input="Hello", encoding_format="float")
    assert upstream.only()["json"]["encoding_format"] == "float"
    assert answer.data[0].embedding == VECTOR


def test_several_inputs_and_fewer_dimensions(client, upstream):
    answer = client.embeddings.create(model="up/plain", input=["Hello", "World"], dimensions=2, encoding_format="float")
    assert [item.embedding for item in answer.data] == [[0.0, 0.125], [0.25, 0.375]]
    assert answer.usage.prompt_tokens == upstream.only()["input_tokens"]
