import pytest

from world_model.tokens.text import TextTokenizer
from world_model.tokens.vocab import Block, Vocab

TEXTS = ["fold the cloth in half", "lift the cube", "grasp the near left corner", "lay it on the far left corner"]


def test_round_trip_of_known_and_unknown_text():
    """Catches a tokenizer that drops what it was not trained on: any instruction must survive."""
    tokenizer = TextTokenizer.train(TEXTS)
    for text in [*TEXTS, "", " Fold, twice!", "Falte das Tuch über die Kante 布 🧺"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2, "merges must shorten what was trained on"


def test_training_does_not_depend_on_order():
    """Catches ids that change with the order in which episodes were read."""
    assert TextTokenizer.train(TEXTS).to_json() == TextTokenizer.train(TEXTS[::-1] + TEXTS).to_json()


def test_ids_lie_in_the_text_block():
    """Catches text ids that collide with other blocks of the vocabulary."""
    tokenizer = TextTokenizer.train(TEXTS)
    for vocab in (Vocab.native(tokenizer.size, 1000, 2), Vocab.emu3(2)):
        placed = tokenizer.within(vocab.text)
        ids = placed.encode(TEXTS[0])
        assert all(vocab.text.contains(token) for token in ids)
        assert placed.decode(ids) == TEXTS[0]
    shifted = tokenizer.within(Block("text", 1000, 400))
    assert shifted.encode("cube") == [1000 + token for token in tokenizer.encode("cube")]
    with pytest.raises(ValueError, match="gives text 10"):
        tokenizer.within(Block("text", 0, 10))
    with pytest.raises(ValueError, match="not a text id"):
        shifted.decode([3])


def test_json_round_trip():
    """Catches merges that are lost between saving and loading."""
    tokenizer = TextTokenizer.train(TEXTS)
    again = TextTokenizer.from_json(tokenizer.to_json(), Block("text", 5, 400))
    assert again.encode(TEXTS[1]) == [5 + token for token in tokenizer.encode(TEXTS[1])]
    with pytest.raises(ValueError, match="not a text tokenizer"):
        TextTokenizer.from_json("{")
