from __future__ import annotations

import asyncio
import doctest
import logging
import subprocess
import sys
from importlib import import_module
from operator import add, is_
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ContextEditingMiddleware, SummarizationMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, Field, ValidationError

import laconic.integrations.langchain as face
from laconic.core import TokenCounter
from laconic.core.methods.lexical import Lexical
from laconic.errors import BudgetError, InputError, QueryRequiredError
from laconic.integrations.langchain import (
    CompressToolUsesEdit,
    as_summarizer,
    compress_messages_node,
)

COUNTER = TokenCounter.of(None)
FACT = "My cat is called Tom and lives in Lisbon."


class Scripted(GenericFakeChatModel):
    """Answers as it is told, and records what it was sent."""

    sent: list[list[BaseMessage]] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        self.sent.append(list(messages))
        return super()._generate(messages, *args, **kwargs)


def answering(*answers: AIMessage | str) -> Scripted:
    return Scripted(messages=iter([*answers, *[f"Answer {turn}." for turn in range(999)]]))


@tool
def timetable(city: str) -> str:
    """Look up when trains leave."""
    rows = [f"From {city} a train leaves at {hour}:15 from track 4." for hour in range(40)]
    return " ".join([*rows[:20], f"The ferry from {city} leaves at noon.", *rows[20:]])


def calls(*names: str) -> AIMessage:
    listed = [{"id": n, "name": "timetable", "args": {"city": n}} for n in names]
    return AIMessage("I look.", tool_calls=listed)


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


def human(text: str) -> Any:
    return {"messages": [HumanMessage(text)]}


def tokens(messages: list[BaseMessage]) -> int:
    return sum(4 + COUNTER.count(str(message.text)) for message in messages)


def said(messages: list[BaseMessage]) -> str:
    return "\n".join(str(message.text) for message in messages)


# The stock middleware that summarizes.


@pytest.mark.parametrize("is_async", [False, True])
def test_the_stock_middleware_summarizes_without_a_call_of_the_model(is_async) -> None:
    model = answering(calls("Rome"), "At a quarter past.")
    stock = SummarizationMiddleware(
        model=model,
        trigger=("messages", 12),
        keep=("messages", 4),
        trim_tokens_to_summarize=None,
        summarizer=as_summarizer(method="lexical", target_tokens=120),
    )
    agent = create_agent(model, [timetable], middleware=[stock], checkpointer=InMemorySaver())

    def ask(text: str) -> Any:
        if is_async:
            return asyncio.run(agent.ainvoke(human(text), thread("a")))
        return agent.invoke(human(text), thread("a"))

    ask(FACT)
    for turn in range(40):
        state = ask(f"Turn {turn}: it rained, and the tram was late once more.")
    assert len(model.sent) == 42
    assert len(state["messages"]) <= 12
    summary = next(m for m in state["messages"] if m.additional_kwargs.get("lc_source"))
    assert summary.additional_kwargs["lc_source"] == "summarization"
    # Who said it stands before each line, and is not counted.
    assert COUNTER.count(str(summary.text)) <= 2 * 120
    assert "human: " in summary.text


def test_a_summary_says_who_said_what_and_what_was_called() -> None:
    messages = [
        HumanMessage(FACT, name="ann"),
        AIMessage("", tool_calls=[{"id": "1", "name": "find", "args": {"cat": "Tom"}}]),
        ToolMessage("Found.", tool_call_id="1", name="find"),
        AIMessage([{"type": "image", "base64": "aGk="}]),
    ]
    assert as_summarizer(method="lexical", rate=1)(messages) == (
        f'ann: {FACT}\nai: find({{"cat": "Tom"}})\nfind: Found.'
    )
    assert as_summarizer(method="lexical")([]) == ""


@pytest.mark.parametrize("target", [40, 200, 400])
def test_who_spoke_is_in_the_budget_of_a_summary(target: int) -> None:
    messages: list[BaseMessage] = []
    for item in range(100):
        messages += [HumanMessage(f"My item {item} is red."), AIMessage("Noted, thanks.")]
    summary = as_summarizer(method="lexical", target_tokens=target)(messages)
    assert 0.8 * target <= COUNTER.count(summary) <= target


def test_a_summary_may_keep_so_many_tokens_of_each_message() -> None:
    messages = [HumanMessage(f"Town {n} is old. It rains there.") for n in range(9)]
    summary = as_summarizer(method="lexical", target_tokens=6, per_document=True)(messages)
    assert summary.split("\n") == [f"human: Town {n} is old." for n in range(9)]


