"""Everything laconic raises on purpose.

Each error says what was wrong, what was expected and what to do. All derive from
`LaconicError`, and also from the built-in a caller would guess (`ValueError`, `ImportError`).
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "InputError",
    "LaconicError",
    "MissingExtraError",
    "ModelError",
    "QueryRequiredError",
    "StateError",
    "UnknownMethodError",
]


class LaconicError(Exception):
    """Base class of every error laconic raises on purpose."""


class InputError(LaconicError, ValueError):
    """The input is not text, or not in the shape that was promised."""


class BudgetError(LaconicError, ValueError):
    """The budget is not a number that can be met."""


class QueryRequiredError(LaconicError, ValueError):
    """The method scores text against a query and was given none."""


class UnknownMethodError(LaconicError, ValueError):
    """No method is registered under this name."""


class ModelError(LaconicError, ValueError):
    """A model cannot be found, trusted or used for this purpose."""


class StateError(LaconicError, ValueError):
    """A stored state is damaged, or was made by another model, tokenizer or memory."""


class MissingExtraError(LaconicError, ImportError):
    """An optional dependency is not installed.

    Parameters
    ----------
    feature
        What the user asked for, as it should appear at the start of the message.
    extra
        The extra of the `laconic` distribution that brings the dependency.
    """

    def __init__(self, feature: str, extra: str) -> None:
        self.feature = feature
        self.extra = extra
        super().__init__(f'{feature} needs an extra package: pip install "laconic[{extra}]"')
