from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("langgraph")

import torch
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware
from langchain_core.messages import HumanMessage, RemoveMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from safetensors.torch import load

from laconic.integrations.langchain import CompressedMemoryMiddleware

from .local_models import folder, local, told

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
SYSTEM = "Answer in one word."


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"It is sunny in {city}."


def rule(prompt: str) -> str:
    return CALL if "weather?" in prompt and "<tool>" not in prompt else "Sunny."


def agent(
    llm: Any, saver: Any = None, tools: Any = (), forget: bool = False, more: Any = ()
) -> Any:
    keeps = CompressedMemoryMiddleware(llm, forget=forget)
    saver = saver or InMemorySaver()
    return create_agent(
        llm, list(tools), system_prompt=SYSTEM, middleware=[keeps, *more], checkpointer=saver
    )


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def human(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def stop(turn: int) -> str:
    return f"Stop {turn}: the tram was late. What comes next?"


def said(state: Any) -> str:
    return str(state["messages"][-1].text)


def assert_know_the_same(one: Any, two: Any) -> None:
    first, second = (load(r.get_state(thread("a")).values["laconic_memory"]) for r in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("memory", ["infinipot", "ccm"])
def test_an_agent_says_what_the_model_says_to_all_messages(memory: str) -> None:
    run, messages = agent(local(memory)), [("system", SYSTEM)]
    for turn in range(5):
        state = run.invoke(human(stop(turn)), thread("a"))
        messages.append(("human", stop(turn)))
        assert local(memory).invoke(messages).text == said(state)
        messages.append(("ai", said(state)))
    assert len(state["messages"]) == 10
    assert "laconic_memory" not in state


@pytest.mark.parametrize("is_async", [False, True])
def test_tools_are_called_and_nothing_is_read_again(is_async: bool) -> None:
    llm = told(rule)
    run = agent(llm, tools=[weather])
    for turn in range(3):
        ask = human(f"Day {turn}, how is the weather?")
        if is_async:
            state = asyncio.run(run.ainvoke(ask, thread("a")))
        else:
            state = run.invoke(ask, thread("a"))
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"] * 3
    assert said(state) == "Sunny."
    assert any(isinstance(m, ToolMessage) and "Oslo" in m.text for m in state["messages"])
    # Each is read once as a prompt and once as a turn with its answer.
    for turn in range(3):
        assert sum(f"Day {turn}," in prompt for prompt in llm.model.prompts) == 2
    assert sum(SYSTEM in prompt for prompt in llm.model.prompts) == 2
    assert sum("<tools>" in prompt for prompt in llm.model.prompts) == 2


def test_only_the_model_is_heard_in_a_stream() -> None:
    run = agent(told(rule), tools=[weather])
    stream = run.stream(human("How is the weather?"), thread("a"), stream_mode="messages")
    heard = [chunk for chunk, about in stream if about["langgraph_node"] == "model"]
    assert "".join(str(chunk.text) for chunk in heard) == "Sunny."
    assert len(heard) > 3


def test_threads_do_not_see_each_other() -> None:
    llm = local()
    run, alone = agent(llm), agent(local())
    for turn in range(4):
        run.invoke(human(f"Noise {turn}."), thread("b"))
        mine = run.invoke(human(stop(turn)), thread("a"))
        assert said(mine) == said(alone.invoke(human(stop(turn)), thread("a")))


def test_a_fork_goes_on_from_where_it_was() -> None:
    run = agent(local())
    for turn in range(3):
        run.invoke(human(stop(turn)), thread("a"))
    before = run.get_state(thread("a")).config
    left = run.invoke(human("My cat is Tom."), thread("a"))
    run.invoke(human("Go on."), thread("a"))
    assert said(run.invoke(human("My cat is Tom."), before)) == said(left)
    twin = agent(local())
    for turn in range(3):
        twin.invoke(human(stop(turn)), thread("a"))
    right = run.invoke(human("My dog is Rex."), before)
    assert said(right) == said(twin.invoke(human("My dog is Rex."), thread("a")))


def test_what_changed_is_read_anew() -> None:
    run, twin = agent(local()), agent(local())
    first = run.invoke(human("My cat is Tom."), thread("a"))["messages"]
    edited = HumanMessage("My dog is Rex.", id=first[0].id)
    run.update_state(thread("a"), {"messages": [edited]})
    twin.invoke({"messages": [edited, first[1], HumanMessage("Who?")]}, thread("a"))
    run.invoke(human("Who?"), thread("a"))
    assert_know_the_same(run, twin)


def test_a_retry_changes_nothing() -> None:
    class Flaky(AgentMiddleware):
        failed = 0

        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            response = handler(request)
            self.failed += 1
            if self.failed % 2:
                raise ConnectionError("try again")
            return response

    retry = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    shaky, calm = agent(local(), more=[retry, Flaky()]), agent(local())
    for turn in range(3):
        states = [r.invoke(human(stop(turn)), thread("a")) for r in (shaky, calm)]
        assert said(states[0]) == said(states[1])
    assert_know_the_same(shaky, calm)


@pytest.mark.parametrize("forget", [False, True])
def test_the_budget_holds_after_two_hundred_turns(forget: bool) -> None:
    run = agent(local(max_tokens=2), forget=forget)
    sizes = []
    for turn in range(200):
        state = run.invoke(human(stop(turn)), thread("a"))
        about = state["messages"][-1].response_metadata["memory"]
        assert about["entries"] <= 200
        sizes.append(len(run.get_state(thread("a")).values["laconic_memory"]))
    assert max(sizes[100:]) <= 1.01 * max(sizes[:100])
    assert len(state["messages"]) == (2 if forget else 400)


def test_forgetting_changes_no_answer_and_keeps_calls_with_results() -> None:
    forgets, keeps = (agent(told(rule), tools=[weather], forget=f) for f in (True, False))
    for turn in range(4):
        states = [
            r.invoke(human(f"Day {turn}, how is the weather?"), thread("a"))
            for r in (forgets, keeps)
        ]
        assert said(states[0]) == said(states[1])
    kinds = [m.type for m in states[0]["messages"]]
    assert kinds[-3:] == ["ai", "tool", "ai"]
    assert len(kinds) <= 4
    assert_know_the_same(forgets, keeps)


def test_the_state_passes_the_checkpoint_serializer() -> None:
    run = agent(local())
    run.invoke(human("Hello"), thread("a"))
    values = run.get_state(thread("a")).values
    serde = JsonPlusSerializer()
    assert serde.loads_typed(serde.dumps_typed(values)) == values
    assert isinstance(values["laconic_memory"], bytes)


AGAIN = """
import json, sys
from langchain.agents import create_agent
from langchain_core.messages import messages_from_dict
from langgraph.checkpoint.memory import InMemorySaver
from laconic.integrations.langchain import ChatLaconic, CompressedMemoryMiddleware
given = json.loads(sys.argv[1])
llm = ChatLaconic(**given["llm"])
saver = InMemorySaver()
keeps = CompressedMemoryMiddleware(llm)
run = create_agent(llm, [], system_prompt=given["system"], middleware=[keeps], checkpointer=saver)
config = {"configurable": {"thread_id": "a"}}
values = {
    "messages": messages_from_dict(given["messages"]),
    "laconic_memory": open(given["path"], "rb").read(),
    "laconic_read": given["read"],
}
run.update_state(config, values, as_node="model")
last = run.invoke({"messages": [("human", "And now?")]}, config)["messages"][-1]
print(json.dumps([last.text, last.usage_metadata["input_token_details"]["cache_read"]]))
"""


def test_another_process_goes_on_with_the_same_answer(tmp_path: Any) -> None:
    from langchain_core.messages import messages_to_dict

    run = agent(local())
    for turn in range(4):
        run.invoke(human(stop(turn)), thread("a"))
    values = run.get_state(thread("a")).values
    (tmp_path / "memory").write_bytes(values["laconic_memory"])
    fields = {"model": str(folder()), "device": "cpu", "budget": 200, "keep": 80, "max_tokens": 8}
    given = {
        "llm": fields,
        "system": SYSTEM,
        "messages": messages_to_dict(values["messages"]),
        "path": str(tmp_path / "memory"),
        "read": values["laconic_read"],
    }
    command = [sys.executable, "-c", AGAIN, json.dumps(given)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    text, cached = json.loads(done.stdout)
    last = run.invoke(human("And now?"), thread("a"))["messages"][-1]
    assert text == last.text
    assert cached == last.usage_metadata["input_token_details"]["cache_read"] > 50


@pytest.mark.parametrize("forget", [False, True])
def test_messages_that_left_the_checkpoint_are_known_if_it_is_to_forget(forget: bool) -> None:
    run = agent(local(), forget=forget)
    state = run.invoke(human("My cat is Tom."), thread("a"))
    gone = [RemoveMessage(id=m.id) for m in state["messages"]]
    run.update_state(thread("a"), {"messages": gone})
    last = run.invoke(human("Who?"), thread("a"))["messages"][-1]
    assert (last.usage_metadata["input_token_details"]["cache_read"] > 0) == forget
