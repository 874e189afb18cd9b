"""How do the models learn from the generated text within a given time?

Cross-entropy on the answers only, batches of conversations of like length, Muon for the matrices (Jordan
2024, https://kellerjordan.github.io/posts/muon/) and AdamW for embeddings and norms, a learning rate that
follows the time used. The first part of the time mixes in random token sequences that repeat themselves:
copying is what such small models learn last, and this is the shortest way to it. Everything is float32: a
CPU without bf16 units is a hundred times slower in bf16.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from backends.reference.architecture import Llama, Shape
from backends.reference.text import conversations
from backends.reference.tokenizer import SPECIAL_TOKENS, encode

POOL_CONVERSATIONS: Final = 1024
"""Conversations drawn at a time and sorted by length, so that a batch needs little padding."""

WARM_UP_RATIO: Final = 0.02
DECAY_RATIO: Final = 0.4
"""Share of the time at the end in which the learning rate falls to zero."""

CHECKPOINT_EVERY_S: Final = 60.0
IGNORED: Final = -100


@dataclass(frozen=True)
class Plan:
    """How one model is trained."""

    shape: Shape
    minutes: float
    """CPU time divided by threads: minutes of a machine that does nothing else."""
    seed: int
    batch_tokens: int = 2048
    matrix_rate: float = 0.02
    """Muon's learning rate: the size of an orthogonal step."""
    other_rate: float = 0.004
    """AdamW's learning rate for embeddings and norms."""
    start_layers: int = 0
    """Layers to begin with; 0 means all. The others join as identities after `grow_at_ratio` of the time."""
    grow_at_ratio: float = 0.35
    drill_until_ratio: float = 0.15
    """Until then half of the batches are repeated random sequences."""


