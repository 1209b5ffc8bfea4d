"""What every section of a spec shares: no unknown keys, and the types that more than one uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Ranks = Annotated[int, Field(ge=1, le=100_000)]  # a plan of more is a typing error, not a wish

_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([smhd]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> Any:
    """``300``, ``300s``, ``5m``, ``2h`` or ``1d`` as seconds."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if not match:
        raise ValueError("should be a number with s, m, h or d behind it, such as 300s")
    return float(match[1]) * _UNITS[match[2]]


# A month is longer than any deadline, and short enough for every timeout of the system.
LONGEST_S = 31 * 86400
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, le=LONGEST_S),
    WithJsonSchema(  # editors would take 300s for a mistake
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_S},
                {"type": "string", "pattern": f"^{_DURATION.pattern}$"},
            ]
        }
    ),
]


class Section(BaseModel):
    """A mapping in the spec; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Matching:
    """Metadata of a text field: the whole of it matches ``pattern``; ``says`` is that in words."""

    pattern: str
    says: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) | {"pattern": f"^{self.pattern}$"}

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"should be {self.says}")
        return text
