"""How does the program know its commands without loading what they need?

`tollgate keys list` needs no web framework and `tollgate --help` no database: a command's module is loaded
when the command is called. Until then only its name and its line in `--help` are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group_from_info
from typer.models import TyperInfo


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is, and what it says of itself.

    Attributes:
        place: `module:name` of a group (a `typer.Typer`), or `module:name.command` of one command of it.
        help: the first sentence of its help, which the group's own `--help` shows.
    """

    place: str
    help: str

    def load(self, name: str) -> Any:
        """The group or the command itself; what is wrong with its module is raised as it is."""
        module, _, attribute = self.place.partition(":")
        variable, _, command = attribute.partition(".")
        group = get_group_from_info(
            TyperInfo(getattr(import_module(module), variable), name=name),
            pretty_exceptions_short=True,
            suggest_commands=True,
            rich_markup_mode="markdown",
        )
        return group.commands[command] if command else group


class _Unloaded(TyperCommand):
    """Stands for a command until it is called."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self._entry = entry

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself: what typer does with it then concerns that alone."""
        return self._entry.load(self.name or "").make_context(info_name, args, parent, **extra)


class _Commands(Mapping[str, Any]):
    """The commands of a group, each loaded when it is read."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        return self._entries[name].load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def lazy_group(entries: Mapping[str, Entry], **options: Any) -> typer.Typer:
    """A group whose commands are loaded when they are called.

    Args:
        entries: the commands by name, in the order in which `--help` shows them.
        options: further ones of `typer.Typer`.
    """

    class Group(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands: Any = _Commands(entries)

        def list_commands(self, ctx: Any) -> list[str]:
            del ctx
            return list(entries)

        def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
            del ctx
            return _Unloaded(cmd_name, entries[cmd_name]) if cmd_name in entries else None

    # Typer wants a command or a callback before it takes something for a group.
    return typer.Typer(cls=Group, callback=lambda: None, **options)
