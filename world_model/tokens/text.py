"""Instructions and subtask texts as ids: a byte-level BPE, so that every string has ids and comes back whole."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from world_model.tokens.vocab import Block

MIN_SIZE = 256  # one id for each byte


class TextTokenizer:
    """`encode` and `decode` speak ids of the vocabulary's text block; the BPE inside counts from 0."""

    def __init__(self, bpe: Tokenizer, block: Block | None = None):
        """block: the vocabulary's text block; without it ids are the BPE's own numbers."""
        self.bpe = bpe
        self.block = block or Block("text", 0, self.size)
        if self.size > self.block.size:
            raise ValueError(f"the text tokenizer has {self.size} ids, but the vocabulary gives text {self.block.size}")

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 320) -> TextTokenizer:
        """Learn merges from texts; the same texts in any order give the same tokenizer.

        size: ids at most, at least 256; few texts give fewer. Place it in a vocabulary with `within`.
        """
        if size < MIN_SIZE:
            raise ValueError(f"a byte-level tokenizer needs at least {MIN_SIZE} ids, got {size}")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        bpe.train_from_iterator(sorted(set(texts)), trainer)
        return cls(bpe)

    @property
    def size(self) -> int:
        """Number of ids that text can take."""
        return self.bpe.get_vocab_size()

    def within(self, block: Block) -> TextTokenizer:
        """The same tokenizer speaking the ids of a vocabulary's text block."""
        return TextTokenizer(self.bpe, block)

    def encode(self, text: str) -> list[int]:
        return [self.block.encode(local) for local in self.bpe.encode(text).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """ValueError for an id that is not text."""
        ids = list(ids)
        for token in ids:
            if not self.block.contains(token) or self.block.decode(token) >= self.size:
                raise ValueError(f"id {token} is not a text id")
        return self.bpe.decode([self.block.decode(token) for token in ids])

    def to_json(self) -> str:
        return self.bpe.to_str()

    @classmethod
    def from_json(cls, text: str, block: Block | None = None) -> TextTokenizer:
        """Raise ValueError if the text is not a tokenizer."""
        try:
            bpe = Tokenizer.from_str(text)
        except Exception as error:  # the library raises the bare class
            raise ValueError(f"this is not a text tokenizer: {error}") from error
        return cls(bpe, block)
