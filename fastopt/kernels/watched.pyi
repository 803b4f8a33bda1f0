from collections.abc import Iterable
from typing import Any

class Watched:
    containers: list[Any]
    contents: list[list[Any]]
    def add(self, containers: Iterable[Any]) -> None: ...
    def take_anew(self, only: Any = None) -> None: ...

class Settled:
    options: dict[str, Any]
    seen: list[Any] | None
    settings: Any
    prepare: Any
    coefficients: Any
    later: Any

def unchanged(group: dict[str, Any], values: list[Any] | None) -> bool: ...
def same(one: dict[str, Any], other: dict[str, Any] | None) -> bool: ...
def changed(group: dict[str, Any], values: list[Any] | None) -> list[str] | None: ...
