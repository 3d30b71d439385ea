"""XLM-R: RoBERTa in a hundred languages.

Source: Conneau et al., 2019, arXiv:1911.02116; tensors as `XLMRobertaForMaskedLM.save_pretrained` names them.
"""

from models.components.pretrained._roberta import RobertaLike

__all__ = ["XlmRoberta"]


class XlmRoberta(RobertaLike):
    kinds = ("xlm-roberta",)
    bare = "XLMRobertaModel"
    classes = {
        ("mlm",): "XLMRobertaForMaskedLM",
        ("cls",): "XLMRobertaForSequenceClassification",
        ("regression",): "XLMRobertaForSequenceClassification",
        ("tagging",): "XLMRobertaForTokenClassification",
        ("span",): "XLMRobertaForQuestionAnswering",
        ("choice",): "XLMRobertaForMultipleChoice",
    }
