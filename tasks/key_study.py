"""What training on single tokens gives to their neighbours in key space: head frozen, head trained, or a reranker.

    python -m tasks.key_study MODEL PROMPTS.parquet params.yaml:language.key_study OUT

The output rows are clustered; one token of each of some clusters is trained as the next token of a context of its own.
Reported are the mean rise of the trained tokens' logits, of their cluster mates', and of controls of equal rank in
clusters without a trained token; and how far keys and queries moved. Leak is mates over trained.

    frozen      all weights but the output rows (or LoRA of `rank`); tied input rows are frozen with them
    free        all weights
    rerank      the model is frozen; the `top` most likely tokens are scored anew, logit_v + e_v . B h, with a row e_v
                of each token's own that is no key: neighbours share nothing

The paper names the risk and the remedies (arXiv:2410.02284); this procedure and the reranker's form are ours.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.language._keys import Clusters, check_identity, key_clusters, leak
from models.language._reader import Reader
from tasks.causal import Opened, open_causal, prompt_ids
from tasks.command import run
from tasks.files import new_folder, write_json
from tasks.generate import read_prompts
from tasks.settings import SettingsError, fill, read
from tasks.slots import slot

__all__ = ["Study", "key_study"]

WAYS = ("frozen", "free", "rerank")


@dataclass(frozen=True)
class Study:
    """What is trained.

    Args:
        clusters: of keys; 0 for one in 125 keys.
        trained: clusters of which a token is trained, at most; half of them stay for controls.
        steps: of AdamW, each on all contexts.
        lr: of `frozen` and `free`.
        rank: of LoRA in `frozen`; 0 trains the weights themselves.
        top: tokens that `rerank` scores anew.
        rerank_lr, width: of `rerank`.
        seed: of the clusters, of LoRA and of the reranker.
    """

    clusters: int = 0
    trained: int = 64
    steps: int = 30
    lr: float = 1e-3
    rank: int = 0
    top: int = 100
    rerank_lr: float = 1e-1
    width: int = 16
    seed: int = 0

    @classmethod
    def read(cls, chosen: Mapping) -> "Study":
        """Settings of params.yaml; SettingsError for one that is unknown or cannot be."""
        made = fill(cls, chosen, "key_study")
        if min(made.trained, made.steps, made.top, made.width) < 1 or min(made.clusters, made.rank) < 0:
            raise SettingsError(f"key_study: trained, steps, top and width are at least 1; got {made}")
        if not (made.lr > 0 and made.rerank_lr > 0):
            raise SettingsError(f"key_study: learning rates are above 0; got {made.lr} and {made.rerank_lr}")
        return made


def key_study(model: str | Path, prompts: str | Path, chosen: Mapping, out: str | Path) -> dict:
    """Write the folder `out` whole or not at all.

    Args:
        model: a causal language model's folder with its tokenizer, or what a stage wrote it into.
        prompts: Parquet, see tasks.generate.read_prompts: the contexts; a token gets the one in which it is most
            likely.
        chosen: see `Study`.
        out: takes report.json and report.md.

    Returns:
        {"tied", "clusters", "trained": tokens, "ways": {way: {"loss_before", "loss", "trained", "mates", "control",
        "leak", "leak_control", "in_top" (share of the trained tokens), "key_drift", "query_drift"}}}.

    Raises:
        BrokenIdentity: of a model whose logits are not made of its keys.
        SettingsError, ValueError: a setting that cannot be; fewer than two clusters with two keys or more.
    """
    how, rows = Study.read(chosen), read_prompts(prompts)
    with slot() as device:
        opened = open_causal(model, device)
        contexts = [prompt_ids(opened.tokenizer, row["prompt"], "") for row in rows.iter_rows(named=True)]
        check_identity(opened.reader, contexts[:4])
        kept = opened.kept()
        clusters = key_clusters(opened.reader.head.weight, how.clusters or max(4, int(kept.sum()) // 125), how.seed,
                                kept)  # fmt: skip
        tokens = _tokens(opened.reader.head.weight, clusters, how.trained)
        contexts = _best(opened.reader, contexts, tokens)
        ways = {way: _trained(way, opened, contexts, tokens, clusters, how) for way in WAYS}
    inputs = opened.reader.model.get_input_embeddings()
    report = {
        "model": str(model), "content": opened.content, "settings": asdict(how), "clusters": len(clusters.centers),
        "trained": tokens, "tied": inputs.weight is opened.reader.head.weight, "ways": ways,
    }  # fmt: skip
    with new_folder(out) as folder:
        write_json(folder / "report.json", report)
        (folder / "report.md").write_text(_table(report))
    print(f"{model}: {len(tokens)} tokens trained; " +
          ", ".join(f"{way} leaks {told['leak']:.2f} (control {told['leak_control']:.2f})"
                    for way, told in ways.items()))  # fmt: skip
    return report


def _tokens(keys_VD: Tensor, clusters: Clusters, limit: int) -> list[int]:
    """The token nearest to the middle of every other cluster that has mates for it, largest clusters first."""
    sizes = clusters.sizes()
    usable = [cluster for cluster in sizes.argsort(descending=True, stable=True).tolist() if sizes[cluster] > 1]
    chosen = usable[::2][:limit]
    if len(usable) < 2:
        raise ValueError(f"{len(usable)} of {len(sizes)} clusters have two keys or more, and a trained token needs "
                         f"mates, and controls in another cluster; lower clusters")  # fmt: skip
    keys, found = keys_VD.detach().float().cpu(), []
    for cluster in chosen:
        members = (clusters.labels == cluster).nonzero()[:, 0]
        found.append(int(members[(keys[members] - clusters.centers[cluster]).norm(dim=-1).argmin()]))
    return found


def _best(reader: Reader, contexts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[int]]:
    """For each token the context in which it is most likely: a reranker can only raise what is among the candidates."""
    share = torch.cat([reader.read([context]).logits.log_softmax(-1)[:, list(tokens)].cpu() for context in contexts])
    return [contexts[place] for place in share.argmax(0).tolist()]


def _trained(
    way: str, opened: Opened, contexts: Sequence[Sequence[int]], tokens: Sequence[int], clusters: Clusters, how: Study
) -> dict[str, float]:
    """Train one way on a copy, and compare."""
    torch.manual_seed(how.seed)
    model = copy.deepcopy(opened.reader.model)
    reader = Reader(model, cached=False)
    before, keys = reader.read(contexts), reader.head.weight.detach().clone()
    target = torch.tensor(tokens, device=reader.device)
    if way == "rerank":
        logits, start = before.logits, before.logits
        reranked = _Reranker(before.logits, before.query, how)
        _descend(lambda: reranked(before.logits, before.query), reranked.parameters(), target, how.rerank_lr, how.steps)
        with torch.no_grad():
            logits = reranked(before.logits, before.query)
        query, moved = before.query, keys
    else:
        start = before.logits
        model, parameters = _prepared(way, model, how)
        _descend(lambda: _logits(model, contexts, reader.device), parameters, target, how.lr, how.steps)
        after = Reader(model.merge_and_unload() if how.rank and way == "frozen" else model, cached=False)
        reading = after.read(contexts)
        logits, query, moved = reading.logits, reading.query, after.head.weight.detach()
    rank = start.argsort(descending=True, stable=True).argsort()
    told = leak((logits - start).cpu(), tokens, clusters.labels, rank.cpu())
    loss = lambda scores: float(nn.functional.cross_entropy(scores, target))
    among = rank.gather(1, target[:, None].to(rank.device)) < how.top
    return {"loss_before": loss(start), "loss": loss(logits), **told, "in_top": float(among.float().mean()),
            "key_drift": float((moved - keys).float().norm() / keys.float().norm()),
            "query_drift": float(((query - before.query).norm(dim=-1) / before.query.norm(dim=-1)).mean())}  # fmt: skip


def _prepared(way: str, model: nn.Module, how: Study) -> tuple[nn.Module, list[nn.Parameter]]:
    """The model in evaluation mode (nothing is dropped out), and what is trained."""
    if way == "free":
        return model, list(model.parameters())
    if how.rank:
        from peft import LoraConfig, get_peft_model

        head = model.get_output_embeddings()
        inner = [name for name, part in model.named_modules()
                 if type(part).__name__ in ("Linear", "Conv1D") and part is not head]  # fmt: skip
        model = get_peft_model(model, LoraConfig(r=how.rank, lora_alpha=2 * how.rank, target_modules=inner,
                                                 fan_in_fan_out=_conv(model))).eval()  # fmt: skip
    else:
        model.get_output_embeddings().requires_grad_(False)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def _conv(model: nn.Module) -> bool:
    """Whether its weights lie the other way round, as GPT-2's do."""
    return any(type(part).__name__ == "Conv1D" for part in model.modules())


