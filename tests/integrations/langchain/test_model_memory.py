from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("langchain_classic")

from langchain_classic.chains import ConversationChain
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from pydantic import ValidationError

from laconic.errors import StateError
from laconic.integrations.langchain import CCMChatMemory, ChatLaconic, InfiniPotChatMemory

from .local_models import adapter_folder, folder, local, told

SYSTEM = "Answer in one word."
PROMPT = ChatPromptTemplate.from_messages(
    [("system", SYSTEM), MessagesPlaceholder("history"), ("human", "{input}")]
)


def remembering(memory: str, **fields: Any) -> Any:
    kind = CCMChatMemory if memory == "ccm" else InfiniPotChatMemory
    return kind(llm=local(memory, **fields))


def chain(memory: Any) -> Any:
    return ConversationChain(llm=memory.llm, memory=memory, prompt=PROMPT)


@pytest.fixture(params=["infinipot", "ccm"])
def memory(request: pytest.FixtureRequest) -> Any:
    return remembering(request.param)


def questions(count: int) -> list[str]:
    return [f"Stop {n}: the tram was late. What comes next?" for n in range(count)]


def test_a_chain_says_what_the_model_says_to_all_messages(memory: Any) -> None:
    talk = chain(memory)
    answers = [talk.invoke({"input": q})["response"] for q in questions(5)]
    messages: list[Any] = [("system", SYSTEM)]
    for question, answer in zip(questions(5), answers, strict=True):
        messages.append(("human", question))
        assert local(memory.llm.memory).invoke(messages).text == answer
        messages.append(("ai", answer))
    assert len(set(answers)) > 1


def test_each_turn_is_read_once() -> None:
    llm = told(lambda prompt: "Noted.")
    talk = chain(InfiniPotChatMemory(llm=llm))
    for question in questions(6):
        talk.invoke({"input": question})
    assert all(prompt.count("the tram was late") <= 1 for prompt in llm.model.prompts)
    assert sum(SYSTEM in prompt for prompt in llm.model.prompts) == 2  # as a prompt, as a turn
    assert len(llm.model.prompts) == 12


def test_the_budget_holds_after_two_hundred_turns(memory: Any) -> None:
    talk, sizes = chain(memory), []
    memory.llm.max_tokens = 2
    for question in questions(200):
        talk.invoke({"input": question})
        sizes.append(memory.nbytes)
    assert memory.n_tokens <= memory.llm.new_memory().budget
    assert max(sizes[100:]) <= 1.01 * max(sizes[:100])
    assert memory.chat_memory.messages == []


def test_async_says_what_sync_says(memory: Any) -> None:
    async def run() -> list[str]:
        talk = chain(remembering(memory.llm.memory))
        return [(await talk.ainvoke({"input": q}))["response"] for q in questions(4)]

    talk = chain(memory)
    assert asyncio.run(run()) == [talk.invoke({"input": q})["response"] for q in questions(4)]


def ask(memory: Any, question: str = "What did I say?") -> str:
    loaded = memory.load_memory_variables({"input": question})["history"]
    return memory.llm.invoke([*loaded, HumanMessage(question)]).text


def test_a_turn_of_another_model_is_read(memory: Any) -> None:
    before = ask(memory)
    memory.save_context({"input": "My cat is called Tom."}, {"output": "Noted."})
    assert memory.n_tokens > 0
    direct = local(memory.llm.memory)
    history = [("human", "My cat is called Tom."), ("ai", "Noted."), ("human", "What did I say?")]
    assert ask(memory) == direct.invoke(history).text
    asyncio.run(memory.aclear())
    assert ask(memory) == before
    assert memory.n_tokens == 0


def test_an_answer_that_was_not_kept_is_not_adopted(memory: Any) -> None:
    other = remembering(memory.llm.memory)
    ask(memory, "A")
    memory.save_context({"input": "A"}, {"output": "Something else."})
    other.save_context({"input": "A"}, {"output": "Something else."})
    assert ask(memory) == ask(other)
    said = ask(memory, "B")
    memory.save_context({"input": "C"}, {"output": said})
    other.save_context({"input": "C"}, {"output": said})
    assert ask(memory) == ask(other)


def test_what_the_llm_lets_go_of_is_not_lost() -> None:
    tiny, roomy = remembering("infinipot", cache_bytes=0), remembering("infinipot")
    for question in questions(4):
        answers = [chain(m).invoke({"input": question})["response"] for m in (tiny, roomy)]
        assert answers[0] == answers[1]
        tiny.load_memory_variables({})
        tiny.llm.invoke("Something else altogether.")


