"""Options as TOML: flat, as sd-scripts reads its config files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def toml_text(values: Mapping[str, Any]) -> str:
    """Lines of TOML. None has no form in TOML and is left out: it is no option's only meaning."""
    return "".join(
        f"{name} = {_value(each)}\n" for name, each in values.items() if each is not None
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's; DEL alone must be escaped there and is not in JSON.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
