"""`tollgate pools bench`: how fast is this pool?"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backends.bench.fit import Underdetermined
from backends.bench.load import BenchError
from backends.bench.run import Progress as Stand
from backends.bench.run import measure, profile_of, write
from backends.bench.target import Target, target_of
from backends.bench.vllm_bench import CrossCheck, cross_check
from backends.launch.replica import LaunchError
from backends.pool import PoolSpec
from backends.profile import GridPoint, Profile, Spread
from gateway.commands.terminal import Json, load_pool_files, out, print_json, print_table
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.fleet import VLLM_PYTHON
from gateway.progress import FleetProgress
from gateway.settings import Settings, load_settings
from gateway.stopping import stopped_by_signals

Quick = Annotated[bool, typer.Option("--quick", help="a small grid, some ten seconds on the bundled pools")]
Url = Annotated[
    str | None, typer.Option("--url", help="measure this running server, e.g. http://10.0.0.7:8000")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="folder for the profile and the plot; default: profiles/ in the state folder"),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help="of the prompts; default: drawn, and in the profile")
]
WithVllmBench = Annotated[
    bool, typer.Option("--with-vllm-bench", help="also ask vLLM's own `bench serve`, and compare")
]


def pools_bench(
    pool: Annotated[str, typer.Argument(help="the pool's name")],
    folder: Annotated[Path | None, typer.Option("--pools", help="default: the pools in use")] = None,
    *,
    quick: Quick = False,
    url: Url = None,
    out_folder: Out = None,
    seed: Seed = None,
    with_vllm_bench: WithVllmBench = False,
    json: Json = False,
) -> None:
    """Measure a pool and write its profile and a plot.

    Takes the pool's replica of the running fleet, or starts one for the time of the bench. The server must
    have no other traffic. Name the written profile in the pool file as `profile: path`.
    """
    settings = load_settings()
    pools = load_pool_files(settings, folder)
    if pool not in pools:
        raise InvalidRequest(f"there is no pool '{pool}'; the pool files describe {', '.join(pools)}")
    bench = _Bench(pool, pools, settings=settings, is_quick=quick, url=url, has_terminal=not json)
    drawn = secrets.randbelow(1_000_000) if seed is None else seed
    try:
        profile, check = asyncio.run(bench.run(drawn, with_vllm_bench=with_vllm_bench))
    except (BenchError, LaunchError, Underdetermined) as error:
        raise ConfigurationError(str(error)) from None
    except BaseExceptionGroup as group:
        raise _first_known(group) from None
    if profile is None:
        sys.stderr.write("stopped: nothing was written\n")
        raise typer.Exit(1)
    where, plot = write(profile, out_folder or settings.state_dir / "profiles")
    if json:
        print_json(
            {
                "profile": str(where),
                "plot": str(plot),
                "vllm_bench": asdict(check) if check else None,
                "content": profile.model_dump(mode="json"),
            }
        )
        return
    _print(profile, check)
    out.print(f"\nprofile: {where}\nplot:    {plot}", highlight=False, soft_wrap=True)


class _Bench:
    """One call of the command."""

    def __init__(
        self,
        name: str,
        pools: Mapping[str, PoolSpec],
        *,
        settings: Settings,
        is_quick: bool,
        url: str | None,
        has_terminal: bool,
    ) -> None:
        self._name = name
        self._pools = pools
        self._settings = settings
        self._is_quick = is_quick
        self._url = url
        self._has_terminal = has_terminal

    async def run(self, seed: int, *, with_vllm_bench: bool) -> tuple[Profile | None, CrossCheck | None]:
        """The profile; None if a signal came first."""
        stop = asyncio.Event()
        with stopped_by_signals(stop):
            async with asyncio.TaskGroup() as group:
                working = group.create_task(self._measure(seed, with_vllm_bench=with_vllm_bench))
                stopping = group.create_task(stop.wait())
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not working.done():
                    working.cancel()
            return (None, None) if working.cancelled() else working.result()

    async def _measure(self, seed: int, *, with_vllm_bench: bool) -> tuple[Profile, CrossCheck | None]:
        with FleetProgress(out) as starting:
            async with target_of(
                self._name,
                self._pools,
                url=self._url,
                state_dir=self._settings.state_dir,
                python=VLLM_PYTHON,
                on_progress=starting.replica if self._has_terminal else lambda _: None,
            ) as target:
                starting.settle()
                profile = await self._drive(target, seed)
                return profile, await self._check(target) if with_vllm_bench else None

    async def _check(self, target: Target) -> CrossCheck | None:
        """None if vLLM's benchmark fails: that is told, and the profile, which took minutes, is kept."""
        try:
            return await cross_check(self._pools[self._name], target.url, python=VLLM_PYTHON)
        except BenchError as error:
            sys.stderr.write(f"no cross-check: {error}\n")
            return None

    async def _drive(self, target: Target, seed: int) -> Profile:
        spec = self._pools[self._name]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        # On standard error, so that --json alone is on standard output.
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            line = bar.add_task(f"{self._name}: warm-up", total=None)

            def stands(at: Stand) -> None:
                bar.update(line, completed=at.done, total=at.total, description=f"{self._name}: {at.what}")

            measured = await measure(spec, target, is_quick=self._is_quick, seed=seed, on_progress=stands)
        return profile_of(spec, target, measured, command=self._command(seed))

    def _command(self, seed: int) -> str:
        quick = " --quick" if self._is_quick else ""
        return f"tollgate pools bench {self._name}{quick} --seed {seed}"