@dataclass
class Progress:
    """Where a training run stands; what a checkpoint holds beside the weights."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)


class Muon:
    """Momentum whose steps are made orthogonal; one matrix of each shape is handled in one batch.

    torch 2.13 has an own `torch.optim.Muon`, but it works in bfloat16 (see the module's docstring).
    """

    MOMENTUM: Final = 0.95
    COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
    STEPS: Final = 5

    def __init__(self, matrices: list[Tensor]) -> None:
        self._groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self._groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self.momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    def step(self, rate: float) -> None:
        """Move every matrix by one step of the given size."""
        for shape, group in self._groups.items():
            gradients = torch.stack([matrix.grad for matrix in group])
            momentum = self.momenta[shape]
            momentum.lerp_(gradients, 1 - self.MOMENTUM)
            update = self._orthogonal(gradients.lerp(momentum, self.MOMENTUM))
            scale = -rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.data.add_(change, alpha=scale)

    def _orthogonal(self, update: Tensor) -> Tensor:
        is_tall = update.shape[-2] > update.shape[-1]
        x = update.mT if is_tall else update
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        a, b, c = self.COEFFICIENTS
        for _ in range(self.STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if is_tall else x


def pad(rows: list[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """Make ids and labels `(batch, length) int64`; a label is the next token where an answer has it."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    for row, (tokens, is_answer) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        for place, learned in enumerate(is_answer[1:]):
            if learned:
                labels[row, place] = tokens[place + 1]
    return ids, labels


def text_batches(
    tokenizer: Tokenizer, seed: int, batch_tokens: int, *, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training conversations without end, from conversation number `start`."""
    rng = Random(f"batches/{seed}/{start}")
    source = conversations(seed, "train", start=start)
    while True:
        pool = sorted(
            encode(tokenizer, list(islice(source, POOL_CONVERSATIONS))), key=lambda row: len(row[0])
        )
        batches: list[list[tuple[list[int], list[bool]]]] = [[]]
        for row in pool:
            # Sorted by length: this row is the longest of its batch so far.
            if (len(batches[-1]) + 1) * len(row[0]) > batch_tokens:
                batches.append([])
            batches[-1].append(row)
        rng.shuffle(batches)
        yield from (pad(batch) for batch in batches if batch)


def drill_batch(rng: torch.Generator, vocabulary: int, batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Random tokens, then the same tokens again; learned is the second time, `(batch, 2 x span) int64`."""
    span = int(torch.randint(8, 48, (1,), generator=rng))
    rows = max(1, batch_tokens // (2 * span))
    once = torch.randint(len(SPECIAL_TOKENS), vocabulary, (rows, span), generator=rng)
    ids = torch.cat([once, once], dim=1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, span:-1] = ids[:, span + 1 :]
    return ids, labels


def rate_factor(ratio: float) -> float:
    """Share of the full learning rate when this share (0-1) of the time has passed."""
    if ratio < WARM_UP_RATIO:
        return max(0.05, ratio / WARM_UP_RATIO)
    return min(1.0, max(0.0, (1.0 - ratio) / DECAY_RATIO))


def _optimizers(model: Llama, plan: Plan) -> tuple[Muon, Any]:
    matrices = [
        p
        for name, p in model.named_parameters()
        if name.startswith("layers") and not name.endswith("layernorm.weight")
    ]
    taken = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return Muon(matrices), torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0)


def _grown(model: Llama, shape: Shape) -> Llama:
    """Copy a shallower model into one of the full shape: its layers spread out, identities between them."""
    full = Llama(shape)
    full.embed_tokens.load_state_dict(model.embed_tokens.state_dict())
    full.norm.load_state_dict(model.norm.state_dict())
    step = shape.layers / len(model.layers)
    for index, layer in enumerate(model.layers):
        full.layers[int(index * step)].load_state_dict(layer.state_dict())
    return full


def _start_model(plan: Plan) -> Llama:
    torch.manual_seed(plan.seed)
    layers = plan.start_layers or plan.shape.layers
    return Llama(Shape(**{**vars(plan.shape), "layers": layers}))


def _save(path: Path, model: Llama, progress: Progress, *, muon: Muon, adam: Any) -> None:
    state = {
        "model": model.state_dict(),
        "layers": len(model.layers),
        "muon": muon.momenta,
        "adam": adam.state_dict(),
        "progress": vars(progress),
    }
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, plan: Plan) -> tuple[Llama, Muon, Any, Progress]:
    state = torch.load(path, weights_only=True)
    model = Llama(Shape(**{**vars(plan.shape), "layers": state["layers"]}))
    model.load_state_dict(state["model"])
    muon, adam = _optimizers(model, plan)
    muon.momenta = state["muon"]
    adam.load_state_dict(state["adam"])
    return model, muon, adam, Progress(**state["progress"])


def _clock_s() -> float:
    # CPU time by thread, not the clock on the wall: a shared machine must not shorten the training.
    threads: int = torch.get_num_threads()
    return time.process_time() / threads


def train(
    plan: Plan, tokenizer: Tokenizer, *, name: str, checkpoint: Path, resume: bool = False
) -> tuple[Llama, Progress]:
    """Train a model for the plan's minutes and return it with the figures of the run.

    Args:
        plan: shape, time and seed. The order of the text is fixed by the seed; how far it gets depends on the
            machine.
        tokenizer: from `tokenizer.train_tokenizer`.
        name: shown beside the progress bar.
        checkpoint: written once a minute and at the end.
        resume: go on from `checkpoint` when it exists.
    """
    if resume and checkpoint.exists():
        model, muon, adam, progress = _resume(checkpoint, plan)
    else:
        model, progress = _start_model(plan), Progress()
        muon, adam = _optimizers(model, plan)
    budget_s = plan.minutes * 60
    drills = torch.Generator().manual_seed(plan.seed + progress.step)
    # A resumed run goes on in fresh text: conversations are numbered far apart by step.
    texts = text_batches(tokenizer, plan.seed, plan.batch_tokens, start=progress.step * 1000)
    last = saved = _clock_s()
    with tqdm(total=round(budget_s), initial=round(progress.elapsed_s), desc=name, unit="s") as bar:
        while progress.elapsed_s < budget_s:
            ratio = progress.elapsed_s / budget_s
            if len(model.layers) < plan.shape.layers and ratio >= plan.grow_at_ratio:
                model = _grown(model, plan.shape)
                muon, adam = _optimizers(model, plan)
            is_drill = ratio < plan.drill_until_ratio and progress.step % 2 == 0
            ids, labels = (
                drill_batch(drills, plan.shape.vocabulary, plan.batch_tokens) if is_drill else next(texts)
            )
            loss = _step(model, ids, labels, muon=muon, adam=adam, plan=plan, factor=rate_factor(ratio))
            now = _clock_s()
            progress.elapsed_s += now - last
            last = now
            progress.step += 1
            progress.tokens += ids.numel()
            if not is_drill:
                progress.losses = [*progress.losses[-49:], loss]
            bar.n = min(round(progress.elapsed_s), bar.total)
            mean = sum(progress.losses) / max(1, len(progress.losses))
            bar.set_postfix_str(
                f"step {progress.step} loss {mean:.3f}{f' drill {loss:.2f}' if is_drill else ''} "
                f"{progress.tokens / progress.elapsed_s:.0f} tokens/s"
            )
            if now - saved > CHECKPOINT_EVERY_S:
                _save(checkpoint, model, progress, muon=muon, adam=adam)
                saved = now
    if len(model.layers) < plan.shape.layers:
        model = _grown(model, plan.shape)
        muon, adam = _optimizers(model, plan)
    _save(checkpoint, model, progress, muon=muon, adam=adam)
    return model, progress


def _step(
    model: Llama, ids: Tensor, labels: Tensor, *, muon: Muon, adam: Any, plan: Plan, factor: float
) -> float:
    learned = labels != IGNORED
    # Only the learned positions need scores: the vocabulary is as wide as eight hidden states.
    loss = functional.cross_entropy(model.logits(model(ids)[learned]), labels[learned])
    loss.backward()
    for group in adam.param_groups:
        group["lr"] = plan.other_rate * factor
    muon.step(plan.matrix_rate * factor)
    adam.step()
    model.zero_grad(set_to_none=True)
    value: float = loss.item()
    return value
