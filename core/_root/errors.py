"""Everything laconic raises on purpose; see `laconic.core.errors`."""

from .core.errors import *  # noqa: F403
from .core.errors import __all__ as __all__
