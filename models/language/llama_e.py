"""LLaMA-E: one language model for five writing jobs of a shop, tuned on instructions that interleave its objects.

    row       <s> prompt(instruction, input) output </s>,    labels -100 on the prompt
    loss      - sum over answer tokens of log p(token | what is before it) / answer tokens of the step
    mixture   P(task) = n_task^tau / sum n^tau
    adapter   y = W x + (alpha / rank) B A dropout(x),    A drawn, B = 0

Customer, seller and platform each take part with features that are presented (in the input) and required (in the
output). Interleaving: over the training set every feature is found on both sides, questions and answers excepted, and
no exchange asks for what it shows.

Source: Shi et al., 2023, arXiv:2308.04913 (version 2: object interleaving); rank, alpha, dropout and layers are those
of the adapter that its authors released. Prompt, learning rate, epochs and batch are Alpaca's and alpaca-lora's, as the
paper's are not known to us; loss on answers alone, tau and the list of features are ours. The preset `ecellm` has the
values of Peng et al., 2024, arXiv:2402.08831.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

__all__ = ["LlamaE", "FEATURES", "PRESETS", "TASKS", "answer_loss", "missing", "row", "same_on_both_sides"]

TASKS = ("ads", "title", "classification", "intent", "qa")
FEATURES = ("title", "query", "category", "brand", "attributes", "intent", "ad")
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
IGNORED = -100
PRESETS = {
    "llama_e": {},
    "ecellm": {"rank": 16, "alpha": 16, "dropout": 0.1, "layers": "all", "head": True, "lr": 1e-4, "schedule": "cosine",
               "warmup": 0.05, "length": 2048},
}  # fmt: skip


class LlamaE:
    """How a model is tuned to author.

    Args:
        rank: of an adapter's two matrices.
        alpha: alpha / rank scales their product.
        dropout: of what goes into A.
        layers: "attention" (query, key, value, output) or "all" linear layers of the blocks.
        head: whether the output layer gets an adapter too.
        lr: top learning rate.
        schedule: of the learning rate.
        warmup: share of the steps.
        batch: rows of an update.
        epochs: passes, as many rows as there are.
        length: tokens of a row.
        tau: of the mixture; 1 draws tasks by their rows, 0 evenly.
        preamble: before every prompt.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.05,
        layers: str = "attention",
        head: bool = False,
        lr: float = 3e-4,
        schedule: str = "linear",
        warmup: float = 0.1,
        batch: int = 128,
        epochs: int = 3,
        length: int = 512,
        tau: float = 0.5,
        preamble: str = PREAMBLE,
    ):
        if rank < 1 or not 0 <= dropout < 1 or not 0 <= tau <= 1:
            raise ValueError(f"rank is at least 1, dropout in [0, 1), tau in [0, 1]; got {rank}, {dropout} and {tau}")
        if layers not in ("attention", "all"):
            raise ValueError(f"layers is attention or all, got {layers!r}")
        self.rank, self.alpha, self.dropout, self.layers, self.head = rank, alpha, dropout, layers, head
        self.lr, self.schedule, self.warmup, self.batch, self.epochs = lr, schedule, warmup, batch, epochs
        self.length, self.tau, self.preamble = length, tau, preamble

    def prompt(self, instruction: str, given: str = "") -> str:
        """What stands before an answer.

        >>> LlamaE(preamble="").prompt("Sell it.", "a lamp")
        '### Instruction:\\nSell it.\\n\\n### Input:\\na lamp\\n\\n### Response:\\n'
        """
        return f"{self.preamble}### Instruction:\n{self.asked(instruction, given)}\n\n### Response:\n"

    @staticmethod
    def asked(instruction: str, given: str = "") -> str:
        """What a user of the chat template says: the instruction, and its input where there is one."""
        return f"{instruction}\n\n### Input:\n{given}" if given else instruction

    def chat_template(self, start: str, end: str) -> str:
        """Jinja that writes `prompt` for a message of the user, and the answer with its end for one of the model.

        Args:
            start, end: the tokenizer's first and last token; "" for none.
        """
        quoted = lambda text: "'" + text.replace("\\", "\\\\").replace("\n", "\\n").replace("'", "\\'") + "'"
        return (
            f"{{{{ {quoted(start + self.preamble)} }}}}"
            "{% for message in messages %}"
            f"{{% if message['role'] == 'assistant' %}}{{{{ {quoted('### Response:' + chr(10))} + message['content'] + "
            f"{quoted(end + chr(10) + chr(10))} }}}}"
            f"{{% else %}}{{{{ {quoted('### Instruction:' + chr(10))} + message['content'] + {quoted(chr(10) * 2)} }}}}"
            "{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {quoted('### Response:' + chr(10))} }}}}{{% endif %}}"
        )

    def shares(self, rows: Mapping[str, int]) -> dict[str, float]:
        """Probability of each task that has rows.

        >>> LlamaE(tau=0.5).shares({"ads": 100, "qa": 25, "title": 0})
        {'ads': 0.6666666666666666, 'qa': 0.3333333333333333}
        """
        weight = {task: count**self.tau for task, count in rows.items() if count}
        total = sum(weight.values())
        return {task: value / total for task, value in weight.items()}

    def trained(self, layers: Iterable[tuple[int, int]]) -> int:
        """Numbers that the adapters of layers (inputs, outputs) have: rank (inputs + outputs) each.

        >>> LlamaE().trained([(4096, 4096)] * 4 * 32)  # Llama-2-7B
        8388608
        """
        return sum(self.rank * (inputs + outputs) for inputs, outputs in layers)


def row(prompt: Sequence[int], answer: Sequence[int], start: int | None, end: int, length: int) -> dict | None:
    """ids and labels_lm of an exchange, or None where it does not fit: an answer never loses its end.

    The label of a place is the token to come: -100 up to the last token of the prompt, which foretells the answer's
    first.

    >>> row([7, 8], [9], 1, 2, 16)
    {'ids': [1, 7, 8, 9], 'labels_lm': [-100, -100, 9, 2]}
    """
    first = [] if start is None else [start]
    ids = [*first, *prompt, *answer]
    if not answer or len(ids) > length:
        return None
    return {"ids": ids, "labels_lm": [IGNORED] * (len(first) + len(prompt) - 1) + [*answer, end]}


def answer_loss(logits_BTV: Tensor, label_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled places of all rows together, in nats: long answers weigh more than short ones.

    Args:
        logits_BTV: of what comes after each place.
        label_BT: int64, -100 where nothing is asked.
    """
    counts = label_BT != IGNORED
    log_NV = logits_BTV[counts].log_softmax(-1)
    return -log_NV.gather(-1, label_BT[counts][:, None]).sum() / counts.sum().clamp(min=1)


def missing(rows: Iterable[tuple[str, Sequence[str], str]]) -> dict[str, list[str]]:
    """The features that a set does not present, and those that it does not require; both empty where it interleaves.

    Args:
        rows: (task, features presented, feature required) of each exchange.
    """
    presented, required = set(), set()
    for task, given, asked in rows:
        if task != "qa":
            presented.update(given)
            required.add(asked)
    return {"presented": [name for name in FEATURES if name not in presented],
            "required": [name for name in FEATURES if name not in required]}  # fmt: skip


def same_on_both_sides(presented: Mapping[str, str], required: str, output: str) -> bool:
    """Whether an exchange asks for what it shows: the required feature is presented, and with the same text."""
    return required in presented and presented[required].strip() == output.strip()
