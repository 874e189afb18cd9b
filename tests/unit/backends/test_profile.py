"""Are profiles read strictly, and do those in the repository say where their numbers come from?"""

import json
from pathlib import Path

import pytest

from backends.profile import Profile, ProfileError, load_profile, save_profile

BUNDLED = Path(__file__).parents[3] / "backends" / "profiles"
PUBLISHED = ("h100-llama-3.1-8b", "a100-llama-3.1-8b")
MEASURED = ("plain", "speculative")
TOKENS_PER_STEP = {  # reference data of SpecDecode-Bench's simulator, mean at K = 1, 3, 5
    ("code", "eagle3"): (1.68, 2.35, 2.63),
    ("code", "ngram"): (1.51, 2.03, 2.29),
    ("math", "ngram"): (1.11, 1.16, 1.18),
    ("summarization", "eagle3"): (1.67, 2.33, 2.58),
    ("chat", "ngram"): (1.24, 1.40, 1.45),
}


@pytest.fixture
def document() -> dict[str, object]:
    found: dict[str, object] = json.loads((BUNDLED / "h100-llama-3.1-8b.json").read_text())
    return found


def refused(document: dict[str, object], tmp_path: Path) -> str:
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError) as error:
        load_profile(path)
    assert "tollgate pools bench" in str(error.value)
    return str(error.value)


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = load_profile(BUNDLED / "h100-llama-3.1-8b.json")
    save_profile(profile, tmp_path / "deep" / "copy.json")
    assert load_profile(tmp_path / "deep" / "copy.json") == profile
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy.json"]


def test_an_unknown_key_is_named(document: dict[str, object], tmp_path: Path) -> None:
    assert "pool.json: spede: Extra inputs" in refused(document | {"spede": 1}, tmp_path)


def test_another_version_is_refused(document: dict[str, object], tmp_path: Path) -> None:
    assert "version" in refused(document | {"version": 2}, tmp_path)


def test_a_number_in_quotes_is_no_number(document: dict[str, object], tmp_path: Path) -> None:
    assert "step_time.fixed_s" in refused(
        document | {"step_time": {"fixed_s": "0.1", "batched_token_s": 0, "kv_token_s": 0}}, tmp_path
    )


def test_acceptance_that_rises_is_refused(document: dict[str, object], tmp_path: Path) -> None:
    rising = [{"task": "code", "nature": "predictable", "method": "ngram", "by_position": [0.3, 0.4]}]
    assert "never increases" in refused(document | {"acceptance": rising}, tmp_path)


def test_a_measured_profile_says_with_what(document: dict[str, object], tmp_path: Path) -> None:
    origin = {"kind": "measured", "date": "2026-11-28", "hardware": "x", "source": "y"}
    assert "names its command" in refused(document | {"provenance": origin}, tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": "eagle3"}, "num_speculative_tokens"),
        ({"method": "medusa", "num_speculative_tokens": 3}, "says nothing of method 'medusa'"),
    ],
)
def test_speculation_is_described_whole(
    document: dict[str, object], tmp_path: Path, change: dict[str, object], complaint: str
) -> None:
    assert complaint in refused(document | change, tmp_path)


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.json: cannot be read"):
        load_profile(tmp_path / "none.json")
    (tmp_path / "long.json").write_text("x" * 1_000_001)
    with pytest.raises(ProfileError, match="larger than"):
        load_profile(tmp_path / "long.json")
    (tmp_path / "text.json").write_text("tokens: 3")
    with pytest.raises(ProfileError, match="Invalid JSON"):
        load_profile(tmp_path / "text.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants_have_their_sources(name: str) -> None:
    profile = load_profile(BUNDLED / f"{name}.json")
    assert profile.provenance.kind == "published"
    assert profile.grid == ()
    times = profile.step_time.model_dump(exclude={"sources"}, exclude_none=True)
    assert all(profile.step_time.sources[coefficient] for coefficient, value in times.items() if value)
    for cost in profile.draft_costs.values():
        constants = cost.model_dump(exclude={"sources"})
        assert all(cost.sources[coefficient] for coefficient, value in constants.items() if value)
    assert all(one.source for one in profile.acceptance)
    assert {one.method for one in profile.acceptance} == {"eagle3", "ngram", "draft_model"}


@pytest.mark.parametrize(("task", "method"), TOKENS_PER_STEP)
def test_published_acceptance_adds_up_to_what_was_recorded(task: str, method: str) -> None:
    profile = load_profile(BUNDLED / "h100-llama-3.1-8b.json")
    found = profile.acceptance_of(task, method=method)
    assert found is not None
    by_length = [1 + sum(found.by_position[:length]) for length in (1, 3, 5)]
    assert by_length == pytest.approx(TOKENS_PER_STEP[task, method], abs=1e-3)
    assert found.tokens_per_step == pytest.approx(by_length[-1])


def test_an_unknown_task_has_no_acceptance_where_tasks_differ() -> None:
    profile = load_profile(BUNDLED / "h100-llama-3.1-8b.json")
    assert profile.acceptance_of("poetry", method="ngram") is None
    assert profile.acceptance_of("code", method="medusa") is None


@pytest.mark.parametrize("name", MEASURED)
def test_measured_profiles_can_be_measured_again(name: str) -> None:
    path = BUNDLED / f"{name}.json"
    profile = load_profile(path)
    assert path.stat().st_size <= 30_000
    assert path.with_suffix(".svg").stat().st_size <= 150_000
    origin = profile.provenance
    assert origin.kind == "measured"
    assert origin.command is not None
    assert f"tollgate pools bench {name}" in origin.command
    assert origin.commit
    assert origin.weights
    assert profile.grid
    assert profile.step_time.fixed_s > 0
    assert isinstance(profile, Profile)


def test_the_speculative_pool_guesses_json_better_than_stories() -> None:
    profile = load_profile(BUNDLED / "speculative.json")
    json_answers = profile.acceptance_of("extraction", method="draft_model")
    stories = profile.acceptance_of("creative", method="draft_model")
    assert json_answers is not None
    assert stories is not None
    assert json_answers.tokens_per_step > stories.tokens_per_step
