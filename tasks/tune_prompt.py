"""Add a task: tune its prompt head on the frozen backbone, and prove that nothing else changed."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasks.batches import Batches, in_order, load_split, text_names
from tasks.checkpoint import tensor_digest
from tasks.command import run
from tasks.evaluate import metrics, predict
from tasks.files import digest, new_folder, read_if_there, read_json, write_json
from tasks.journal import stages_so_far
from tasks.labels import check_names, read_tasks
from tasks.represent import represented
from tasks.settings import read
from tasks.slots import slot
from tasks.train import labels_of, load_backbone, refuse_leaks, with_texts
from tasks.training import Trained, Training, train, use_threads

__all__ = ["fit_head", "tune"]


def tune(
    settings: dict, name: str, ingest: Path, features: Path, backbone: Path, out: Path, memo: Path,
    vectors: Path | None = None,
) -> Path:  # fmt: skip
    """Tune the head of task `name` and write its folder.

    Args:
        settings: the `recommend` part of params.yaml: `head` and `tasks[name]` are read.
        memo: folder of representations, shared by all heads; safe to delete at any time.
        vectors: folder of tasks/vectors.py that the backbone was trained with; None is none.

    Returns:
        `out`: head.safetensors, head.json, proof.json, curve.csv, and of the test split metrics.json and test.parquet.

    Raises:
        ValueError: a task or setting that cannot work; nothing is written.
    """
    use_threads()
    started = time.monotonic()
    manifest = with_texts(features, vectors)
    check_names(list(settings["backbone"]["tasks"]), list(settings["tasks"]))
    declaration = settings["tasks"][name]
    tasks = read_tasks({name: declaration}, ingest, manifest)
    labels = {split: labels_of(tasks, split, ingest, features)[:, 0] for split in ("train", "val", "test")}
    rows = {split: load_split(features, split, vectors) for split in labels}
    refuse_leaks(name, rows, labels, manifest)

    model, about = load_backbone(backbone)
    _refuse_other_texts(backbone, vectors)
    before, probe = _fingerprints(model), load_file(backbone / "probe.safetensors")
    old = _probe(model, probe)
    read_rows = time.monotonic() - started
    identity = about["sha256"] + digest(features / "manifest.json")
    if text_names(vectors):
        identity += digest(vectors / "manifest.json")
    tuned = fit_head(model, identity, rows, labels, settings.get("head") or {}, memo, f"prompt@{name}")
    head, trained, report = tuned.head, tuned.trained, tuned.report

    after, new = _fingerprints(model), _probe(model, probe)
    trainable = {key: value.numel() for key, value in head.named_parameters() if value.requires_grad}
    total = time.monotonic() - started
    proof = {
        "backbone_before": before,
        "backbone_after": after,
        "backbone_unchanged": before == after,
        "backbone_gradients": sum(p.grad is not None for p in model.parameters()),
        "old_predictions_before": tensor_digest(old),
        "old_predictions_after": tensor_digest(new),
        "old_predictions_equal": bool(torch.equal(old, new)),
        "old_predictions_off_training": float((new - probe["prediction"]).abs().max()),
        "probe_rows": len(old),
        "trained": trainable,
        "trained_parameters": sum(trainable.values()),
        "trained_share": sum(trainable.values()) / about["parameters"]["without_embeddings"],
        "trained_share_with_embeddings": sum(trainable.values()) / about["parameters"]["all"],
        "seconds": {
            "labels_and_rows": read_rows,
            "representation": tuned.represented,
            "tuning": trained.seconds,
            "all": total,
        },
        "representation_reused": tuned.reused,
        "tuning_share": (trained.seconds + tuned.represented) / about["seconds"],
        "peak_memory_mb": trained.peak_memory_mb,
        "memory_share": trained.peak_memory_mb / about["peak_memory_mb"],
        "stages_before": stages_so_far(),
    }
    if not (proof["backbone_unchanged"] and proof["old_predictions_equal"]) or proof["backbone_gradients"]:
        raise AssertionError(f"prompt@{name} changed the frozen backbone; nothing was written: {proof}")
    with new_folder(out) as folder:
        save_file(head.state_dict(), folder / "head.safetensors")
        write_json(folder / "head.json", {
            "task": name,
            "declaration": declaration,
            "method": about["method"],
            "settings": tuned.settings,
            "training": tuned.training,
            "backbone": about["sha256"],
            "bank": about["tasks"],
            "features": about["features"],
            "data": manifest["data"],
            "offset": tuned.offset,
            "sha256": digest(folder / "head.safetensors"),
            "best_epoch": trained.best_epoch,
        })  # fmt: skip
        write_json(folder / "metrics.json", report)
        write_json(folder / "proof.json", proof)
        pl.DataFrame(trained.curve).write_csv(folder / "curve.csv")
        pl.DataFrame(trained.system).write_csv(folder / "system.csv")
        tuned.test.write_parquet(folder / "test.parquet")
    print(f"prompt@{name}: AUC {report['auc']:.4f} on {report['rows']} test rows; {trained.seconds:.1f} s of tuning, "
          f"{proof['trained_parameters']} parameters ({proof['trained_share']:.1%} of the backbone)")  # fmt: skip
    return out


@dataclass
class Tuned:
    """A tuned head and what tuning it took."""

    head: nn.Module
    offset: float  # log-odds to add to the logit: negatives left out, and the mean set right
    settings: dict
    training: dict
    trained: Trained
    report: dict[str, float]  # metrics on test
    test: pl.DataFrame  # row, label, probability: the test rows on which the task asks
    reused: bool  # the representations were there already
    represented: float  # seconds of computing representations


def fit_head(
    model: nn.Module, identity: str, rows: dict, labels: dict[str, Tensor], chosen: dict, memo: Path, name: str
) -> Tuned:
    """Tune a head on a frozen backbone.

    Args:
        model: the backbone, frozen and in eval mode.
        identity: names the backbone's weights and the encoded rows, by their hashes.
        rows: split -> (categorical, numerical).
        labels: split -> (N,) 1, 0, or NaN where the task does not ask.
        chosen: {settings, training} of the head; training may have `negatives_per_positive` besides `Training`'s own.
    """
    limits = dict(chosen.get("training") or {})
    per_positive = limits.pop("negatives_per_positive", None)
    training = Training.read(limits)
    asked = {split: np.flatnonzero((labels[split] >= 0).numpy()) for split in labels}
    answer = {split: labels[split].numpy()[asked[split]] for split in labels}
    tables, reused, spent = represented(model, identity, rows, asked, memo)
    torch.manual_seed(training.seed)
    head = model.head(**chosen.get("settings") or {})
    kept, offset = thin(answer["train"], per_positive, training.seed)
    tuning = Tuning(head, offset)
    batches = Batches(tables["train"] | {"label": answer["train"]}, training.batch, training.seed, kept)

    def validate() -> dict[str, float]:
        found = metrics(tuning.probability(tables["val"]), torch.from_numpy(answer["val"]))
        return {"val_auc": found["auc"], "val_logloss": found["logloss"], "score": found["auc"]}

    with slot() as device:
        tuning.to(device)
        trained = train(tuning, batches, training, validate, name, device=device)
        started = time.monotonic()
        tuning.offset += level(tuning.probability(tables["train"]), answer["train"].mean())
        trained.seconds += time.monotonic() - started
        tuning.cpu()
    probability = tuning.probability(tables["test"])
    test = {
        "row": asked["test"].astype(np.uint32),
        "label": answer["test"].astype(np.int8),
        "probability": probability.numpy(),
    }
    settings, told = chosen.get("settings") or {}, vars(training) | {"negatives_per_positive": per_positive}
    report = metrics(probability, torch.from_numpy(answer["test"]))
    return Tuned(head, tuning.offset, settings, told, trained, report, pl.DataFrame(test), reused, spent)


class Tuning(nn.Module):
    """A head in training: what `models.fit` calls. The backbone is not part of it, so no optimizer can reach it."""

    def __init__(self, head: nn.Module, offset: float):
        super().__init__()
        self.head, self.offset = head, offset

    def forward(self, label: Tensor, **table: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.head.loss(table, label)
        return loss, {"loss": loss}

    @torch.no_grad()
    def probability(self, table: dict[str, np.ndarray]) -> Tensor:
        """Probabilities at the data's own base rate, (N,) float32 on the CPU."""
        device = next(self.head.parameters()).device
        parts = [self.head({k: v.to(device) for k, v in part.items()}) for part in in_order(table, 8192)]
        return torch.sigmoid(torch.cat(parts).float() + self.offset).cpu()


