"""Everything laconic raises on purpose; see `laconic.core.errors`."""

from .core.errors import (
    BudgetError,
    InputError,
    LaconicError,
    MissingExtraError,
    ModelError,
    QueryRequiredError,
    UnknownMethodError,
)

__all__ = [
    "BudgetError",
    "InputError",
    "LaconicError",
    "MissingExtraError",
    "ModelError",
    "QueryRequiredError",
    "UnknownMethodError",
]