def _descend(
    logits: Callable[[], Tensor], parameters: Sequence[nn.Parameter], target: Tensor, lr: float, steps: int
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits(), target)
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()} at lr {lr}; lower it")
        loss.backward()
        optimizer.step()


def _logits(model: nn.Module, contexts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(N, V) of the token after each context, with gradients; contexts of one length go together."""
    found: list[Tensor | None] = [None] * len(contexts)
    for length in sorted({len(context) for context in contexts}):
        places = [place for place, context in enumerate(contexts) if len(context) == length]
        ids = torch.tensor([contexts[place] for place in places], device=device)
        last = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].float()
        for place, row in zip(places, last, strict=True):
            found[place] = row
    return torch.stack(found)


class _Reranker(nn.Module):
    """logit_v + e_v . B h for the most likely tokens of each context; the rest keep their logits."""

    def __init__(self, logits_NV: Tensor, query_ND: Tensor, how: Study):
        super().__init__()
        words, width = logits_NV.shape[1], query_ND.shape[1]
        self.own = nn.Parameter(torch.zeros(words, how.width, device=logits_NV.device))
        self.base = nn.Parameter(torch.randn(how.width, width, device=logits_NV.device) / width**0.5)
        scored = torch.zeros_like(logits_NV)
        self.register_buffer("scored", scored.scatter(1, logits_NV.topk(min(how.top, words)).indices, 1.0))

    def forward(self, logits_NV: Tensor, query_ND: Tensor) -> Tensor:
        return logits_NV + self.scored * (query_ND @ self.base.T @ self.own.T)


def _table(report: Mapping) -> str:
    names = ("loss_before", "loss", "trained", "mates", "control", "leak", "leak_control", "in_top",
             "key_drift", "query_drift")  # fmt: skip
    lines = [f"# One token of {len(report['trained'])} clusters, trained: who else rises", "",
             f"{report['clusters']} clusters of keys; output rows {'tied' if report['tied'] else 'not tied'} to the "
             f"input rows.", "", f"| way | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]  # fmt: skip
    lines += [f"| {way} | " + " | ".join(f"{told[name]:.3f}" for name in names) + " |"
              for way, told in report["ways"].items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(model: str, prompts: str, address: str, out: str) -> None:
    """python -m tasks.key_study MODEL PROMPTS.parquet params.yaml:language.key_study OUT"""
    key_study(model, prompts, read(address) or {}, out)


if __name__ == "__main__":
    run(main)
