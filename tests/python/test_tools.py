"""Tools go through as they are, in both directions."""

import json

from conftest import HELLO

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather — in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["°C", "°F"]}}, "required": ["city"]},
            "strict": True,
        },
    }
]
PARIS = {"city": "Paris", "unit": "°C"}
ZURICH = {"city": "Zürich"}


def test_a_whole_call(client, upstream):
    answer = client.chat.completions.create(model="up/tools", messages=HELLO, tools=TOOLS, tool_choice="auto")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_0", "get_weather")
    assert json.loads(call.function.arguments) == PARIS
    assert answer.choices[0].finish_reason == "tool_calls"
    assert upstream.only()["json"]["tools"] == TOOLS


def test_a_streamed_call(client):
    with client.chat.completions.stream(model="up/tools", messages=HELLO, tools=TOOLS) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == PARIS


def test_parallel_calls_interleaved(client):
    arguments = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="up/parallel-tools", messages=HELLO, tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments[call.index] += call.function.arguments
    assert [json.loads(text) for text in arguments.values()] == [PARIS, ZURICH]


def test_the_result_goes_back(client, upstream):
    answer = client.chat.completions.create(model="up/tools", messages=HELLO, tools=TOOLS)
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21 °C"}
    client.chat.completions.create(model="up/plain", messages=[*HELLO, message, result], tools=TOOLS)
    sent = upstream.requests()[-1]["json"]["messages"]
    assert sent[-1] == result
    assert sent[-2]["tool_calls"][0]["function"]["arguments"] == message.tool_calls[0].function.arguments
