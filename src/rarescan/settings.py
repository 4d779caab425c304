"""How every room declares its settings.

Settings are frozen, keyword-only dataclasses in the room's `spec.py`, with the unit in the name,
limits in the type and a docstring under each field. `configs.schema` composes them and reads
YAML; the command line's options and the reference page are made from the same fields.
"""

from typing import Any

STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}
"""For `__pydantic_config__`: an unknown key is an error, docstrings become descriptions."""
