"""LangChain's own suites for chat models."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("langchain_tests")

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from laconic.integrations.langchain import ChatLaconic

from .local_models import pair

pytestmark = [
    pytest.mark.asyncio,  # the suites have no mark of their own
    pytest.mark.filterwarnings("ignore:.*pytest.mark.asyncio:pytest.PytestWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]


class _Local:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLaconic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        model, tokenizer = pair()
        return {"model": model, "tokenizer": tokenizer, "budget": 512}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 16}

    @property
    def supports_model_override(self) -> bool:
        return False  # another model is another object, for it has to be loaded


class TestUnit(_Local, ChatModelUnitTests):
    pass


class TestIntegration(_Local, ChatModelIntegrationTests):
    @property
    def has_tool_calling(self) -> bool:
        return False  # a random model calls no tools; test_chat_model.py has one that does

    @property
    def has_structured_output(self) -> bool:
        return False  # for the same reason
