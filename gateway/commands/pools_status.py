"""`tollgate pools status`: how are the pools doing, as a running gateway sees them?

Asks the control plane of a gateway (GET /admin/v1/pools): states, queues and breakers are in the memory of
each process, not in the database. With several workers one of them answers, and "ours" is what that one has
under way. Ends with 1 where a pool has neither a replica that is ready nor one that could wake.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import httpx
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.commands.pools_learned import pools_learned
from gateway.commands.terminal import Json, out, print_json
from gateway.errors import ConfigurationError
from gateway.identity.root_key import load_admin_key
from gateway.settings import Settings, load_settings

PATH = "/admin/v1/pools"
TIMEOUT_S = 5.0
INTERVAL_S = 2.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared with, not bound
_STYLES = {
    "ready": "green",
    "unhealthy": "red",
    "stopped": "red",
    "sleeping": "blue",
    "starting": "yellow",
    "waking": "yellow",
    "draining": "yellow",
}
_ERRORS_SHOWN = 3
NOTHING = "-"
"""Where there is nothing to count."""
_COLUMNS = ("replica", "state", "for", "running", "waiting", "ours", "KV", "prefix hits", "acceptance")
_MORE_COLUMNS = ("tokens/s", "breaker", "restarts")


def pools_status(
    pool: Annotated[str | None, typer.Argument(help="default: all pools")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="go on, until Ctrl-C")] = False,  # noqa: FBT002 - an option
    url: Annotated[str | None, typer.Option(help="of the gateway; default: by the settings")] = None,
    *,
    learned: Annotated[
        bool, typer.Option("--learned", help="what requests taught instead, as `pools learned` has it")
    ] = False,
    as_machine: Json = False,
) -> None:
    """Show replicas, their load and their last errors, as a running gateway sees them."""
    if learned:
        pools_learned(pool, as_machine=as_machine)
        return
    settings = load_settings()
    desk = _Desk(settings, url)
    with desk:
        if watch and not as_machine:
            _watch(desk, pool)
            return
        found = desk.pools(pool)
    if as_machine:
        print_json(found)
    else:
        out.print(_page(found), highlight=False)
    if not all(_can_serve(each) for each in found["data"]):
        raise typer.Exit(1)


class _Desk:
    """A gateway's control plane."""

    def __init__(self, settings: Settings, url: str | None) -> None:
        self._url = (url or _url_of(settings)).rstrip("/")
        headers = {"authorization": f"Bearer {_key_of(settings)}"}
        # trust_env off: a company's HTTP proxy is not the way to its own gateway.
        self._client = httpx.Client(trust_env=False, timeout=TIMEOUT_S, headers=headers)

    def __enter__(self) -> None:
        self._client.__enter__()

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def pools(self, name: str | None) -> dict[str, Any]:
        """What it says of all pools, or of one.

        Raises:
            ConfigurationError: no gateway answers there, it does not know the key, or not the pool.
        """
        try:
            answer = self._client.get(f"{self._url}{PATH}")
        except httpx.HTTPError as error:
            raise ConfigurationError(
                f"no gateway answers at {self._url} ({error}): start one with `tollgate up` or"
                " `tollgate serve`, or say where it is with --url"
            ) from None
        if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise ConfigurationError(
                f"the gateway at {self._url} does not know this administrator's key:"
                " set TOLLGATE_ADMIN_KEY or TOLLGATE_STATE_DIR as that gateway has them"
            )
        try:
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            names = [each["name"] for each in found["data"]]
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            raise ConfigurationError(
                f"what answers at {self._url} is no Tollgate gateway (status {answer.status_code})"
            ) from None
        if name is not None and name not in names:
            raise ConfigurationError(f"no pool '{name}'; there are: {', '.join(names)}")
        if name is not None:
            found["data"] = [each for each in found["data"] if each["name"] == name]
        return found


def _url_of(settings: Settings) -> str:
    if settings.port == 0:
        raise ConfigurationError("TOLLGATE_PORT is 0: say with --url where the gateway is")
    host = _EVERYWHERE.get(settings.host, settings.host)
    return f"http://{host}:{settings.port}"


