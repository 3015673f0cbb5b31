"""Values as JSON has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The value, or None if it is a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def shortened(error: BaseException, folder: Path) -> str:
    """What an error about a run says, in one line without the run's own folder."""
    return one_line(error).replace(f"{folder}/", "")
