from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

pytest.importorskip("torch")

from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from laconic.errors import InputError, ModelError, StateError
from laconic.integrations.langchain import ChatLaconic

from .local_models import folder, local, pair, told


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"It is sunny in {city}."


@tool
def trains(city: str) -> str:
    """Tell when trains leave."""
    return f"From {city} at noon."


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def joined(chunks: Any) -> AIMessageChunk:
    total, *rest = list(chunks)
    for chunk in rest:
        total = total + chunk
    return total


@pytest.mark.parametrize("memory", ["infinipot", "streaming_llm", "ccm"])
def test_it_answers_in_every_way_alike(memory: str) -> None:
    llm = local(memory)
    messages = [SystemMessage("Be kind."), HumanMessage("Hello")]
    answer = llm.invoke(messages)
    streamed = list(local(memory).stream(messages))
    assert len(streamed) > 2
    assert answer.text
    assert joined(streamed).text == answer.text
    assert joined(streamed).usage_metadata == answer.usage_metadata
    assert asyncio.run(local(memory).ainvoke(messages)).text == answer.text

    async def listen() -> list[Any]:
        return [chunk async for chunk in local(memory).astream(messages)]

    assert joined(asyncio.run(listen())).text == answer.text


def test_it_says_what_it_took() -> None:
    llm = local()
    messages: list[Any] = [HumanMessage("Hello")]
    first = llm.invoke(messages)
    messages += [first, HumanMessage("And then?")]
    with get_usage_metadata_callback() as usage:
        second = llm.invoke(messages)
    used = second.usage_metadata
    assert used["output_tokens"] <= 8
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    assert used["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"]
    assert list(usage.usage_metadata.values()) == [used]
    about = second.response_metadata
    assert about["model_provider"] == "laconic"
    assert about["finish_reason"] == "length"
    assert about["memory"]["entries"] > 0
    assert about["memory"]["bytes"] > 0
    assert local().invoke(messages).text == second.text


def test_the_budget_holds_however_long_the_conversation() -> None:
    llm, messages = local(), []
    for turn in range(200):
        messages.append(HumanMessage(f"Stop {turn}: the tram was late and it rained."))
        answer = llm.invoke(messages, max_tokens=2)
        messages.append(answer)
        assert answer.response_metadata["memory"]["entries"] <= 200
    assert answer.usage_metadata["input_tokens"] > 20 * 200
    details = answer.usage_metadata["input_token_details"]
    assert answer.usage_metadata["input_tokens"] - details["cache_read"] < 100


def test_callbacks_hear_each_token() -> None:
    class Ear(BaseCallbackHandler):
        heard = ""

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.heard += token

    ear = Ear()
    answer = joined(local().stream("Hello", config={"callbacks": [ear]}))
    assert ear.heard == answer.text


def test_a_stream_that_nobody_listens_to_ends() -> None:
    llm = local(max_tokens=100_000)
    stream = llm.stream("Hello")
    next(stream)
    stream.close()
    assert llm.invoke("Hello", max_tokens=4).text


def test_an_error_reaches_who_streams() -> None:
    with pytest.raises(InputError, match="image"):
        picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
        list(local().stream([HumanMessage([picture])]))


def test_stop_and_sampling_can_be_set() -> None:
    full = local().invoke("Hello", max_tokens=24)
    stop = full.text[3:6]
    cut = local().invoke("Hello", max_tokens=24, stop=[stop])
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.response_metadata["finish_reason"] == "stop"
    assert local(stop=[stop]).invoke("Hello", max_tokens=24).text == cut.text
    warm = [local(temperature=2.0, seed=seed).invoke("Hello").text for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    with pytest.raises(InputError, match="logit_bias"):
        local().invoke("Hello", logit_bias={})


def test_a_folder_is_loaded_once_for_all_copies() -> None:
    llm = ChatLaconic(model=str(folder()), budget=200, keep=80, max_tokens=8)
    twin = llm.model_copy()
    assert llm.invoke("Hello").text == local().invoke("Hello").text
    assert twin.chat is llm.chat
    assert copy.deepcopy(llm) == llm
    assert "tokenizer" not in llm.model_dump()
    with pytest.raises(ModelError, match="cannot load"):
        ChatLaconic(model=str(folder() / "nothing")).invoke("Hello")


def test_tokens_are_those_of_its_tokenizer() -> None:
    assert local().get_token_ids("Hello you") == pair()[1].encode(
        "Hello you", add_special_tokens=False
    )
    assert local().get_num_tokens("Hello you") > 1


def test_settings_that_do_not_fit_are_refused() -> None:
    model, tokenizer = pair()
    with pytest.raises(InputError, match="adapter"):
        ChatLaconic(model=model, tokenizer=tokenizer, memory="ccm").invoke("Hello")
    with pytest.raises(InputError, match="has no adapter"):
        ChatLaconic(model=model, tokenizer=tokenizer, adapter="x").invoke("Hello")


def test_a_template_that_lacks_tools_says_so() -> None:
    model, tokenizer = pair()
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="leaves out the tool 'weather'"):
        local(model=model, tokenizer=plain).bind_tools([weather]).invoke("Hello")


