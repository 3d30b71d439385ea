"""Train the multi-task backbone: features and declared labels -> one model, to be frozen, with its evidence."""

import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

import models
from models.recommend._address import multi_task
from models.recommend._inputs import Inputs
from tasks.batches import Batches, in_order, load_split, text_names
from tasks.command import run
from tasks.evaluate import metrics, predict
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.labels import Task, find_leaks, label, read_tasks, require_two_classes
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.training import Trained, Training, train, use_threads

__all__ = [
    "LabelLeak", "fit_backbone", "labels_of", "load_backbone", "refuse_leaks", "train_backbone",
    "with_texts",
]  # fmt: skip

PROBE_ROWS = 512


class LabelLeak(ValueError):
    """A feature alone gives the label away; nothing was trained."""


def train_backbone(
    settings: dict, ingest: Path, features: Path, out: Path, checkpoints: Path, vectors: Path | None = None
) -> Path:
    """Train `settings["method"]` on `settings["tasks"]` and write the backbone's folder.

    Args:
        settings: with `teachers`, a folder of this unit with single-task networks of the same tasks, kd_mtl learns from
            those and trains none.
        vectors: folder of tasks/vectors.py, the numbers of the listings' texts; None is none.

    Returns:
        `out`: model.safetensors, backbone.json, encoder.json, metrics.json (test), curve.csv, probe.safetensors, and
        text/, which turns a listing's words into numbers (text.json alone, with no content, when nothing reads them).

    Raises:
        ValueError: a task, setting or feature that cannot work; nothing is written.
        FloatingPointError: the loss diverged; the checkpoints stay.
    """
    use_threads()
    training = Training.read(settings.get("training") or {})
    manifest = with_texts(features, vectors)
    tasks = read_tasks(settings["tasks"], ingest, manifest)
    labels = {split: labels_of(tasks, split, ingest, features) for split in ("train", "val", "test")}
    rows = {split: load_split(features, split, vectors) for split in labels}
    for index, task in enumerate(tasks):
        refuse_leaks(task.name, rows, {split: labels[split][:, index] for split in labels}, manifest)

    names, own, taught = [task.name for task in tasks], dict(settings.get("settings") or {}), None
    if settings.get("teachers"):
        if settings["method"] != "kd_mtl":
            raise SettingsError(f"{settings['method']} takes no teachers; take `teachers` out, or choose kd_mtl")
        taught, about = _teachers(Path(settings["teachers"]), names, features)
        own = {"teacher": about["settings"]} | own
    torch.manual_seed(training.seed)
    model = multi_task(settings["method"], manifest["sizes"], len(manifest["numerical"]), len(tasks), **own)
    if taught is not None:
        model.teach(taught)
    # A run is known by what decides its result; a checkpoint of any other run is never picked up.
    known = write_text(
        checkpoints / "run.txt",
        f"{settings}\n{digest(features)}\n{labels['train'].shape}\n{digest(Path(models.__file__).parent)}\n"
        + (f"{digest(vectors / 'manifest.json')}\n" if text_names(vectors) else "")
        + (f"{about['sha256']}\n" if taught is not None else ""),
    )
    with slot() as device:
        model.to(device)
        trained = fit_backbone(model, names, rows, labels, training, checkpoints / digest(known)[:16], device)
        model.cpu()
    # A method that only teaches another one is not served: its student is, under the student's own name.
    served = {"method": settings["method"], "settings": settings.get("settings") or {}}
    if hasattr(model, "serves"):
        served, model = dict(zip(("method", "settings"), model.serves, strict=True)), model.student

    started = time.monotonic()
    test = predict(model, *rows["test"])
    report = {task.name: metrics(test[:, i], labels["test"][:, i]) for i, task in enumerate(tasks)}
    print(f"backbone: test in {time.monotonic() - started:.1f} s: "
          + ", ".join(f"{name} AUC {value['auc']:.4f}" for name, value in report.items()))  # fmt: skip
    with new_folder(out) as folder:
        _write(folder, model, settings | served, tasks, manifest, features, trained, training, report, rows["val"])
        if text_names(vectors):
            shutil.copytree(vectors / "text", folder / "text")
        else:
            write_json(folder / "text/text.json", {"content": None, "columns": []})
    return out


def _teachers(folder: Path, names: list[str], features: Path) -> tuple[torch.nn.Module, dict]:
    """The single-task networks of a folder, and its backbone.json.

    Raises:
        SettingsError: the folder holds another method, other tasks, or a model of other features; names all of it.
    """
    if not (folder / "backbone.json").is_file():
        raise SettingsError(f"teachers: {folder} has no backbone.json; name a folder that tasks/train.py wrote")
    model, about = load_backbone(folder)
    wrong = [f"its {what} {has}, not {wanted}" for what, has, wanted in
             (("method is", about["method"], "single_task"), ("tasks are", about["tasks"], names),
              ("features are", about["features"][:12], digest(features / "encoder.json")[:12]))
             if has != wanted]  # fmt: skip
    if wrong:
        raise SettingsError(f"teachers: {folder}: {'; '.join(wrong)}; train them on the same tasks and features")
    return model, about


def with_texts(features: Path, vectors: Path | None) -> dict:
    """The features' manifest, the names of the texts' numbers at the end of its numerical ones."""
    manifest = read_json(features / "manifest.json")
    return manifest | {"numerical": [*manifest["numerical"], *text_names(vectors)]}


