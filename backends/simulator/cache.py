"""How much of the key/value cache is held, and what of a prompt is still in it?

Counts tokens, not blocks: a sequence takes whole blocks when it is admitted and grows by tokens from then on,
which is right on average and lets many steps be skipped at once. Blocks that nobody holds stay until others
need the room, the one that was released longest ago first (vLLM 0.32, `v1/core/block_pool.py`: freed blocks
queue up at the end, those of one sequence from its last to its first).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf


class KvCache:
    """One replica's cache."""

    def __init__(self, capacity_tokens: int, *, block_size: int, prefix_block_tokens: int) -> None:
        """An empty cache.

        Args:
            capacity_tokens: all of it.
            block_size: tokens of a block; sequences take whole ones.
            prefix_block_tokens: tokens of a named block; 0: nothing is ever found again.
        """
        self.capacity_tokens = capacity_tokens
        self.block_size = block_size
        self.prefix_block_tokens = prefix_block_tokens
        self.held_tokens = 0.0
        """By sequences that run; never above the capacity."""
        self.peak_tokens = 0.0
        self._holders: dict[int, int] = {}
        """Named block → sequences that hold it; 0: only still there."""
        self._released: OrderedDict[int, int] = OrderedDict()
        """Block → tokens, oldest first; those without a name have numbers below 0."""
        self._released_tokens = 0
        self._unnamed = 0

    def found(self, prefix: SequenceOf[int], context_tokens: int) -> int:
        """How many leading blocks of a prompt are there; the last token is always computed."""
        if not prefix or not self.prefix_block_tokens:
            return 0
        most = min(len(prefix), (context_tokens - 1) // self.prefix_block_tokens)
        count = 0
        while count < most and prefix[count] in self._holders:
            count += 1
        return count

    def room_for(self, context_tokens: int, prefix: SequenceOf[int], found: int) -> float:
        """Tokens that admitting it takes, beyond what others hold anyway."""
        shared = sum(1 for block in prefix[:found] if self._holders[block])
        return self._whole_blocks(context_tokens) - shared * self.prefix_block_tokens

    def admit(
        self, context_tokens: int, prefix: SequenceOf[int], found: int
    ) -> tuple[float, tuple[int, ...]]:
        """Take what `room_for` said; tokens that are its alone, and the named blocks that it refers to."""
        taken = self.room_for(context_tokens, prefix, found)
        for block in prefix[:found]:
            if not self._holders[block]:
                self._released_tokens -= self._released.pop(block)
            self._holders[block] += 1
        own = list(prefix[:found])
        if self.prefix_block_tokens:
            for block in prefix[found : context_tokens // self.prefix_block_tokens]:
                # One that is there already, behind a gap, is computed again and not kept twice.
                if block not in self._holders:
                    self._holders[block] = 1
                    own.append(block)
        self.grow(taken)
        return self._whole_blocks(context_tokens) - len(own) * self.prefix_block_tokens, tuple(own)

    def grow(self, tokens: float) -> None:
        """Sequences that run hold so many tokens more; what nobody holds makes room."""
        self.held_tokens += tokens
        self.peak_tokens = max(self.peak_tokens, self.held_tokens)
        while self._released_tokens + self.held_tokens > self.capacity_tokens and self._released:
            block, size = self._released.popitem(last=False)
            self._released_tokens -= size
            if block >= 0:
                del self._holders[block]

    def release(self, unnamed_tokens: float, own_blocks: SequenceOf[int], *, is_last: bool) -> None:
        """A sequence ends or is preempted: its blocks are there until others need them."""
        self.held_tokens -= unnamed_tokens
        if self.prefix_block_tokens and unnamed_tokens >= 1:
            self._unnamed -= 1
            self._released[self._unnamed] = int(unnamed_tokens)
            self._released_tokens += int(unnamed_tokens)
        for block in reversed(own_blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self.held_tokens -= self.prefix_block_tokens
                self._released[block] = self.prefix_block_tokens
                self._released_tokens += self.prefix_block_tokens
        if is_last:
            self.held_tokens = 0.0  # what rounding left of it

    def _whole_blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size) * self.block_size
