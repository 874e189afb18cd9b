"""What does the installed vLLM say of these command lines, and which flags does it know?

A program for the interpreter of vLLM's environment, where this project is not installed: it needs nothing
but vLLM and the standard library. `judge` reads from standard input, by name, the fields of
`backends.check.engine.Line`, and writes one line of JSON per answer, the first about vLLM itself;
`snapshot` writes what `backends/check/vllm_flags.json` holds. vLLM's own prints may stand between the
lines: ours begin with MARK.

Names and places as in vLLM 0.32.0: entrypoints/launchers/cli_args.py, engine/arg_utils.py,
config/speculative.py. A parser that cannot be built (a CUDA build on a machine without a GPU does not infer
its device) is told as `unavailable`: it says nothing about the command lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import typing
from typing import Any

MARK = "TOLLGATE "
ERROR_CHARS_MAX = 800
# Of the draft configuration: filled in by vLLM itself, or there only to raise an error.
NOT_FOR_PEOPLE = (
    "target_model_config",
    "target_parallel_config",
    "draft_model_config",
    "draft_parallel_config",
    "tensor_parallel_size",
)
# Refused on a machine without a GPU although the server it is for has one (config/model.py:656).
NOT_ON_CPU = ("enable_sleep_mode",)


def tell(answer: dict[str, Any]) -> None:
    """One line for the program that asked."""
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def build_parser() -> Any:
    """The parser of `vllm serve`."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def about() -> dict[str, Any]:
    """Which vLLM this is, and on what it would run."""
    import vllm
    from vllm.platforms import current_platform

    return {"version": vllm.__version__, "is_cpu": bool(current_platform.is_cpu())}


def judge_one(parser: Any, known: set[str], line: dict[str, Any]) -> dict[str, Any]:
    """How far a command line gets: A its flags are known, B they fit together, C with the model they do."""
    argv = [str(word) for word in line["argv"]]
    unknown = [
        word
        for word in argv
        if word.startswith("--") and word.partition("=")[0].partition(".")[0] not in known
    ]
    said = io.StringIO()
    level = ""
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            arguments = parser.parse_args(argv)
            if unknown:  # argparse takes an unambiguous beginning, which the next flag may make ambiguous
                return {"level": "", "error": f"abbreviated, or in another spelling: {' '.join(unknown)}"}
            level = "A"
            arguments.model = getattr(arguments, "model_tag", None) or arguments.model
            return further(arguments, line, reached=level)
    except SystemExit:
        return {"level": level, "error": last_sentence(said.getvalue())}
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its answer
        return {"level": level, "error": f"{type(error).__name__}: {str(error)[:ERROR_CHARS_MAX]}"}


def further(arguments: Any, line: dict[str, Any], *, reached: str) -> dict[str, Any]:
    """The levels beyond the flags: the last one that held, and what vLLM says against the next."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.usage.usage_lib import UsageContext

    try:
        validate_parsed_serve_args(arguments)
        if not arguments.tool_parser_plugin and not arguments.reasoning_parser_plugin:
            validate_api_server_args(arguments)
            # This one the server finds only once the engine has been configured.
            known = ["", None, *ReasoningParserManager.list_registered()]
            if arguments.reasoning_parser not in known:
                said = f"invalid reasoning parser: {arguments.reasoning_parser}"
                return {"level": reached, "error": said}
        engine = AsyncEngineArgs.from_cli_args(arguments)
        reached = "B"
        if line["is_for_gpu"] and about()["is_cpu"]:
            for name in NOT_ON_CPU:
                setattr(engine, name, False)
        if line["has_model"]:
            engine.create_engine_config(UsageContext.OPENAI_API_SERVER)
            reached = "C"
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its answer
        return {"level": reached, "error": f"{type(error).__name__}: {str(error)[:ERROR_CHARS_MAX]}"}
    return {"level": reached, "error": None}


def last_sentence(text: str) -> str:
    """What argparse says below its usage."""
    lines = [line for line in text.splitlines() if "error:" in line]
    return (lines[-1].partition("error:")[2] if lines else text).strip()[:ERROR_CHARS_MAX]


def judge() -> None:
    """Answer for each command line on standard input."""
    lines = json.load(sys.stdin)
    try:
        tell({"about": about()})
        parser = build_parser()
    except Exception as error:  # noqa: BLE001 - no parser, no verdict, whatever the reason
        tell({"unavailable": f"{type(error).__name__}: {str(error)[:ERROR_CHARS_MAX]}"})
        return
    known = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    for name, line in lines.items():
        tell({"name": name, **judge_one(parser, known, line)})


def kind_of(action: Any) -> str:
    """What the flag wants: flag, switch (has a --no- form), int, float, size, json or text."""
    if action.nargs == 0:
        return "switch" if any(option.startswith("--no-") for option in action.option_strings) else "flag"
    names: set[str] = set()
    pending = [action.type]
    while pending:  # `optional_type` and its like hold the converter itself in a closure
        each = pending.pop()
        names.add(getattr(each, "__name__", ""))
        pending += [cell.cell_contents for cell in getattr(each, "__closure__", None) or ()]
    for name, kind in (
        ("human_readable_int", "size"),
        ("human_readable_int_or_auto", "size"),
        ("int", "int"),
        ("float", "float"),
        ("loads", "json"),
        ("parse_dataclass", "json"),
    ):
        if name in names:
            return kind
    return "text"


def snapshot() -> None:
    """Write all flags with their kinds and choices, and what a draft configuration may hold."""
    from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    flags: dict[str, Any] = {}
    for action in build_parser()._actions:  # noqa: SLF001
        options = [option for option in action.option_strings if option.startswith("--")]
        positive = [option for option in options if not option.startswith("--no-")] or options
        entry: dict[str, Any] = {"kind": kind_of(action)}
        if action.nargs == "+":
            entry["is_list"] = True
        if action.choices:
            entry["choices"] = [str(choice) for choice in action.choices]
        if getattr(action, "help", None) and "deprecated" in action.help:
            entry["is_deprecated"] = True
        for position, option in enumerate(positive):
            flags[option] = entry if position == 0 else {"same_as": positive[0]}
    fields = dataclasses.fields(typing.cast("Any", SpeculativeConfig))
    document = {
        "version": about()["version"],
        "flags": flags,
        "speculation_keys": [f.name for f in fields if f.init and f.name not in NOT_FOR_PEOPLE],
        "speculation_methods": list(methods_of(SpeculativeMethod)),
        "quantizations": list(QUANTIZATION_METHODS),
        "tool_call_parsers": sorted(ToolParserManager.list_registered()),
        "reasoning_parsers": sorted(ReasoningParserManager.list_registered()),
    }
    tell(document)


def methods_of(annotation: Any) -> list[str]:
    """All words of a Literal, nested ones included."""
    return [
        word
        for each in typing.get_args(annotation)
        for word in ([each] if isinstance(each, str) else methods_of(each))
    ]


if __name__ == "__main__":
    {"judge": judge, "snapshot": snapshot}[sys.argv[1]]()
