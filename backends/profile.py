"""What is known of a pool's speed: how long does a step take, and what was measured, by whom, on what?

A profile is a JSON file, versioned and strict, that `tollgate pools bench` writes and that the simulator,
the router and the planner read. Times in it are seconds, counts are tokens; a ratio is between 0 and 1.

The step-time model is additive, in the form that SpecDecode-Bench's simulator fits to vLLM (arXiv
2601.11580): one engine step takes

    fixed_s + batched_token_s * tokens computed in the step
            + kv_token_s * tokens of context that it attends to + sequence_s * sequences in the step

and a step that drafts adds what its `DraftCost` says. It errs around the ridge between memory-bound and
compute-bound steps, where the truth is nearer to a maximum than to a sum.

A profile says of itself whether its numbers were measured with this project's bench, taken from a publication
or computed from others: `provenance.kind`, and `sources` for each constant that is not measured.
"""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

VERSION: Final = 1
BYTES_MAX: Final = 1_000_000
Kind = Literal["measured", "published", "modelled"]
Nature = Literal["predictable", "creative"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ProfileError(ValueError):
    """The file cannot be used as a profile; the text says which file, what is wrong and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Provenance(_Strict):
    """Where the numbers come from."""

    kind: Kind = Field(description="measured by `tollgate pools bench`, published by others, or computed")
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="of the measurement or of the reading")
    hardware: str = Field(min_length=1, description="accelerator or processor, and how much of it")
    source: str = Field(min_length=1, description="what measured it, or the publication")
    command: str | None = Field(default=None, description="what was typed; measured profiles have it")
    vllm_version: str | None = None
    commit: str | None = Field(default=None, description="of this project; `+` if files were changed since")
    weights: dict[str, str] = Field(default_factory=dict, description="SHA-256 of the weights: target, draft")
    conditions: dict[str, str | int | float] = Field(
        default_factory=dict, description="threads, foreign load and whatever else bends the figures"
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _measured_can_be_measured_again(self) -> Self:
        if self.kind == "measured" and not (self.command and self.vllm_version):
            raise ValueError("a measured profile names its command and the version of vLLM")
        return self


class StepTime(_Strict):
    """Seconds of one engine step, by what is in it; see the module for the formula."""

    fixed_s: Seconds = Field(description="of every step: weights read once, kernels launched, scheduling")
    batched_token_s: Seconds = Field(description="per token that the target computes in the step")
    kv_token_s: Seconds = Field(description="per token of context that the step's sequences attend to")
    sequence_s: Seconds = Field(default=0.0, description="per sequence in the step: sampling, answering")
    request_s: Seconds = Field(
        default=0.0,
        description="per request, in front of the engine: HTTP, tokenization; one after the other",
    )
    error_median_ratio: float | None = Field(
        default=None, ge=0, description="median of |model - measured| / measured over the fitted cells"
    )
    error_max_ratio: float | None = Field(default=None, ge=0, description="the greatest")
    sources: dict[str, str] = Field(default_factory=dict, description="coefficient → where it is from")


class DraftCost(_Strict):
    """What speculation adds to a step in which tokens are proposed, in seconds."""

    fixed_s: Seconds = Field(default=0.0, description="per step; 0 where the fit cannot tell it from fixed_s")
    proposed_token_s: Seconds = Field(default=0.0, description="per token proposed in the step")
    kv_token_s: Seconds = Field(default=0.0, description="per token of context that the draft attends to")
    verify_ratio: Ratio = Field(default=0.0, description="of the target's step time, for n-gram lookup")
    sources: dict[str, str] = Field(default_factory=dict)


def _not_increasing(ratios: tuple[float, ...]) -> tuple[float, ...]:
    if any(later > earlier + 1e-9 for earlier, later in pairwise(ratios)):
        raise ValueError("acceptance by position never increases: position i counts only after i-1")
    return ratios


class Acceptance(_Strict):
    """Which share of drafts reaches each position: entry 0 is the first proposed token."""

    task: str = Field(min_length=1, description="as in `x-tollgate-task`")
    nature: Nature
    method: str = Field(min_length=1, description="as in a pool's speculation.method")
    by_position: Annotated[tuple[Ratio, ...], Field(min_length=1), AfterValidator(_not_increasing)]
    temperature: float | None = Field(default=None, ge=0, description="None: not known")
    drafts: int | None = Field(default=None, ge=0, description="that were counted; None: not known")
    source: str = ""

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a step yields, the bonus token included (vLLM's mean acceptance length)."""
        return 1.0 + sum(self.by_position)


class Spread(_Strict):
    """Median and 95th percentile, seconds."""

    p50: Seconds
    p95: Seconds


class GridPoint(_Strict):
    """One measured cell: so many requests at a time, of this kind, for as long as it took."""

    task: str
    temperature: float = Field(ge=0)
    concurrency: int = Field(gt=0)
    input_tokens: float = Field(gt=0, description="mean")
    output_tokens: float = Field(gt=0, description="mean")
    is_output_fixed: bool = Field(description="the end token was ignored, so that lengths are equal")
    requests: int = Field(gt=0)
    duration_s: Seconds
    output_tokens_per_s: float = Field(ge=0)
    requests_per_s: float = Field(ge=0)
    ttft_s: Spread
    tpot_s: Spread | None = Field(
        default=None, description="None: one token each, so there is no time between tokens"
    )
    tokens_per_step: float | None = Field(
        default=None, ge=1, description="mean acceptance length; None: no speculation"
    )
    cached_input_ratio: Ratio = Field(default=0.0, description="of the input, found in the prefix cache")
    engine_steps: int | None = Field(default=None, ge=0)
    step_s: Seconds | None = Field(default=None, description="of a step while decoding, median of requests")
    engine_waited_ratio: Ratio | None = Field(
        default=None,
        description="of the duration, in which the engine was ready and had no core; in the times above, "
        "taken out of the step-time model",
    )
    foreign_cpu_ratio: Ratio | None = Field(
        default=None, description="of the machine's time, used by neither vLLM nor the load generator"
    )


class Engine(_Strict):
    """The limits under which the engine schedules; what the simulator needs besides times."""

    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    kv_cache_tokens: int | None = Field(default=None, gt=0, description="None: not known")
    block_size: int = Field(default=16, gt=0, description="tokens of a cache block")
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True


class Profile(_Strict):
    """One pool on one kind of hardware."""

    version: Literal[1] = 1
    pool: str = Field(min_length=1)
    model: str = Field(min_length=1, description="the weights' name")
    method: str | None = Field(default=None, description="speculation of the pool; None: it does not")
    num_speculative_tokens: int = Field(default=0, ge=0)
    provenance: Provenance
    engine: Engine
    step_time: StepTime
    draft_costs: dict[str, DraftCost] = Field(default_factory=dict, description="by speculation method")
    acceptance: tuple[Acceptance, ...] = ()
    grid: tuple[GridPoint, ...] = ()

    @model_validator(mode="after")
    def _speculation_is_whole(self) -> Self:
        if self.method is None:
            return self
        if self.num_speculative_tokens < 1:
            raise ValueError("a pool that speculates has num_speculative_tokens of 1 or more")
        if self.method not in self.draft_costs:
            raise ValueError(f"draft_costs says nothing of method '{self.method}'")
        return self

    def acceptance_of(self, task: str, *, method: str) -> Acceptance | None:
        """What is known of this task and method; of another task of the method only if there is no other."""
        known = [one for one in self.acceptance if one.method == method]
        exact = [one for one in known if one.task == task]
        if exact:
            return exact[0]
        return known[0] if len(known) == 1 else None


def load_profile(path: Path) -> Profile:
    """Read a profile, strictly.

    Raises:
        ProfileError: no such file, not JSON, another version, or a field that is unknown, missing or wrong.
    """
    again = "measure it with `tollgate pools bench POOL`, or name another file"
    try:
        if path.stat().st_size > BYTES_MAX:
            raise ProfileError(f"{path}: larger than {BYTES_MAX} bytes, so not a profile; {again}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}; {again}") from error
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(str(part) for part in one['loc']) or 'the file'}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise ProfileError("\n".join([*problems, f"{path}: {again}"])) from error


def save_profile(profile: Profile, path: Path) -> None:
    """Write it in one step: a reader sees the old file or the new one, never a part."""
    write_whole(path, profile.model_dump_json(indent=1, exclude_none=True) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, and leave nothing beside it whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