def _first_known(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """A failure of the bench as an error of ours; another as it is."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_known(error)
        if isinstance(error, BenchError | LaunchError | Underdetermined):
            return ConfigurationError(str(error))
    return group


def _print(profile: Profile, check: CrossCheck | None) -> None:
    titles = (
        "task",
        "at a time",
        "in",
        "out",
        "tokens/s",
        "TTFT ms",
        "TPOT ms",
        "per step",
    )
    print_table(titles, [_row(point) for point in profile.grid])
    out.print("(times: median/P95)", highlight=False)
    step = profile.step_time
    terms = [f"{step.fixed_s * 1e3:.3g} ms", f"{step.batched_token_s * 1e6:.3g} us x token computed"]
    terms.append(f"{step.kv_token_s * 1e6:.3g} us x token of context")
    if step.sequence_s:
        terms.append(f"{step.sequence_s * 1e6:.3g} us x sequence")
    terms += [
        f"{cost.proposed_token_s * 1e6:.3g} us x token proposed" for cost in profile.draft_costs.values()
    ]
    out.print(f"\nstep = {' + '.join(terms)}", highlight=False, soft_wrap=True)
    if step.error_median_ratio is not None and step.error_max_ratio is not None:
        out.print(
            f"fits its cells to {step.error_median_ratio:.1%} (median), {step.error_max_ratio:.1%} (worst); "
            f"a request takes {step.request_s * 1e3:.3g} ms in front of the engine",
            highlight=False,
            soft_wrap=True,
        )
    for one in profile.acceptance:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in one.by_position)
        out.print(
            f"{one.task}: accepted by position {ratios}; {one.tokens_per_step:.2f} tokens per step",
            highlight=False,
            soft_wrap=True,
        )
    if check is not None:
        out.print(f"\n{check.in_words()}", highlight=False, soft_wrap=True)


def _row(point: GridPoint) -> tuple[str, ...]:
    return (
        point.task,
        str(point.concurrency),
        f"{point.input_tokens:.0f}",
        f"{point.output_tokens:.0f}",
        f"{point.output_tokens_per_s:.0f}",
        _both(point.ttft_s),
        _both(point.tpot_s),
        "" if point.tokens_per_step is None else f"{point.tokens_per_step:.2f}",
    )


def _both(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.p50 * 1e3:.1f}/{spread.p95 * 1e3:.1f}"