def test_a_conversation_that_others_push_out_goes_on() -> None:
    one = remembering("infinipot", cache_bytes=0)
    two = InfiniPotChatMemory(llm=one.llm)
    for memory in (one, two):
        chain(memory).invoke({"input": "My cat is called Tom."})
    first, second = (memory.load_memory_variables({})["history"] for memory in (one, two))
    expected = one.llm.invoke([*second, ("human", "And?")]).text
    assert one.llm.invoke([*first, ("human", "And?")]).text == expected


@pytest.mark.parametrize("is_seeded", [True, False])
def test_the_system_prompt_is_read_once(is_seeded: bool) -> None:
    llm = told(lambda prompt: "Noted.")
    memory = InfiniPotChatMemory(llm=llm)
    if is_seeded:
        memory.save_context({"input": "My cat is Tom."}, {"output": "I see."})
    for question in ("Hello", "And?", "And now?"):
        chain(memory).invoke({"input": question})
    asked = [prompt for prompt in llm.model.prompts if prompt.endswith("<assistant>")]
    assert [SYSTEM in prompt for prompt in asked] == [True, False, False]


def test_two_memories_of_one_model_do_not_see_each_other() -> None:
    llm = told(lambda prompt: "Noted.")
    one, two = InfiniPotChatMemory(llm=llm), InfiniPotChatMemory(llm=llm)
    chain(one).invoke({"input": "My cat is called Tom."})
    assert two.n_tokens == 0
    chain(two).invoke({"input": "Who am I?"})
    assert two.n_tokens < one.n_tokens + 5
    assert ask(one) == "Noted."


AGAIN = """
import json, sys
from laconic.integrations.langchain import CCMChatMemory, ChatLaconic, InfiniPotChatMemory
fields, path = json.loads(sys.argv[1]), sys.argv[2]
kind = CCMChatMemory if fields["memory"] == "ccm" else InfiniPotChatMemory
memory = kind(llm=ChatLaconic(**fields))
memory.load(path)
history = memory.load_memory_variables({})["history"]
print(json.dumps(memory.llm.invoke([*history, ("human", "What did I say?")]).text))
"""


def test_another_process_goes_on_with_the_same_answer(memory: Any, tmp_path: Path) -> None:
    talk = chain(memory)
    for question in questions(5):
        talk.invoke({"input": question})
    memory.save(tmp_path / "talk")
    fields = {"model": str(folder()), "device": "cpu", "memory": memory.llm.memory}
    fields |= {"budget": 200, "keep": 80, "max_tokens": 8}
    if memory.llm.memory == "ccm":
        fields["adapter"] = str(adapter_folder())
    command = [sys.executable, "-c", AGAIN, json.dumps(fields), str(tmp_path / "talk")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == ask(memory)


def test_a_damaged_file_leaves_the_conversation(memory: Any, tmp_path: Path) -> None:
    memory.save_context({"input": "My cat is called Tom."}, {"output": "Noted."})
    before = ask(memory)
    (tmp_path / "talk").write_bytes(b"nothing")
    with pytest.raises(StateError):
        memory.load(tmp_path / "talk")
    assert ask(memory) == before


def test_histories_of_langchain_work_with_the_model() -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}

    def history(session_id: str) -> InMemoryChatMessageHistory:
        return histories.setdefault(session_id, InMemoryChatMessageHistory())

    talk = RunnableWithMessageHistory(
        PROMPT | local(), history, input_messages_key="input", history_messages_key="history"
    )
    for question in questions(3):
        for name in ("a", "b"):
            config: Any = {"configurable": {"session_id": name}}
            answer = talk.invoke({"input": f"{name}: {question}"}, config)
    messages = [("system", SYSTEM), *histories["b"].messages[:-1]]
    assert local().invoke(messages).text == answer.text
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 50


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="return_messages"):
        InfiniPotChatMemory(llm=local(), return_messages=False)
    with pytest.raises(ValidationError, match="CCMChatMemory"):
        InfiniPotChatMemory(llm=local("ccm"))
    with pytest.raises(ValidationError, match="memory='ccm'"):
        CCMChatMemory(llm=local())
    with pytest.raises(ValidationError, match="extra"):
        InfiniPotChatMemory(llm=local(), budget=5)
    assert isinstance(remembering("infinipot").llm, ChatLaconic)
