"""A short hour in three worlds: the truth is where a backtest says that it is; `make proof` has sixty."""

from __future__ import annotations

from tests.load.backtest_truth import as_markdown, one_seed, table_of


def test_the_truth_is_in_most_intervals_and_they_are_not_wide() -> None:
    seen = []
    for seed in (1, 4):
        _, of_seed, refused = one_seed(seed, seconds=900.0, draws=4)
        assert refused == []
        seen += of_seed
    rows = table_of(seen)
    assert sum(each.is_covered for each in seen) >= 0.85 * len(seen)
    assert rows["cost"]["covered"] == 1.0
    assert rows["cost"]["width_median"] < 0.3
    assert rows["cost"]["error_median"] < 0.05
    figures = {"figures": rows, "by_the_record_alone": rows, "by_pair": {}, "refused": {"x": 1}}
    text = as_markdown({"seeds": 2, "seconds": 900.0, **figures})
    assert "| cost | 2 | 100% |" in text