def rule(prompt: str) -> str:
    """Call a tool when the weather is asked for."""
    asked = "weather?" in prompt and "<tool>" not in prompt
    return f"I look it up. {CALL}" if asked else "It is sunny."


def test_tools_are_called_and_their_results_read() -> None:
    llm = told(rule)
    bound = llm.bind_tools([weather, trains])
    asked: list[Any] = [HumanMessage("How is the weather?")]
    call = bound.invoke(asked)
    assert [(c["name"], c["args"]) for c in call.tool_calls] == [("weather", {"city": "Oslo"})]
    assert call.content == "I look it up. "
    assert "<tools>" in llm.model.prompts[0]
    result = ToolMessage("Sunny.", tool_call_id=call.tool_calls[0]["id"])
    answer = bound.invoke([*asked, call, result])
    assert answer.text == "It is sunny."
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
    assert not bound.invoke("Hello").tool_calls


def test_calls_are_streamed_and_not_said() -> None:
    chunks = list(told(rule).bind_tools([weather]).stream("How is the weather?"))
    answer = joined(chunks)
    assert answer.content == "I look it up. "
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("weather", {"city": "Oslo"})]
    assert len([chunk for chunk in chunks if chunk.content]) > 2


@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_a_bare_object_is_a_call_of_a_known_tool(key: str) -> None:
    written = f'{{"name": "weather", "{key}": {{"city": "Rome"}}}}'
    llm = told(lambda prompt: written)
    (call,) = llm.bind_tools([weather]).invoke("Go").tool_calls
    assert call["args"] == {"city": "Rome"}
    other = llm.bind_tools([trains]).invoke("Go")
    assert (other.tool_calls, other.content) == ([], written)
    assert joined(llm.bind_tools([trains]).stream("Go")).content == written


def test_two_calls_and_one_that_is_broken() -> None:
    text = f'{CALL}{CALL}<tool_call>{{"name": "weather", "argu'
    for answer in (
        told(lambda prompt: text).bind_tools([weather]).invoke("Go"),
        joined(told(lambda prompt: text).bind_tools([weather]).stream("Go")),
    ):
        assert len({call["id"] for call in answer.tool_calls}) == 2
        (broken,) = answer.invalid_tool_calls
        assert broken["args"] == '<tool_call>{"name": "weather", "argu'


def test_a_choice_of_tool_is_honoured() -> None:
    llm = told(lambda prompt: '{"city": "Bern"}}' if prompt.endswith('"arguments": ') else "No.")
    for choice in ("trains", {"type": "function", "function": {"name": "trains"}}):
        (call,) = llm.bind_tools([weather, trains], tool_choice=choice).invoke("Go").tool_calls
        assert (call["name"], call["args"]) == ("trains", {"city": "Bern"})
    (call,) = llm.bind_tools([weather], tool_choice="any").invoke("Go").tool_calls
    assert call["name"] == "weather"
    free = told(lambda prompt: 'trains", "arguments": {"city": "Bern"}}')
    (call,) = free.bind_tools([weather, trains], tool_choice="required").invoke("Go").tool_calls
    assert call["name"] == "trains"
    assert llm.bind_tools([weather], tool_choice="none").invoke("Go").text == "No."
    for tools, choice in (([weather], "trains"), ([], "any")):
        with pytest.raises(InputError, match="tool_choice"):
            llm.bind_tools(tools, tool_choice=choice)


def test_structured_output_comes_of_a_call() -> None:
    class Joke(BaseModel):
        """A joke."""

        setup: str = Field(description="How it begins.")
        rating: int

    llm = told(lambda prompt: '{"setup": "Why?", "rating": 3}}')
    assert llm.with_structured_output(Joke).invoke("Tell one.") == Joke(setup="Why?", rating=3)
    raw = told(lambda prompt: "No.").with_structured_output(Joke, include_raw=True).invoke("Tell")
    assert raw["parsed"] is None
    assert isinstance(raw["raw"], AIMessage)


def test_an_unknown_state_is_said() -> None:
    from laconic.integrations.langchain.chat_model import handle

    with pytest.raises(StateError, match="not kept"):
        local().invoke([handle("nothing", begun=True), HumanMessage("Hello")])


def test_models_that_differ_in_their_adapter_are_told_apart() -> None:
    one, two = (ChatLaconic(model="a", memory="ccm", adapter=name) for name in ("b", "c"))
    assert one._identifying_params != two._identifying_params
