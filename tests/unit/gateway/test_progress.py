import io

from rich.console import Console

from backends.launch.process import ReplicaProgress
from backends.pool import ReplicaState
from gateway.progress import FleetProgress


def progress_of(state: ReplicaState, detail: str, *, elapsed_s: float = 1.0) -> ReplicaProgress:
    return ReplicaProgress(pool="plain", replica="plain-0", state=state, detail=detail, elapsed_s=elapsed_s)


def test_off_a_terminal_each_change_is_one_line_and_repeats_are_not_printed() -> None:
    text = io.StringIO()
    with FleetProgress(Console(file=text, width=40)) as progress:
        progress.replica(progress_of(ReplicaState.STARTING, "loading"))
        progress.replica(progress_of(ReplicaState.STARTING, "still\n  loading", elapsed_s=3))
        progress.replica(
            progress_of(ReplicaState.READY, "generated its first\ntoken, [bold]really", elapsed_s=9)
        )
    assert text.getvalue().splitlines() == [
        "  plain-0: starting (1 s) loading",
        "  plain-0: ready (9 s) generated its first token, [bold]really",
    ]


def test_on_a_terminal_lines_change_until_it_settles() -> None:
    text = io.StringIO()
    with FleetProgress(Console(file=text, force_terminal=True, width=80)) as progress:
        progress.replica(progress_of(ReplicaState.STARTING, "loading\nweights"))
        progress.settle()
        progress.replica(progress_of(ReplicaState.READY, "generated its first token"))
    shown = text.getvalue()
    assert "loading weights" in shown
    assert shown.rstrip().splitlines()[-1].endswith("generated its first token")
