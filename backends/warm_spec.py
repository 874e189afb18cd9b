"""What may a pool file say about keeping its replicas warm, and about letting them sleep?

Values only, without I/O: `backends.keepwarm` warms up, `backends.launch` puts to sleep and wakes, the gateway
decides who waits for a wake. A vLLM server does not go cold by being idle (0.32: it holds weights, cache and
graphs until it is ended), so nothing here sends requests to keep an engine warm: what is slow is the first
request after loading, and that is what the warm-up is for.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LATENCY_CLASSES = ("priority", "default", "flex")


class _Strict(BaseModel):
    """Unknown keys are errors: a misspelt flag must never be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KeepWarmSpec(_Strict):
    """What a replica has done before it counts as ready."""

    warm_up: bool | None = Field(
        default=None,
        description="real completions at the shapes that matter before a replica is ready; left out: where "
        "Tollgate starts the replicas itself",
    )
    warm_up_s: float = Field(
        default=120.0, gt=0, le=3600, description="at most so long; then it is ready with what it has done"
    )


class WaitSpec(_Strict):
    """How long a request may wait for a replica that wakes, by its latency class, seconds."""

    priority: float = Field(default=2.0, ge=0, description="seconds")
    default: float = Field(default=15.0, ge=0, description="seconds")
    flex: float = Field(default=120.0, ge=0, description="seconds")

    def of(self, latency_class: str) -> float:
        """For a request of this class; an unknown one waits as the default does."""
        return {"priority": self.priority, "flex": self.flex}.get(latency_class, self.default)


class SleepSpec(_Strict):
    """What happens to a replica that nobody asks for anything."""

    after_idle_s: float = Field(gt=0, description="without a request for so long, a replica goes to sleep")
    level: Literal[1, 2] | None = Field(
        default=None,
        description="vLLM's sleep mode. 1: weights to the host's memory; 2: they are read from disk again",
    )
    scale_to_zero: bool = Field(default=False, description="instead of a level: the process is ended")
    awake_min: int = Field(default=0, ge=0, description="so many of the pool's replicas never sleep")
    wake_s: float | None = Field(
        default=None,
        gt=0,
        description="how long a wake is expected to take until one was measured; left out: 5 s for a level, "
        "the time of the first start for scale_to_zero",
    )
    wait_s: WaitSpec = WaitSpec()
    waiting_max: int = Field(default=64, ge=1, le=10_000, description="requests that wait at once")

    @model_validator(mode="after")
    def _is_one_kind_of_sleep(self) -> Self:
        if (self.level is None) != self.scale_to_zero:
            message = "sleep needs either 'level' (1 or 2) or 'scale_to_zero: true'"
            raise ValueError(message)
        return self


def sleep_obstacle(sleep: SleepSpec | None, *, driver: str, gpu: str, replicas: int) -> str | None:
    """Why a pool of this kind cannot sleep in this way; None if it can."""
    if sleep is None:
        return None
    if driver != "process":
        return (
            f"'sleep' is for driver 'process': Tollgate does not stop servers of driver '{driver}', "
            "which someone else runs; leave it out"
        )
    if sleep.level is not None and gpu == "cpu":
        return (
            "sleep.level: vLLM has no sleep mode on a CPU (0.32 refuses to start with it); "
            "use 'scale_to_zero: true'"
        )
    if sleep.awake_min >= replicas:
        return f"sleep.awake_min is {sleep.awake_min} of {replicas} replica(s), so none would ever sleep"
    return None
