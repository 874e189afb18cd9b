"""How does a test describe pools that it runs itself?

Writes one file per pool for servers that somebody else started (driver `external`): the speculating pool and
the plain one of the default policy, with rates that differ in every meter, so that a sum computed at the
wrong price is never right by chance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SERVED_NAME: Final = "tollgate-reference"
MAX_MODEL_LEN: Final = 1024
ROOT: Final = Path(__file__).resolve().parents[2]
DEFAULT_POLICY: Final = ROOT / "policies" / "default.yaml"

_ADAPTS: Final = "economics:\n  enabled: true\n"

RATES: Final[dict[str, dict[str, str]]] = {
    "speculative": {"input": "0.10", "cached_input": "0.01", "output": "0.40"},
    "plain": {"input": "0.15", "cached_input": "0.03", "output": "0.60"},
}
"""USD per million tokens, as the pool files say it."""

RATES_NANOS: Final[dict[str, tuple[int, int, int]]] = {
    "speculative": (100_000_000, 10_000_000, 400_000_000),
    "plain": (150_000_000, 30_000_000, 600_000_000),
}
"""The same as nano-USD per million tokens: input, cached input, output. Written out, not computed."""

_SPECULATION: Final = """\
speculation:
  method: ngram
  num_speculative_tokens: 3
  prompt_lookup_max: 4
"""


def policy_in_order() -> str:
    """The shipped policy, but its order holds whatever is measured: for tests of what follows from that order.

    Raises:
        ValueError: the shipped policy does not say that measurements count.
    """
    text = DEFAULT_POLICY.read_text(encoding="utf-8")
    if _ADAPTS not in text:
        raise ValueError(f"{DEFAULT_POLICY} has no {_ADAPTS!r}")
    return text.replace(_ADAPTS, _ADAPTS.replace("true", "false"))


def pool_text(name: str, urls: Sequence[str], *, served_name: str = SERVED_NAME) -> str:
    """The YAML of one external pool."""
    rates = "".join(f"  {meter}: {rate}\n" for meter, rate in RATES[name].items())
    listed = "".join(f"  - {url}\n" for url in urls)
    return (
        f"name: {name}\n"
        "driver: external\n"
        f"model:\n  served_name: {served_name}\n  max_model_len: {MAX_MODEL_LEN}\n"
        f"{_SPECULATION if name == 'speculative' else ''}"
        "batching:\n  max_num_seqs: 32\n  max_num_batched_tokens: 2048\n"
        'hardware:\n  gpu: cpu\n  usd_per_hour: "0.12"\n'
        f"rates:\n{rates}"
        f"urls:\n{listed}"
    )


def write_pools(folder: Path, urls: Mapping[str, Sequence[str]]) -> Path:
    """Pool files for these servers: pool → base URLs. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, addresses in urls.items():
        (folder / f"{name}.yaml").write_text(pool_text(name, addresses))
    return folder


def charge_nanos(pool: str, *, fresh: int, cached: int, output: int) -> int:
    """What so many tokens cost on a pool, rounded half up once, by the rates above."""
    rates = RATES_NANOS[pool]
    total = fresh * rates[0] + cached * rates[1] + output * rates[2]
    return (2 * total + 1_000_000) // 2_000_000


def usd(nanos: int) -> str:
    """Nano-USD as headers and reports write them."""
    return f"{nanos // 1_000_000_000}.{nanos % 1_000_000_000:09d}"