def test_a_summary_without_a_query_needs_a_method_without_one() -> None:
    class Asking(Lexical):
        needs_query = True

    with pytest.raises(QueryRequiredError):
        as_summarizer(compressor=Asking())([HumanMessage(FACT)])
    with pytest.raises(ValidationError):
        as_summarizer(target_token=3)


# The stock middleware that edits.


def edited(edit: CompressToolUsesEdit, **fields: Any) -> tuple[list[BaseMessage], Scripted]:
    """What the state of an agent holds after nine calls of a tool, and the model."""
    cities = [f"city{n}" for n in range(9)]
    model = answering(*[calls(city) for city in cities], "At noon.")
    stock = ContextEditingMiddleware(edits=[edit], **fields)
    agent = create_agent(model, [timetable], middleware=[stock])
    state = agent.invoke(human("When do the ferries leave?"))
    return state["messages"], model


def test_the_stock_middleware_shortens_all_but_the_newest_outputs() -> None:
    edit = CompressToolUsesEdit(
        trigger=2000, keep=2, method="lexical", target_tokens=40, order="source"
    )
    state, model = edited(edit)
    whole = [m for m in state if isinstance(m, ToolMessage)]
    assert all(COUNTER.count(m.content) > 400 for m in whole)
    for sent in model.sent:
        outputs = [m for m in sent if isinstance(m, ToolMessage)]
        assert [m.tool_call_id for m in outputs] == [m.tool_call_id for m in whole[: len(outputs)]]
        if count_tokens_approximately(state[: len(sent)]) <= 2000:
            assert outputs == whole[: len(outputs)]
            continue
        assert outputs[-2:] == whole[len(outputs) - 2 : len(outputs)]
        for message, before in zip(outputs[:-2], whole, strict=False):
            assert COUNTER.count(message.content) <= 40
            assert f"The ferry from {message.tool_call_id} leaves at noon." in message.content
            mark = message.response_metadata["context_editing"]
            assert mark["compressed"]
            assert mark["tokens_after"] <= 40 < mark["tokens_before"]
            assert message.id == before.id
    assert count_tokens_approximately(model.sent[-1]) < count_tokens_approximately(state) / 2
    # What was shortened once looks the same in every later call.
    assert model.sent[-1][2].content == model.sent[-2][2].content


