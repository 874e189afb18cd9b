"""What the rules of choosing a replica find in a model of the engines' caches; nothing is timed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.load.replica_choice import ORACLE, RULES, TOLLGATE, TRACE, Request, compare, read_trace, replay


@pytest.fixture(scope="module")
def trace() -> list[Request]:
    return read_trace(TRACE)[:2_000]


def hits(trace: list[Request], name: str, *, gateways: int = 1) -> float:
    return replay(trace, RULES[name], replicas=8, blocks=2_000, gateways=gateways)["hit_ratio"]


def test_affinity_finds_most_of_what_can_be_found_and_twice_what_other_rules_find(
    trace: list[Request],
) -> None:
    found = compare(trace, replicas=8, blocks=2_000)
    ratios = {name: runs["gateways_1"]["hit_ratio"] for name, runs in found.items()}
    assert ratios[TOLLGATE] > 0.85 * ratios[ORACLE]
    for other in ("round robin", "random", "least loaded", "two choices"):
        assert ratios[TOLLGATE] > 2 * ratios[other]


def test_gateways_agree_without_telling_each_other_anything(trace: list[Request]) -> None:
    assert hits(trace, TOLLGATE, gateways=4) > 0.9 * hits(trace, TOLLGATE)
    assert hits(trace, "index of prefixes", gateways=4) < 0.7 * hits(trace, "index of prefixes")


def test_no_rule_beats_one_cache_for_all_when_nothing_is_ever_forgotten(trace: list[Request]) -> None:
    runs = compare(trace[:500], replicas=4, blocks=1_000_000)
    oracle = runs[ORACLE]["gateways_1"]["hit_ratio"]
    for name in RULES:
        assert runs[name]["gateways_1"]["hit_ratio"] <= oracle


def test_a_trace_is_read_in_either_form(tmp_path: Path) -> None:
    published = {"timestamp": 1500, "input_length": 1100, "output_length": 9, "hash_ids": [0, 7, 8]}
    plain, packed = tmp_path / "trace.jsonl", tmp_path / "trace.jsonl.gz"
    plain.write_text(json.dumps(published))
    packed.write_bytes(gzip.compress(json.dumps([1500, 1100, 9, [0, 0, 7, 8]]).encode()))
    assert read_trace(plain) == read_trace(packed) == [Request(1.5, 1100, 9, (0, 7, 8))]