def labels_of(tasks: list[Task], split: str, ingest: Path, features: Path) -> Tensor:
    """Labels of every task on one split: (N, T) float32, NaN where the task does not ask.

    Raises:
        OneClass: a task has only one class here; names it with its counts.
    """
    rows = pl.read_parquet(features / "rows" / f"{split}.parquet")
    events = pl.scan_parquet(ingest / "events" / "**" / "*.parquet")
    columns = [require_two_classes(task, split, label(task, rows, events)) for task in tasks]
    found = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    return found.masked_fill(found < 0, torch.nan)


def refuse_leaks(task: str, rows: dict, labels: dict[str, Tensor], manifest: dict) -> None:
    """Refuse a task that one feature alone answers.

    Raises:
        LabelLeak: names every such feature and its AUC.
    """
    asked = {split: (labels[split] >= 0).numpy() for split in ("train", "val")}
    sides = [(*(array[asked[split]] for array in rows[split]), labels[split].numpy()[asked[split]].astype(np.int8))
             for split in asked]  # fmt: skip
    names = [*manifest["categorical"], *manifest["numerical"]]
    if leaks := find_leaks(*sides, names):
        listed = ", ".join(f"{name} (AUC {value:.4f})" for name, value in leaks)
        raise LabelLeak(f"task {task}: {listed} alone tells the label; take it out of recommend.features, or declare "
                        f"the task on what is known before its event")  # fmt: skip


def load_backbone(folder: str | Path) -> tuple[torch.nn.Module, dict]:
    """The frozen backbone of a folder, in eval mode and without gradients, and its backbone.json.

    Raises:
        ValueError: the weights are not those that backbone.json names.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    about = read_json(folder / "backbone.json")
    if (found := digest(folder / "model.safetensors")) != about["sha256"]:
        raise ValueError(f"{folder}/model.safetensors is {found[:12]}, backbone.json names {about['sha256'][:12]}; "
                         f"the backbone changed: run `dvc repro -f backbone`")  # fmt: skip
    model = multi_task(about["method"], about["sizes"], about["dense"], len(about["tasks"]), **about["settings"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False), about


def fit_backbone(
    model: torch.nn.Module, tasks: list[str], rows: dict, labels: dict[str, Tensor], training: Training,
    checkpoints: Path | None = None, device: str = "cpu",
) -> Trained:  # fmt: skip
    """Train a backbone on rows and labels by split: (categorical, numerical), and (N, T) with NaN where not asked."""
    arrays = {"categorical": rows["train"][0], "numerical": rows["train"][1], "labels": labels["train"].numpy()}
    memory, after_epoch = {}, None
    if hasattr(model, "assign"):  # the method carries a pseudo-label per row, from one epoch to the next
        domain = torch.from_numpy(
            np.random.default_rng([training.seed, 1]).integers(0, len(tasks), len(labels["train"]))
        )
        memory["domain"], arrays["domain"] = (
            domain,
            domain.numpy(),
        )  # one memory: assigning in place is seen by the batches
        model.set_shares(domain)

        def after_epoch(epoch: int) -> None:
            if epoch % model.assign_every == 0:
                domain.copy_(_assign(model, {k: v for k, v in arrays.items() if k != "domain"}, device))
                model.set_shares(domain)

    batches = Batches(arrays, training.batch, training.seed)
    if hasattr(model, "total"):
        model.total.fill_(batches.per_epoch * training.epochs)

    def validate() -> dict[str, float]:
        probability = predict(model, *rows["val"])
        found = {task: metrics(probability[:, i], labels["val"][:, i]) for i, task in enumerate(tasks)}
        aucs = {f"val_auc_{name}": value["auc"] for name, value in found.items()}
        return aucs | {"score": sum(aucs.values())}

    return train(model, batches, training, validate, "backbone", checkpoints, device, memory, after_epoch)


@torch.no_grad()
def _assign(model, arrays: dict[str, np.ndarray], device: str) -> Tensor:
    parts = in_order(arrays, 8192)
    return torch.cat([model.assign(**{k: v.to(device) for k, v in part.items()}).cpu() for part in parts])


def _write(folder, model, settings, tasks, manifest, features, trained, training, report, val) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")
    write_text(folder / "encoder.json", (features / "encoder.json").read_text())
    probe = {"categorical": torch.tensor(val[0][:PROBE_ROWS]), "numerical": torch.tensor(val[1][:PROBE_ROWS])}
    save_file(
        probe | {"prediction": predict(model, *(value.numpy() for value in probe.values()))},
        folder / "probe.safetensors",
    )
    embedding = sum(part.table.numel() for part in model.modules() if isinstance(part, Inputs))
    every = sum(p.numel() for p in model.parameters())
    about = {
        "method": settings["method"],
        "settings": settings["settings"],
        "sizes": manifest["sizes"],
        "dense": len(manifest["numerical"]),
        "tasks": [task.name for task in tasks],
        "task_declarations": settings["tasks"],
        "training": vars(training),
        "sha256": digest(folder / "model.safetensors"),
        "features": digest(features / "encoder.json"),
        "data": manifest["data"],
        "parameters": {"all": every, "without_embeddings": every - embedding},
        "seconds": trained.seconds,
        "peak_memory_mb": trained.peak_memory_mb,
        "best_epoch": trained.best_epoch,
    }
    write_json(folder / "backbone.json", about)
    write_json(folder / "metrics.json", report)
    pl.DataFrame(trained.curve).write_csv(folder / "curve.csv")
    pl.DataFrame(trained.system).write_csv(folder / "system.csv")


def main(address: str, ingest: str, features: str, vectors: str, out: str, checkpoints: str) -> None:
    """python -m tasks.train params.yaml:recommend.backbone INGEST FEATURES VECTORS OUT CHECKPOINTS"""
    folders = map(Path, (ingest, features, out, checkpoints))
    train_backbone(read(address), *folders, Path(vectors))


if __name__ == "__main__":
    run(main)
