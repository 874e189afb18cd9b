"""How are the three bundled models made, from nothing to files that vLLM serves?

`python -m backends.reference.recipe --minutes 12 --seed 1 --out .tollgate/reference`: tokenizer,
target (four fifths of the time), its AWQ form, draft (one fifth). `--minutes 0` writes untrained
models of the right shapes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from backends.reference.architecture import DRAFT, TARGET, Llama, Shape, config_of, state_of
from backends.reference.quantize import QUANTIZATION_CONFIG, quantize_state
from backends.reference.tokenizer import END, PAD, load_tokenizer, save_tokenizer, special_id, train_tokenizer
from backends.reference.train import Plan, train

TARGET_SHARE = 0.8
"""Share of the minutes that goes to the target; the draft gets the rest."""


def write_model(
    directory: Path, tokenizer: Tokenizer, shape: Shape, *, state: dict[str, Any], extra: dict[str, Any]
) -> None:
    """Write weights, configuration and tokenizer as vLLM expects them in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    end_id, pad_id = special_id(tokenizer, END), special_id(tokenizer, PAD)
    tensors = {name: value.contiguous() for name, value in state.items()}
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})
    config = config_of(shape, end_id=end_id, pad_id=pad_id) | extra
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": end_id, "pad_token_id": pad_id}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, directory)


def _sixteen_bit(model: Llama) -> dict[str, Any]:
    return {name: value.to(torch.bfloat16) for name, value in state_of(model).items()}


def make(*, minutes: float, seed: int, out: Path, resume: bool, threads: int) -> dict[str, Any]:
    """Run the whole recipe and return the figures of the training runs.

    Args:
        minutes: training time of both models together, as CPU time by thread; the tokenizer and
            the files take half a minute more.
        seed: fixes the text and the first weights.
        out: gets `target`, `target-awq`, `draft`, and `work` with the checkpoints (delete it when done).
        resume: go on from the checkpoints in `work`.
        threads: CPU threads for torch.
    """
    torch.set_num_threads(threads)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    if resume and (work / "tokenizer.json").exists():
        tokenizer = load_tokenizer(work)
    else:
        tokenizer = train_tokenizer(seed)
        save_tokenizer(tokenizer, work)
    plans = {
        "target": Plan(TARGET, minutes * TARGET_SHARE, seed, start_layers=3),
        "draft": Plan(DRAFT, minutes * (1 - TARGET_SHARE), seed + 1),
    }
    figures: dict[str, Any] = {"seed": seed, "minutes": minutes, "threads": threads}
    for name, plan in plans.items():
        model, progress = train(plan, tokenizer, name=name, checkpoint=work / f"{name}.pt", resume=resume)
        state = _sixteen_bit(model)
        write_model(out / name, tokenizer, plan.shape, state=state, extra={})
        if name == "target":
            quantized = quantize_state(state_of(model))
            halves = {
                key: value.to(torch.bfloat16) if value.dtype == torch.float32 else value
                for key, value in quantized.items()
            }
            write_model(
                out / "target-awq",
                tokenizer,
                plan.shape,
                state=halves,
                extra={"quantization_config": QUANTIZATION_CONFIG},
            )
        figures[name] = {
            "parameters": model.parameter_count(),
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.elapsed_s, 1),
            "loss": round(sum(progress.losses) / len(progress.losses), 4) if progress.losses else None,
        }
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def main() -> None:
    """Parse the command line and run the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m backends.reference.recipe",
        description="Make the bundled reference models: tokenizer, target, AWQ target, draft.",
        epilog="Example: python -m backends.reference.recipe --minutes 12 --out .tollgate/reference",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        required=True,
        help="training time in all on an otherwise idle machine; 0 writes untrained models",
    )
    parser.add_argument("--seed", type=int, default=1, help="fixes text and first weights (default 1)")
    parser.add_argument("--out", type=Path, required=True, help="directory for target, target-awq and draft")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in OUT/work")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch (default 2)")
    options = parser.parse_args()
    figures = make(
        minutes=options.minutes,
        seed=options.seed,
        out=options.out,
        resume=options.resume,
        threads=options.threads,
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
