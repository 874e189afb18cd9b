"""`tollgate policy publish|rollback|…`: which policy do requests follow, how does another one get there?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.policy_views import (
    OutcomeView,
    PolicyDiffView,
    activation_view,
    diff_view,
    outcome_view,
    version_text_view,
    version_view,
)
from gateway.admin.views import moment
from gateway.commands.policy import policy
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    load_pool_files,
    out,
    print_json,
    print_table,
)
from gateway.errors import ConfigurationError, InvalidRequest, NotFound
from gateway.policy_life import (
    Outcome,
    Proposal,
    Supply,
    draft,
    fit,
    publish,
    put_into_force,
    read_policy,
    roll_back,
    supply_of,
)
from gateway.routing.policy_diff import Kind, diff_policies, shown
from gateway.routing.versions import (
    Activation,
    Version,
    find_version,
    page_activations,
    page_versions,
    read_active,
    refuse_other,
    show_version,
    text_of,
)
from gateway.settings import load_settings

__all__ = ["policy"]

ACTIVE = "active"
"""Names the active version where a version is asked for."""
_ENDINGS = {".yaml", ".yml"}
_ROWS_DEFAULT = 20
_VALUE_CHARS = 60
_STYLES = {"+": "green", "-": "red", "@": "cyan"}

Message = Annotated[str | None, typer.Option("--message", "-m", help="why, for people")]
Expected = Annotated[
    str | None, typer.Option(metavar="VERSION", help="do nothing unless this version is active now")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what would happen, change nothing")]
KeysElsewhere = Annotated[
    bool,
    typer.Option(
        "--keys-elsewhere",
        help="the keys of external targets are set on the gateways, not here; one that lacks a key keeps the"
        " version before",
    ),
]
WhichVersion = Annotated[str, typer.Argument(help="name@hash, the beginning of the hash, or active")]


@policy.command(
    "publish",
    epilog="Example: `tollgate policy publish policies/default.yaml -m 'creative work to the plain pool'`;"
    " in CI: `tollgate policy publish policies --if-changed --expected default@91c0de55aa10`",
)
def policy_publish(
    file: Annotated[Path, typer.Argument(help="a policy, or a folder that holds exactly one")],
    message: Message = None,
    expected: Expected = None,
    *,
    if_changed: Annotated[
        bool, typer.Option("--if-changed", help="status 0, not 1, if it is active already")
    ] = False,
    dry_run: DryRun = False,
    keys_elsewhere: KeysElsewhere = False,
    as_machine: Json = False,
) -> None:
    """Check a policy, show what it changes, and let all requests follow it; status 1 if they do already.

    An installation has one active policy. Running gateways take it over within two seconds.
    """
    path, text = policy_file(file)
    supply = supply_here(keys_elsewhere=keys_elsewhere)
    version = fit(text, source=str(path), supply=supply).policy.version
    step = _before(version, text, expected)
    if not as_machine:
        out.print(f"{path}: valid, version {version}", highlight=False, markup=False)
        _print_step(step)
    if step.is_active:
        _end(step, None, as_machine=as_machine, is_fine=if_changed)
        return
    if dry_run:
        _end(step, None, as_machine=as_machine, is_fine=True)
        return
    act = act_of_the_user()
    seen = None if step.active is None else step.active.version

    async def work(session: AsyncSession) -> Outcome:
        proposal = Proposal(text, str(path), message)
        return await publish(session, proposal, act=act, supply=supply, expected=seen)

    _end(step, in_session(work), as_machine=as_machine, is_fine=True)


@policy.command("activate", epilog="Example: `tollgate policy activate 3f2a9c41 -m 'agreed on Monday'`")
def policy_activate(
    version: WhichVersion,
    message: Message = None,
    expected: Expected = None,
    *,
    dry_run: DryRun = False,
    keys_elsewhere: KeysElsewhere = False,
    as_machine: Json = False,
) -> None:
    """Let all requests follow a stored version, such as a draft; status 1 if they do already."""
    supply = supply_here(keys_elsewhere=keys_elsewhere)
    stored = in_session(lambda session: _named(session, version))
    fit(stored.text, source=stored.name, supply=supply)
    step = _before(stored.name, stored.text, expected)
    if not as_machine:
        _print_step(step)
    if step.is_active or dry_run:
        _end(step, None, as_machine=as_machine, is_fine=not step.is_active)
        return
    act = act_of_the_user()
    seen = None if step.active is None else step.active.version

    async def work(session: AsyncSession) -> Outcome:
        return await put_into_force(
            session, stored.name, act=act, supply=supply, expected=seen, message=message
        )

    _end(step, in_session(work), as_machine=as_machine, is_fine=True)


@policy.command("rollback", epilog="Example: `tollgate policy rollback -m 'too many refusals'`")
def policy_rollback(
    version: Annotated[
        str | None, typer.Argument(help="default: the one that was active before this one")
    ] = None,
    message: Message = None,
    expected: Expected = None,
    *,
    dry_run: DryRun = False,
    keys_elsewhere: KeysElsewhere = False,
    as_machine: Json = False,
) -> None:
    """Put the version before, or a given one, back into force; twice returns to where it began."""
    supply = supply_here(keys_elsewhere=keys_elsewhere)

    async def look(session: AsyncSession) -> _Policy:
        if version is not None:
            return await _named(session, version)
        active = await read_active(session)
        if active is None or active.previous is None:
            raise NotFound("There is nothing to roll back to: only one policy was ever active.")
        return await _named(session, active.previous)

    target = in_session(look)
    step = _before(target.name, target.text, expected)
    if not as_machine:
        _print_step(step)
    if step.is_active or dry_run:
        _end(step, None, as_machine=as_machine, is_fine=not step.is_active)
        return
    act = act_of_the_user()
    seen = None if step.active is None else step.active.version

    async def work(session: AsyncSession) -> Outcome:
        return await roll_back(session, target.name, act=act, supply=supply, expected=seen, message=message)

    _end(step, in_session(work), as_machine=as_machine, is_fine=True)


@policy.command("draft", epilog="Example: `tollgate policy draft policies/next.yaml -m 'for Monday'`")
def policy_draft(
    file: Annotated[Path, typer.Argument(help="a policy, or a folder that holds exactly one")],
    message: Message = None,
    *,
    keys_elsewhere: KeysElsewhere = False,
    as_machine: Json = False,
) -> None:
    """Store a policy without following it, and say whether it fits the fleet."""
    path, text = policy_file(file)
    supply, act = supply_here(keys_elsewhere=keys_elsewhere), act_of_the_user()
    stored = in_session(
        lambda session: draft(session, Proposal(text, str(path), message), act=act, supply=supply)
    )
    view = version_view(stored)
    if as_machine:
        print_json(view)
        return
    out.print(f"{path}: stored as {view.version}, {view.state}", highlight=False, markup=False)
    if view.complaint is not None:
        out.print(f"It does not fit the fleet: {view.complaint}", highlight=False, markup=False)
    out.print(f"To follow it: tollgate policy activate {view.version}", highlight=False, markup=False)


@policy.command("list", epilog="Example: `tollgate policy list`")
def policy_list(
    rows: Annotated[int, typer.Option("--limit", min=1, help="so many of the newest")] = _ROWS_DEFAULT,
    *,
    as_machine: Json = False,
) -> None:
    """Show stored versions and their states, the newest first."""
    found = in_session(lambda session: all_rows(lambda page: page_versions(session, page), at_most=rows))
    views = [version_view(one) for one in found]
    if as_machine:
        print_json(views)
        return
    print_table(
        ("version", "state", "stored", "author", "activated", "retired", "message"),
        [
            (
                one.version,
                one.state,
                one.created_at,
                one.author,
                one.activated_at,
                one.retired_at,
                one.message,
            )
            for one in views
        ],
    )


@policy.command("history", epilog="Example: `tollgate policy history --limit 5`")
def policy_history(
    rows: Annotated[int, typer.Option("--limit", min=1, help="so many of the newest")] = _ROWS_DEFAULT,
    *,
    as_machine: Json = False,
) -> None:
    """Show which version came into force when, by whom and why, the newest first."""
    found = in_session(lambda session: all_rows(lambda page: page_activations(session, page), at_most=rows))
    if as_machine:
        print_json([activation_view(one) for one in found])
        return
    if not found:
        out.print("No policy was ever active: the first start of a gateway seeds one.")
        return
    until: list[Any] = ["now", *(moment(one.at_ms) for one in found)]
    print_table(
        ("number", "version", "from", "until", "how", "by", "message"),
        [
            (one.number, one.version, moment(one.at_ms), end, one.origin, one.actor, one.message)
            for one, end in zip(found, until, strict=False)
        ],
    )


@policy.command("show", epilog="Example: `tollgate policy show active > policies/default.yaml`")
def policy_show(version: WhichVersion = ACTIVE, *, as_machine: Json = False) -> None:
    """Print a stored version's YAML; with --json, what became of it, too."""

    async def work(session: AsyncSession) -> Version:
        return await show_version(session, (await _named(session, version)).name)

    found = in_session(work)
    if as_machine:
        print_json(version_text_view(found))
        return
    typer.echo(found.text, nl=not found.text.endswith("\n"))