def _key_of(settings: Settings) -> str:
    if settings.admin_key is None and not (settings.state_dir / "admin-key").exists():
        raise ConfigurationError(
            f"no administrator's key: {settings.state_dir / 'admin-key'} is missing; run this where the"
            " gateway runs, or set TOLLGATE_ADMIN_KEY"
        )
    return load_admin_key(settings)


def _watch(desk: _Desk, pool: str | None) -> None:
    try:
        with Live(_page(desk.pools(pool)), console=out, auto_refresh=False) as live:
            while True:
                time.sleep(INTERVAL_S)
                live.update(_page_or_trouble(desk, pool), refresh=True)
    except KeyboardInterrupt:
        return


def _page_or_trouble(desk: _Desk, pool: str | None) -> RenderableType:
    try:
        return _page(desk.pools(pool))
    except ConfigurationError as error:  # it may be restarting
        return Text(str(error), style="red")


def _page(found: dict[str, Any]) -> Group:
    """What a person sees."""
    now = datetime.now(tz=UTC)  # noqa: TID251 - the clock on the wall, beside what is shown
    calls = f"{found['in_flight']} of at most {found['in_flight_max']} calls under way"
    head = f"{now:%Y-%m-%d %H:%M:%S} UTC, {calls}"
    parts: list[RenderableType] = [Text(head, style="dim")]
    for pool in found["data"]:
        parts += [Text(), _heading(pool), _table(pool), *_troubles(pool)]
    return Group(*parts)


def _heading(pool: dict[str, Any]) -> Text:
    words = [f"{pool['ready']} of {len(pool['replicas'])} ready"]
    if pool["asleep"]:
        words.append(f"{pool['asleep']} asleep or waking")
    if pool["waiting_for_wake"]:
        words.append(f"{pool['waiting_for_wake']} calls wait for a wake")
    text = Text(pool["name"], style="bold")
    text.append(f"  {pool['model']}, driver {pool['driver']}: {', '.join(words)}", style="not bold")
    return text


def _table(pool: dict[str, Any]) -> Table:
    table = Table(*_COLUMNS, *_MORE_COLUMNS, box=None, pad_edge=False)
    for replica in pool["replicas"]:
        recent = replica["recent"] or {}
        table.add_row(
            replica["name"],
            Text(replica["state"], style=_STYLES.get(replica["state"], "")),
            _duration(replica["since_s"]),
            _number(replica["running"]),
            _number(replica["waiting"]),
            str(replica["in_flight"]),
            _percent(replica["kv_cache_usage_ratio"]),
            _percent(recent.get("prefix_hit_ratio")),
            _acceptance(recent),
            f"{recent['output_tokens_per_s']:.0f}" if recent else NOTHING,
            _breaker(replica["breaker"]),
            _number(replica["restarts"]),
        )
    return table


def _troubles(pool: dict[str, Any]) -> list[RenderableType]:
    """Why replicas are not ready, and what went wrong last."""
    lines: list[RenderableType] = []
    for replica in pool["replicas"]:
        if replica["detail"] and replica["state"] != "ready":
            style = _STYLES.get(replica["state"], "")
            lines.append(Text(f"  {replica['name']}: {replica['detail']}", style=style))
        lines += [
            Text(f"  {replica['name']}, {error['at']}: {error['text']}", style="dim")
            for error in replica["errors"][-_ERRORS_SHOWN:]
        ]
    return lines


def _can_serve(pool: dict[str, Any]) -> bool:
    return bool(pool["ready"] or pool["asleep"])


def _number(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _percent(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{100 * ratio:.0f} %"


def _acceptance(recent: dict[str, Any]) -> str:
    length = recent.get("acceptance_length")
    return NOTHING if length is None else f"{length:.2f} ({_percent(recent.get('acceptance_ratio'))})"


def _breaker(breaker: dict[str, Any]) -> str:
    if breaker["state"] == "open" and breaker["retry_in_s"] is not None:
        return f"open, tried in {breaker['retry_in_s']:.0f} s"
    return str(breaker["state"]).replace("_", " ")


def _duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h`, `2 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
