"""How does a command have many options and few parameters? Those that belong together are one dataclass.

Each field of it becomes an option of the command, annotated as typer wants it; the command gets the instance.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_options(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of dataclasses; it gets them under these names."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        options = {name: inspect.signature(kind, eval_str=True).parameters for name, kind in groups.items()}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: kind(**{field: given.pop(field) for field in options[name]})
                for name, kind in groups.items()
            }
            command(**given, **made)

        kept = [parameter for name, parameter in own.parameters.items() if name not in groups]
        added = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameters in options.values()
            for parameter in parameters.values()
        ]
        signature = own.replace(parameters=[*kept, *added])
        vars(run).pop("__wrapped__")
        vars(run)["__signature__"] = signature
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorate
