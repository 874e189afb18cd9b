"""Does a policy mean what it says, and is every mistake told with its file, line and key?"""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.files import load_pools
from gateway.errors import ConfigurationError, ModelNotFound
from gateway.inference import CREATIVE_TASKS, Nature, TaskType
from gateway.routing.economics import LatencyTarget
from gateway.routing.policy import CONFIDENCE_MIN, PROVIDERS, SHOWN_MODELS, load_policy, parse_policy
from tests.support.factories import OVERFLOW_TEXT, POLICY_TEXT, POOLS, make_policy

ROOT = Path(__file__).resolve().parents[4]


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_policy(text, source="p.yaml", pools=POOLS)
    return caught.value.caller_detail


# --------------------------------------------------------------------------------------------------- meaning
def test_a_policy_says_which_pools_an_alias_uses() -> None:
    policy = make_policy()
    assert policy.pools_of("auto") == {"plain", "speculative"}
    assert policy.pools_of("fast") == {"speculative"}
    assert policy.descriptions == {"auto": "Either", "fast": "", "careful": ""}


def test_a_policy_orders_pools_by_nature() -> None:
    routes = make_policy().routes
    assert routes == {
        Nature.PREDICTABLE: ("speculative", "plain"),
        Nature.CREATIVE: ("plain", "speculative"),
    }


def test_every_task_has_a_nature() -> None:
    natures = make_policy().natures
    assert {task for task in TaskType if natures[task] is Nature.CREATIVE} == CREATIVE_TASKS
    assert set(natures) == set(TaskType)


def test_tasks_default_to_chat_and_may_be_told_otherwise() -> None:
    assert make_policy().default_task is TaskType.CHAT
    changed = make_policy(POLICY_TEXT + "tasks: {default: qa, natures: {chat: predictable}}\n")
    assert changed.default_task is TaskType.QA
    assert changed.natures[TaskType.CHAT] is Nature.PREDICTABLE
    assert changed.natures[TaskType.CREATIVE] is Nature.CREATIVE


def test_an_unknown_alias_is_shown_some_known_ones_and_not_all() -> None:
    models = "".join(f"  m{number}: {{pools: [plain]}}\n" for number in range(50))
    policy = make_policy(POLICY_TEXT.replace("models:\n", f"models:\n{models}"))
    with pytest.raises(ModelNotFound) as caught:
        policy.pools_of("x" * 1_000)
    assert caught.value.caller_detail.count(",") == SHOWN_MODELS - 1
    assert len(caught.value.caller_detail) < 400


# -------------------------------------------------------------------------------------------------- versions
@pytest.mark.parametrize(
    "same",
    [
        POLICY_TEXT,
        f"# a comment\n\n{POLICY_TEXT}\n# another\n",
        POLICY_TEXT.replace("{pools: [plain]}", "{ pools:  [ plain ] }"),
        POLICY_TEXT.replace("{pools: [plain]}", "\n    pools:\n      - plain"),
        POLICY_TEXT.replace("name: test", 'name: "test"'),
        "max_tokens_default: 256\n" + POLICY_TEXT.replace("max_tokens_default: 256\n", ""),
    ],
    ids=["same", "comments", "blanks", "block style", "quotes", "order of keys"],
)
def test_the_same_content_is_the_same_version(same: str) -> None:
    assert make_policy(same).version == make_policy().version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("256", "257"),
        ("[speculative, plain]\n  creative", "[plain, speculative]\n  creative"),
        ("description: Either", "description: Any"),
        ("  careful: {pools: [plain]}\n", ""),
        ("routes:", "tasks: {natures: {chat: predictable}}\nroutes:"),
    ],
)
def test_another_content_is_another_version(old: str, new: str) -> None:
    assert old in POLICY_TEXT
    assert make_policy(POLICY_TEXT.replace(old, new)).version != make_policy().version


def test_a_version_carries_the_policys_name() -> None:
    name, _, digest = make_policy().version.partition("@")
    assert (name, len(digest)) == ("test", 12)


# -------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: test", "nmae: test", "p.yaml:1: nmae: unknown key; did you mean 'name'?"),
        ("routes:", "rotues:", "p.yaml:6: rotues: unknown key; did you mean 'routes'?"),
        ("  creative:", "  creativ:", "p.yaml:8: routes.creativ: unknown key; did you mean 'creative'?"),
        ("{pools: [plain]}", "{pool: [plain]}", "models.careful.pool: unknown key; did you mean 'pools'?"),
        ("name: test\n", "", "p.yaml:1: missing key 'name'"),
        ("  creative: [plain, speculative]\n", "", "p.yaml:6: routes: missing key 'creative'"),
        ("max_tokens_default: 256\n", "", "missing key 'max_tokens_default'"),
        ("256", "0", "p.yaml:9: max_tokens_default: expected greater than 0, got 0"),
        ("256", "many", "p.yaml:9: max_tokens_default: expected a valid integer"),
        ("name: test", 'name: ""', "p.yaml:1: name: "),
        ("name: test", "name: " + "n" * 65, "p.yaml:1: name: "),
        ("{pools: [plain]}", "{pools: []}", "p.yaml:5: models.careful.pools: "),
        ("  careful: {pools: [plain]}", f"  {'a' * 129}: {{pools: [plain]}}", "p.yaml:5: models."),
        ("routes:", "tasks: {default: chatt}\nroutes:", "p.yaml:6: tasks.default: expected 'extraction'"),
        ("routes:", "tasks: {natures: {chat: dull}}\nroutes:", "p.yaml:6: tasks.natures.chat: expected "),
        ("routes:", "tasks: {natures: {chta: creative}}\nroutes:", "p.yaml:6: tasks.natures.chta: "),
        ("name: test", "name: test\nname: other", "p.yaml:2: duplicate key 'name'"),
        ("name: test", "name: [", "p.yaml:3: not valid YAML"),
        ("name: test", "name: &a test", "p.yaml:1: anchors and aliases are not supported"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(old: str, new: str, message: str) -> None:
    assert old in POLICY_TEXT
    assert message in refusal(POLICY_TEXT.replace(old, new))


@pytest.mark.parametrize(("nature", "line"), [("predictable", 7), ("creative", 8)])
def test_a_pool_that_does_not_exist_is_told_with_the_ones_that_do(nature: str, line: int) -> None:
    text = POLICY_TEXT.replace(f"  {nature}: [", f"  {nature}: [gpu, ")
    assert refusal(text) == (
        f"p.yaml:{line}: routes.{nature}: there is no pool 'gpu'; known pools: plain, speculative"
    )


def test_without_any_pool_the_message_says_so() -> None:
    with pytest.raises(ConfigurationError, match="known pools: none"):
        parse_policy(POLICY_TEXT, source="p.yaml", pools=())


@pytest.mark.parametrize("nature", ["predictable", "creative"])
def test_a_pool_of_a_model_needs_a_place_in_every_route(nature: str) -> None:
    route = {"predictable": "[speculative, plain]", "creative": "[plain, speculative]"}[nature]
    found = refusal(POLICY_TEXT.replace(f"{nature}: {route}", f"{nature}: [speculative]"))
    assert (
        f"model 'auto' may use pool 'plain', but routes.{nature} does not list it:"
        " add it there, last if it is only a fallback"
    ) in found
    line = next(number for number, each in enumerate(POLICY_TEXT.splitlines(), 1) if f"  {nature}: [" in each)
    assert found.startswith(f"p.yaml:{line}: routes.{nature}: ")


def test_a_pool_that_a_route_names_wrongly_is_not_told_to_be_missing_alone() -> None:
    found = refusal(POLICY_TEXT.replace("creative: [plain, speculative]", "creative: [plain, speculativ]"))
    assert found.endswith(
        "routes.creative does not list it: is it 'speculativ' there? Else add it there, last if it is only a"
        " fallback"
    )


def test_every_mistake_is_told_at_once() -> None:
    found = refusal(POLICY_TEXT.replace("name:", "nmae:").replace("256", "-1"))
    assert len(found.splitlines()) == 3


@pytest.mark.parametrize("text", ["", "# nothing\n", "just words", "- a\n- b\n"])
def test_what_is_no_policy_at_all_is_refused(text: str) -> None:
    assert refusal(text).startswith("p.yaml:1: ")


# ----------------------------------------------------------------------------------------------------- files
def test_the_default_policy_fits_the_bundled_pools() -> None:
    pools = load_pools(ROOT / "backends/pools")
    policy = load_policy(ROOT / "policies/default.yaml", pools=pools)
    assert policy.pools_of("auto") == set(pools)
    assert policy.routes[Nature.PREDICTABLE][0] == "speculative"
    assert policy.routes[Nature.CREATIVE][0] == "plain"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"p\.yaml: the policy cannot be read: No such file"):
        load_policy(tmp_path / "p.yaml", pools=POOLS)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(POLICY_TEXT.replace("Either", "für alle").encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"p\.yaml: the policy cannot be read: not UTF-8"):
        load_policy(path, pools=POOLS)


# ------------------------------------------------------------------------------------------- external targets
def test_an_external_target_is_at_its_providers_address_or_at_its_own() -> None:
    policy = make_policy(OVERFLOW_TEXT)
    assert policy.overflow == {"auto": ("outside", "compatible"), "fast": ("outside",)}
    outside, compatible = policy.external["outside"], policy.external["compatible"]
    assert (outside.model, outside.api_base) == ("gpt-4o-mini", PROVIDERS["openai"])
    assert (outside.key_name, outside.max_model_len) == ("openai", 128_000)
    assert (compatible.model, compatible.api_base) == ("org/m", "https://models.example.com/v1")
    assert compatible.key_name is None
    assert compatible.rates is not None
    assert str(compatible.rates.reasoning) == "1.1"
    assert (outside.provider, compatible.provider) == ("openai", None)


def test_a_target_that_no_alias_uses_is_checked_and_left_alone() -> None:
    unused = OVERFLOW_TEXT.replace(", compatible]", "]")
    assert set(make_policy(unused).external) == {"outside"}
    assert "compatible.rates: missing key 'output'" in refusal(unused.replace(', output: "0.9"', ""))


def test_a_key_that_is_not_configured_is_told_with_what_to_set() -> None:
    policy = make_policy(OVERFLOW_TEXT)
    assert policy.missing_keys({"openai"}) == []
    assert policy.missing_keys(()) == [
        "external.outside.api_key: there is no key 'openai': set TOLLGATE_EXTERNAL_KEYS__OPENAI"
    ]
    assert make_policy().missing_keys(()) == []


def test_policies_from_before_there_was_overflow_keep_their_versions() -> None:
    # Written down when there was none: stored versions must be found again.
    assert make_policy().version == "test@fcc4818649d8"
    unused = POLICY_TEXT.replace("routes:", "external: {}\nroutes:").replace(
        "[plain]}", "[plain], overflow: []}"
    )
    assert make_policy(unused).version == "test@fcc4818649d8"


def test_policies_from_before_there_was_a_price_book_keep_their_versions() -> None:
    # Written down when every external target had rates, none of them per request.
    assert make_policy(OVERFLOW_TEXT).version == "test@b1e51bf775bb"
    spelled_out = OVERFLOW_TEXT.replace('"0.60"}', '"0.60", per_request: "0.00"}')
    assert make_policy(f"{spelled_out}allow_unpriced: false\n").version == "test@b1e51bf775bb"


def test_a_target_may_be_left_to_the_price_book_and_a_policy_may_allow_unpriced_ones() -> None:
    rates = '    rates: {input: "0.15", cached_input: "0.075", output: "0.60"}\n'
    policy = make_policy(OVERFLOW_TEXT.replace(rates, ""))
    assert policy.external["outside"].rates is None
    assert not policy.allow_unpriced
    assert make_policy(f"{POLICY_TEXT}allow_unpriced: true\n").allow_unpriced


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("overflow: [outside, compatible]", "overflow: [compatible, outside]"),
        ('output: "0.60"', 'output: "0.60", per_request: "0.01"'),
        ("max_tokens_default", "allow_unpriced: true\nmax_tokens_default"),
        ("overflow: [outside, compatible]", "overflow: [outside]"),
        ("gpt-4o-mini", "gpt-4o"),
        ("models.example.com", "models.example.org"),
        ("api_key: OpenAI", "api_key: other"),
        ("128000", "64000"),
        ('input: "0.15"', 'input: "0.16"'),
    ],
)
def test_another_way_out_is_another_version(old: str, new: str) -> None:
    assert old in OVERFLOW_TEXT
    assert make_policy(OVERFLOW_TEXT.replace(old, new, 1)).version != make_policy(OVERFLOW_TEXT).version


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "overflow: [outside]",
            "overflow: [outsdie]",
            "p.yaml:4: models.fast.overflow: there is no external",
        ),
        ("overflow: [outside]", "overflow: [plain]", "known external targets: compatible, outside"),
        ("  outside:\n", "  plain:\n", "p.yaml:7: external.plain: a pool has this name"),
        ("  outside:\n", "  out/side:\n", "p.yaml:7: external.out/side: "),
        ("  outside:\n", "  " + "o" * 57 + ":\n", "p.yaml:7: external.ooo"),
        (
            "    api_key:",
            "    apikey:",
            "p.yaml:9: external.outside.apikey: unknown key; did you mean 'api_key'?",
        ),
        ("    max_model_len: 128000\n", "", "p.yaml:7: external.outside: missing key 'max_model_len'"),
        ("128000", "0", "p.yaml:10: external.outside.max_model_len: expected greater than 0, got 0"),
        ('output: "0.60"', 'output: "0"', "input and output rates must be above 0"),
        ("openai/gpt-4o-mini", "gpt-4o-mini", "p.yaml:7: external.outside: without api_base the model is"),
        ("openai/gpt-4o-mini", "acme/x", "known providers: openai"),
        ("https://models", "ftp://models", "p.yaml:12: external.compatible: api_base must be a URL such as"),
        ("https://models", "https://me:secret@models", "api_base must be a URL such as"),
        ("/v1/", "/v1?key=1", "api_base must be a URL such as"),
        (".com/v1/", ".com:port/v1", "api_base must be a URL such as"),
    ],
)
def test_a_mistake_about_the_outside_is_told_with_its_line_and_key(old: str, new: str, message: str) -> None:
    assert old in OVERFLOW_TEXT
    assert message in refusal(OVERFLOW_TEXT.replace(old, new, 1))


def test_a_key_that_was_pasted_is_refused_and_not_shown() -> None:
    found = refusal(OVERFLOW_TEXT.replace("api_key: OpenAI", "api_key: sk-proj-abc123"))
    assert "api_key is the name of a key" in found
    assert "TOLLGATE_EXTERNAL_KEYS__OPENAI" in found
    assert "abc123" not in found


# ----------------------------------------------------------------------------------------------- economics
def test_policies_from_before_there_were_economics_keep_their_versions_and_their_meaning() -> None:
    policy = make_policy()
    assert policy.version == "test@fcc4818649d8"
    assert make_policy(POLICY_TEXT + "economics: {enabled: false}\n").version == policy.version
    assert not policy.economics.is_enabled
    assert policy.adapters == {}


def test_what_measurements_may_change_is_part_of_the_version() -> None:
    on = make_policy(POLICY_TEXT + "economics: {enabled: true, exploration: 0.05}\n")
    assert on.version != make_policy().version
    assert (on.economics.is_enabled, on.economics.exploration, on.economics.switch_margin) == (
        True,
        0.05,
        0.15,
    )


def test_latency_targets_are_by_class_and_in_seconds_inside() -> None:
    text = POLICY_TEXT + "economics: {enabled: true, latency_targets: {priority: {ttft_p95_ms: 250}}}\n"
    assert make_policy(text).economics.targets == {"priority": LatencyTarget(ttft_s=0.25)}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{exploration: 0.5}", "economics.exploration"),
        ("{switch_margin: 0}", "economics.switch_margin"),
        ("{margin: 0.2}", "switch_margin"),
        ("{latency_targets: {auto: {ttft_p95_ms: 1}}}", "economics.latency_targets"),
    ],
)
def test_a_mistake_in_the_economics_is_told(section: str, said: str) -> None:
    told = refusal(POLICY_TEXT + f"economics: {section}\n")
    assert said in told
    assert told.startswith("p.yaml:10")


def test_the_shipped_policy_follows_measurements_and_sends_nothing_elsewhere_to_make_them() -> None:
    policy = load_policy(ROOT / "policies" / "default.yaml", pools=load_pools(ROOT / "backends" / "pools"))
    assert policy.economics.is_enabled
    assert policy.economics.exploration == 0


def test_policies_from_before_there_was_a_classifier_keep_their_versions() -> None:
    usual = make_policy(
        f"{POLICY_TEXT}tasks: {{classifier: {{enabled: true, confidence_min: {CONFIDENCE_MIN}}}}}\n"
    )
    assert usual.version == make_policy().version == "test@fcc4818649d8"
    assert usual.classifier_confidence_min == CONFIDENCE_MIN


def test_a_policy_may_turn_the_classifier_off_or_believe_it_less() -> None:
    off = make_policy(f"{POLICY_TEXT}tasks: {{classifier: {{enabled: false}}}}\n")
    assert off.classifier_confidence_min is None
    strict = make_policy(f"{POLICY_TEXT}tasks: {{classifier: {{confidence_min: 0.9}}}}\n")
    assert strict.classifier_confidence_min == 0.9
    assert len({off.version, strict.version, make_policy().version}) == 3
