"""RoBERTa: BERT's layers and one segment; positions count real tokens, from the row after the padding id's.

Source: Liu et al., 2019, arXiv:1907.11692; tensors as `RobertaForMaskedLM.save_pretrained` names them.
"""

from models.components.pretrained._roberta import RobertaLike

__all__ = ["Roberta"]


class Roberta(RobertaLike):
    kinds = ("roberta",)
    bare = "RobertaModel"
    classes = {
        ("mlm",): "RobertaForMaskedLM",
        ("cls",): "RobertaForSequenceClassification",
        ("regression",): "RobertaForSequenceClassification",
        ("tagging",): "RobertaForTokenClassification",
        ("span",): "RobertaForQuestionAnswering",
        ("choice",): "RobertaForMultipleChoice",
    }
