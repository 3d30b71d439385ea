"""Classification of texts or pairs of texts.

    [CLS] A [SEP] (B [SEP])     labels_cls: the class

Source: Devlin et al., 2019, arXiv:1810.04805, section 4.1.
"""

import numpy as np

from tasks.processors._given import Given
from tasks.processors._labelled import Labelled

__all__ = ["Cls"]


class Cls(Labelled):
    """Rows with ids, segments and labels_cls.

    Args:
        given: its folder has a stream `text`, perhaps `second`, and labels.npy.
    """

    def __init__(self, given: Given):
        super().__init__(given)

    def row(self, place: int, rng: np.random.Generator) -> dict:
        fields = self.fields(place)
        return {"ids": fields["ids"], "segments": fields["segments"], "labels_cls": int(self.label[place])}