def thin(label: np.ndarray, per_positive: int | None, seed: int) -> tuple[np.ndarray, float]:
    """Keep all positives and at most `per_positive` negatives for each: (kept rows, log-odds to add to the logit).

    A logit learned on a share w of the negatives is too high by -log w; adding log w gives the data's own base rate.
    Source: King and Zeng, 2001, "Logistic Regression in Rare Events Data", prior correction.

    >>> rows, offset = thin(np.array([1, 0, 0, 0, 0]), per_positive=2, seed=1)
    >>> len(rows), round(offset, 4)
    (3, -0.6931)
    """
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if per_positive is None or len(negative) <= per_positive * len(positive):
        return np.arange(len(label)), 0.0
    count = per_positive * len(positive)
    drawn = np.random.default_rng([seed, 2]).choice(negative, count, replace=False)
    return np.sort(np.concatenate([positive, drawn])), float(np.log(count / len(negative)))


def level(probability: Tensor, rate: float) -> float:
    """Log-odds to add to every logit so that the mean probability is `rate`: calibration in the large, ours.

    The epoch is chosen by its ranking, and with few positives the best one may come before the bias has settled. A
    shift changes no ranking.

    Args:
        probability: (N,) in (0, 1).
        rate: the share of positives, in (0, 1).

    >>> round(level(torch.tensor([0.5, 0.5]), rate=0.1), 4)
    -2.1972
    """
    logit = probability.double().logit(eps=1e-12)
    low, high = -40.0, 40.0
    for _ in range(60):  # bisection: the mean grows with the shift
        middle = (low + high) / 2
        low, high = (low, middle) if torch.sigmoid(logit + middle).mean() > rate else (middle, high)
    return (low + high) / 2


def _refuse_other_texts(backbone: Path, vectors: Path | None) -> None:
    read_by = read_if_there(backbone / "text/text.json").get("content")
    given = read_json(vectors / "manifest.json")["content"] if vectors else None
    if read_by != given:
        raise ValueError(f"{backbone} reads listings' texts by the encoder {read_by and read_by[:12]}, the vectors in "
                         f"{vectors} are of {given and given[:12]}; run `dvc repro backbone`")  # fmt: skip


def _fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor and buffer of the backbone, by name."""
    return {name: tensor_digest(tensor) for name, tensor in model.state_dict().items()}


def _probe(model: nn.Module, probe: dict[str, Tensor]) -> Tensor:
    return predict(model, probe["categorical"].numpy(), probe["numerical"].numpy())


def main(address: str, name: str, ingest: str, features: str, vectors: str, backbone: str, out: str, memo: str) -> None:
    """python -m tasks.tune_prompt params.yaml:recommend TASK INGEST FEATURES VECTORS BACKBONE OUT MEMO"""
    folders = map(Path, (ingest, features, backbone, out, memo))
    tune(read(address), name, *folders, Path(vectors))


if __name__ == "__main__":
    run(main)