@pytest.mark.parametrize(("keep", "whole"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_the_newest_outputs_stay_however_few_there_are(keep: int, whole: int) -> None:
    edit = CompressToolUsesEdit(0, keep, method="lexical", target_tokens=20)
    messages: list[Any] = [HumanMessage("When?"), calls("Rome", "Oslo")]
    messages += [
        ToolMessage(timetable.invoke({"city": c}), tool_call_id=c) for c in ("Rome", "Oslo")
    ]
    before = list(messages)
    edit.apply(messages, count_tokens=count_tokens_approximately)
    assert sum(map(is_, messages, before)) == 2 + whole


def test_an_output_is_shortened_once_for_all_calls_of_the_model() -> None:
    done: list[str] = []

    class Counting(Lexical):
        def compress(self, passages: Any, **options: Any) -> Any:
            done.append(passages[0].text)
            return super().compress(passages, **options)

    edited(CompressToolUsesEdit(trigger=0, keep=1, compressor=Counting()))
    assert len(done) == len(set(done)) == 8


def test_an_edit_is_idempotent_and_changes_no_message_in_place() -> None:
    edit = CompressToolUsesEdit(trigger=0, keep=0, method="lexical", rate=0.3)
    output = ToolMessage(timetable.invoke({"city": "Rome"}), tool_call_id="Rome")
    messages: list[Any] = [HumanMessage("When does the ferry leave?"), calls("Rome"), output]
    edit.apply(messages, count_tokens=count_tokens_approximately)
    once = list(messages)
    assert len(once[2].content) < len(output.content) / 2
    edit.apply(messages, count_tokens=count_tokens_approximately)
    assert all(a is b for a, b in zip(messages, once, strict=True))
    assert not output.response_metadata


def test_what_an_edit_spares() -> None:
    text = timetable.invoke({"city": "Rome"})
    messages: list[Any] = [
        calls("a", "b"),
        ToolMessage(text, tool_call_id="a", status="error"),
        ToolMessage(text, tool_call_id="b"),
    ]
    before = list(messages)
    edit = CompressToolUsesEdit(0, 0, ["timetable"], method="lexical")
    edit.apply(messages, count_tokens=count_tokens_approximately)
    assert all(a is b for a, b in zip(messages, before, strict=True))
    CompressToolUsesEdit(0, 0, method="lexical").apply(
        messages, count_tokens=count_tokens_approximately
    )
    assert messages[1] is before[1]
    assert messages[2].content != text


@pytest.mark.parametrize("fields", [{"trigger": -1}, {"keep": True}, {"exclude_tools": "a"}])
def test_wrong_settings_of_an_edit_are_refused_at_once(fields) -> None:
    with pytest.raises(InputError):
        CompressToolUsesEdit(**fields)


# A graph without an agent.


class State(MessagesState):
    llm_input_messages: list[BaseMessage]


def graph(model: Scripted, node: Any, schema: Any = State) -> Any:
    def answer(state: Any) -> dict[str, Any]:
        return {"messages": [model.invoke(state["llm_input_messages"])]}

    made = StateGraph(schema)
    made.add_node("compress", node)
    made.add_node("answer", answer)
    made.add_edge(START, "compress")
    made.add_edge("compress", "answer")
    return made.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_node_bounds_what_is_sent_and_the_state_keeps_all(is_async) -> None:
    model = answering()
    app = graph(model, compress_messages_node(300))

    def say(text: str, name: str) -> Any:
        if is_async:
            return asyncio.run(app.ainvoke(human(text), thread(name)))
        return app.invoke(human(text), thread(name))

    say(FACT, "a")
    for turn in range(44):
        for name in "ab":
            state = say(f"{name}{turn}: it rained, and the tram was late once more.", name)
    assert max(map(tokens, model.sent)) <= 300
    assert len(state["messages"]) == 88
    assert len(model.sent[-1]) < 44
    say("What is my cat called?", "b")
    assert "Tom" not in said(model.sent[-1])
    say("What is my cat called?", "a")
    assert "Tom" in said(model.sent[-1])


def test_a_node_takes_other_keys_and_states_that_are_objects() -> None:
    class Talk(BaseModel):
        turns: list[Any] = []
        shown: list[Any] = []

    node = compress_messages_node(60, input_key="turns", output_key="shown")
    turns = [SystemMessage("Be kind."), *[HumanMessage(f"Day {n} was wet.") for n in range(40)]]
    made = StateGraph(Talk)
    made.add_node("compress", node)
    made.add_edge(START, "compress")
    state = made.compile().invoke({"turns": turns})
    assert state["turns"] == turns
    assert state["shown"][0] == turns[0]
    assert state["shown"][-1] == turns[-1]
    assert tokens(state["shown"]) <= 60


def test_a_node_says_what_it_misses() -> None:
    class Other(TypedDict):
        words: Annotated[list[str], add]

    made = StateGraph(Other)
    made.add_node("compress", compress_messages_node(60))
    made.add_edge(START, "compress")
    with pytest.raises(InputError, match="no list of messages under 'messages'"):
        made.compile().invoke({"words": ["a"]})
    with pytest.raises(BudgetError):
        compress_messages_node(0)


def test_a_node_gives_a_broken_sequence_as_it_is_with_a_warning(caplog) -> None:
    messages = [HumanMessage("wet " * 99), ToolMessage("Noon.", tool_call_id="x")]
    with caplog.at_level(logging.WARNING, "laconic"):
        given = compress_messages_node(60).invoke({"messages": messages})
    assert given == {"llm_input_messages": messages}
    assert "answers no open call" in caplog.text


# The package.


@pytest.mark.parametrize("name", ["adapters", "chat_history", "chat_memory"])
def test_the_examples_are_true(name) -> None:
    module = import_module(f"laconic.integrations.langchain.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0 < result.attempted


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [
        ("langchain", "ContextCompressionMiddleware", "agents"),
        ("langgraph", "ContextCompressionMiddleware", "agents"),
        ("langchain", "ToolOutputCompressionMiddleware", "agents"),
        ("langchain", "as_summarizer", "agents"),
        ("langchain_classic", "CompressedChatMemory", "langchain"),
        ("langchain_core", "CompressedChatMessageHistory", "langchain"),
    ],
)
def test_without_a_package_it_says_at_use_what_to_install(missing, name, extra) -> None:
    assert name in face.__all__
    program = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "import laconic.integrations.langchain as face\n"
        "from laconic.errors import MissingExtraError\n"
        "try:\n"
        f"    face.{name}\n"
        "except MissingExtraError as error:\n"
        "    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    told = f'{name} needs an extra package: pip install "laconic[{extra}]"'
    assert done.stdout.strip() == told


def test_agents_and_histories_load_no_model_library() -> None:
    program = (
        "import sys\n"
        "from laconic.integrations.langchain import CompressedChatMessageHistory\n"
        "print(sorted({'langchain', 'langgraph', 'langchain_classic'} & set(sys.modules)))\n"
        "from laconic.integrations.langchain import ContextCompressionMiddleware as M\n"
        "M(4000)\n"
        "print(sorted({'torch', 'transformers', 'langchain_classic'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
