"""The cross-entropy method that suits a world's actions."""

from tokenwm.control.planners.categorical import CategoricalCEM
from tokenwm.control.planners.icem import ICEM
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer


def suited_cem(vocabulary: Vocabulary) -> type[ICEM] | type[CategoricalCEM]:
    """Choose iCEM for actions of real values, CEM over ids for discrete ones."""
    return ICEM if isinstance(vocabulary.action, BinTokenizer) else CategoricalCEM
