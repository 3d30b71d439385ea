"""Classification and masked language model on the same rows: labelled texts with some tokens hidden.

    [CLS] A [MASK] [SEP] (B [SEP])     labels_cls: the class     labels_mlm: the hidden tokens

Source: the `cls_mlm` processor of Zhao et al., 2023, arXiv:2212.06385.
"""

import numpy as np

from tasks.processors._given import Given
from tasks.processors._labelled import Labelled
from tasks.processors._masking import Masking

__all__ = ["ClsMLM"]


class ClsMLM(Labelled):
    """Rows with ids, segments, labels_cls and labels_mlm.

    Args:
        given: its folder has a stream `text`, perhaps `second`, and labels.npy.
        masking: "token", "word", "span" or "ngram".
        share: of the tokens that are hidden.
    """

    def __init__(self, given: Given, masking: str = "token", share: float = 0.15):
        super().__init__(given)
        self.masking = Masking(given, masking, share)

    def row(self, place: int, rng: np.random.Generator) -> dict:
        fields = self.fields(place)
        ids, labels = self.masking(fields["ids"], fields["starts"], rng)
        label = int(self.label[place])
        return {"ids": ids, "segments": fields["segments"], "labels_mlm": labels, "labels_cls": label}
