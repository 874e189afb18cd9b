"""How does text become the 2,048 token ids that target and draft share?

Byte-level BPE (library `tokenizers` 0.23), trained on the recipe's own text. The split into words is made
for copying: a capitalised word, a digit or an e-mail address never takes the space or quote before it into
its token, so that a value has the same ids in a sentence and in a JSON string.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.reference.text import Conversation, Message, conversations

VOCABULARY_SIZE: Final = 2048
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
ROLE_TOKENS: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS: Final = (PAD, END, *ROLE_TOKENS.values())
TRAINING_CONVERSATIONS: Final = 40_000

# In order: the lone space before an e-mail address; a single digit; a lower-case word with its space; a
# capitalised word without; sentence marks with the space before a value; JSON's punctuation, whole.
_WORDS: Final = (
    r""" (?=[a-z.]+@)|\d| ?[a-z]+|[A-Z]+[a-z]*|[.,:;!?]+ (?=[A-Z\d$])|[^\sA-Za-z\d$]+(?: ["])?|\s|."""
)

CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{%- if message['role'] in ['system', 'developer'] -%}<|system|>"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>"
    "{%- else -%}<|user|>{%- endif -%}"
    "{{- message['content'] | trim -}}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """Train the tokenizer on the first conversations of the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = (
        message.content
        for item in islice(conversations(seed, "train"), TRAINING_CONVERSATIONS)
        for message in item.messages
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens, wanted {VOCABULARY_SIZE}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer.json`, and `tokenizer_config.json` with the chat template, for transformers."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLE_TOKENS.values()),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read a tokenizer that `save_tokenizer` wrote."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one of our special tokens.

    Raises:
        ValueError: the tokenizer is not one of ours.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return found


def encode(tokenizer: Tokenizer, items: Sequence[Conversation]) -> Iterator[tuple[list[int], list[bool]]]:
    """Encode conversations as the chat template lays them out.

    Yields:
        Token ids, and for each whether it belongs to an answer (its closing `<|end|>` included), which is
        what the model is trained on.
    """
    end = special_id(tokenizer, END)
    roles = {role: special_id(tokenizer, token) for role, token in ROLE_TOKENS.items()}
    for item in items:
        ids: list[int] = []
        is_answer: list[bool] = []
        for message, encoded in zip(item.messages, _contents(tokenizer, item.messages), strict=True):
            ids += [roles[message.role], *encoded, end]
            is_answer += [False] + [message.role == "assistant"] * (len(encoded) + 1)
        yield ids, is_answer


def _contents(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch([message.content for message in messages])]