@policy.command(
    "diff",
    epilog="Example: `tollgate policy diff active policies/default.yaml`; versions: `… diff 91c0 3f2a`",
)
def policy_diff(
    before: Annotated[str, typer.Argument(help="a file, a version, or active")],
    after: Annotated[
        str | None, typer.Argument(help="another one; left out: the active one is compared with the first")
    ] = None,
    *,
    as_machine: Json = False,
) -> None:
    """Show what differs between two policies: by meaning, key by key, and as text."""
    names = (ACTIVE, before) if after is None else (before, after)

    files = [_file(name) for name in names]

    async def work(session: AsyncSession) -> list[_Policy]:
        return [
            await _named(session, name) if file is None else file
            for name, file in zip(names, files, strict=True)
        ]

    one, other = in_session(work)
    view = diff_view(
        diff_policies(one.text, other.text, names=(one.name, other.name)), (one.name, other.name)
    )
    print_json(view) if as_machine else _print_diff(view)


# ------------------------------------------------------------------------------------------------ reading
@dataclass(frozen=True, slots=True)
class _Policy:
    """A policy's YAML and what to call it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class _Step:
    """What is about to happen."""

    version: str
    active: Activation | None
    diff: PolicyDiffView | None
    """From what is active; None: nothing is."""

    @property
    def is_active(self) -> bool:
        """It has happened already."""
        return self.active is not None and self.active.version == self.version


def policy_file(path: Path) -> tuple[Path, str]:
    """The policy's file and its text.

    Raises:
        ConfigurationError: it cannot be read, or a folder does not hold exactly one.
    """
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in _ENDINGS and each.is_file())
        if len(files) != 1:
            shown_files = ", ".join(each.name for each in files) or "none"
            raise ConfigurationError(
                f"{path}: one policy is active in an installation, so a folder must hold exactly one YAML"
                f" file; found: {shown_files}. Name the file."
            )
        path = files[0]
    try:
        return path, path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: the policy cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: the policy cannot be read: not UTF-8 text") from None


def supply_here(*, keys_elsewhere: bool) -> Supply:
    """What there is for a policy to name, as this machine knows it.

    Raises:
        ConfigurationError: a pool file is wrong.
    """
    settings = load_settings()
    supply = supply_of(settings, load_pool_files(settings))
    return replace(supply, keys=None) if keys_elsewhere else supply


async def _named(session: AsyncSession, wanted: str) -> _Policy:
    """A stored version.

    Raises:
        NotFound, InvalidRequest: there is none, or there are several.
    """
    if wanted == ACTIVE:
        active = await read_active(session)
        if active is None:
            raise NotFound("No policy was ever active: the first start of a gateway seeds one.")
        wanted = active.version
    version = await find_version(session, wanted)
    return _Policy(version, await text_of(session, version))


def _file(wanted: str) -> _Policy | None:
    """The policy in a file, or in a folder; None: it is a version's name.

    Raises:
        ConfigurationError: it is no policy.
        InvalidRequest: it looks like a file's name, and there is none.
    """
    if Path(wanted).exists():
        path, text = policy_file(Path(wanted))
        read_policy(text, source=str(path))
        return _Policy(str(path), text)
    if wanted.endswith(tuple(_ENDINGS)):
        raise InvalidRequest(f"There is no file {wanted!r}.")
    return None


def _before(version: str, text: str, expected: str | None) -> _Step:
    """What is active, and what would change.

    Raises:
        Conflict: another version is active than expected.
    """

    async def work(session: AsyncSession) -> _Step:
        active = await read_active(session)
        if expected is not None:
            refuse_other(active, expected if expected == ACTIVE else await find_version(session, expected))
        if active is None:
            return _Step(version, None, None)
        names = active.version, version
        diff = diff_policies(await text_of(session, active.version), text, names=names)
        return _Step(version, active, diff_view(diff, names))

    return in_session(work)


# ------------------------------------------------------------------------------------------------ showing
def _print_step(step: _Step) -> None:
    if step.active is None:
        out.print("No policy is active yet: it will be the first.")
        return
    since = moment(step.active.at_ms)
    out.print(
        f"Active now: {step.active.version}, number {step.active.number}, since {since:%Y-%m-%d %H:%M:%S}"
        f" UTC, by {step.active.actor}",
        highlight=False,
        markup=False,
    )
    if step.diff is not None and not step.is_active:
        _print_diff(step.diff)


def _end(step: _Step, outcome: Outcome | None, *, as_machine: bool, is_fine: bool) -> None:
    """Say what came of it.

    Args:
        step: what was to happen.
        outcome: None: nothing was done.
        as_machine: as JSON.
        is_fine: status 0 though nothing was done.
    """
    view: OutcomeView | None = None if outcome is None else outcome_view(outcome)
    if as_machine:
        active = step.active if outcome is None else outcome.active
        print_json(
            {
                "version": step.version,
                "is_changed": view is not None and view.is_changed,
                "active": None if active is None else activation_view(active).model_dump(mode="json"),
                "before": None if step.active is None else step.active.version,
                "diff": None if step.diff is None else step.diff.model_dump(mode="json"),
            }
        )
    elif view is not None:
        out.print(
            f"{view.active.version} is active, number {view.active.number}. Running gateways follow it within"
            " two seconds; requests under way end as they began.",
            highlight=False,
            markup=False,
        )
        if view.before is not None:
            out.print(f"Back to {view.before}: tollgate policy rollback", highlight=False, markup=False)
    elif step.is_active:
        out.print(f"{step.version} is active already: nothing was changed.", highlight=False, markup=False)
    else:
        out.print("Nothing was changed (--dry-run).")
    if not is_fine:
        raise typer.Exit(1)


def _print_diff(view: PolicyDiffView) -> None:
    if not view.differences:
        same = "They say the same" + (", in other words:" if view.text else ".")
        out.print(same)
    else:
        rows = []
        for one in view.differences:
            before = "" if one.kind is Kind.ADDED else _value(one.before)
            after = "" if one.kind is Kind.REMOVED else _value(one.after)
            rows.append((one.kind, one.path, before, after))
        print_table(("", "key", view.before, view.after), rows)
    for line in view.text.splitlines():
        out.print(Text(line, style=_STYLES.get(line[:1], "")), highlight=False, soft_wrap=True)


def _value(value: object) -> str:
    text = shown(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[: _VALUE_CHARS - 1]}…"
