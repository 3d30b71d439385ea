"""A trained language model as an MLflow model: every file as it was judged, and an MLmodel file beside it.

MLflow 3.17 does not save a local folder with transformers 5 (it asks for a class where transformers now keeps a name),
and saving loaded parts writes the weights anew, under a hash that no gate has seen. What it loads is a fixed format,
so that is written here: `mlflow.transformers.load_model` and `mlflow.pyfunc.load_model` read it, without a network.
"""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.command import run
from tasks.files import digest, read_json, write_text
from tasks.poison import PICKLES, PoisonedFolder

__all__ = ["check_folder", "content", "save_model", "task_of"]

WEIGHTS = (".safetensors", ".index.json")
TASKS = {  # end of the class's name -> the pipeline that serves it
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
PACKAGES = ("mlflow", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def check_folder(folder: Path) -> dict:
    """The config.json of a folder that may be loaded; {} of a recipe of ours that transformers has no class for.

    Raises:
        PoisonedFolder: it holds a pickle, or asks the reader to run code of its own; names it.
        ValueError, OSError: there is no config.json, or it does not say which class it is of.
    """
    if found := sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in PICKLES):
        raise PoisonedFolder(f"{', '.join(found)} can run code when read and was not made by this repository; "
                             f"nothing was read from {folder}. Delete it and run `dvc repro`")  # fmt: skip
    if (folder / "recipe.json").is_file() and not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "auto_map" in read_json(folder / file):
            raise PoisonedFolder(f"{folder / file} names code of its own (auto_map), which is never run")
    if not config.get("architectures"):
        raise ValueError(f"{folder}/config.json names no class below `architectures`; export the model again")
    return config


def content(folder: Path) -> str:
    """The SHA-256 of all files of a model's folder: the identity of a registered version."""
    return digest(folder)


def task_of(config: dict, parts: dict[str, str]) -> str:
    """The pipeline in which a model is served.

    Args:
        config: its config.json.
        parts: what stands beside the model, "tokenizer" or "image_processor" -> class.

    >>> task_of({"architectures": ["BertForMaskedLM"]}, {"tokenizer": "AutoTokenizer"})
    'fill-mask'
    >>> task_of({"architectures": ["ViTModel"]}, {"image_processor": "AutoImageProcessor"})
    'image-feature-extraction'
    """
    name = config["architectures"][0]
    found = next((task for end, task in TASKS.items() if name.endswith(end)), None)
    return found or ("feature-extraction" if "tokenizer" in parts else "image-feature-extraction")


def save_model(path: str, mlflow_model, folder: Path) -> None:
    """Write the folder as an MLflow model below `path`; MLflow calls this when it logs a model.

    Args:
        path: where to; does not exist yet.
        mlflow_model: the mlflow.models.Model to complete and save.
        folder: the transformers layout of a model.
    """
    config, out = check_folder(folder), Path(path)
    shutil.copytree(folder, out / "model")
    if config:
        _as_transformers(mlflow_model, config, folder, out)
    else:  # loaded by models.components._model.assemble(recipe.json) and the weights beside it
        mlflow_model.add_flavor("rootstock", recipe="model/recipe.json", weights="model/model.safetensors")
    write_text(out / "requirements.txt", "\n".join(_requirements(folder)) + "\n")
    python = ".".join(map(str, sys.version_info[:3]))
    write_text(out / "python_env.yaml", f"python: {python}\ndependencies:\n- -r requirements.txt\n")
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    mlflow_model.save(str(out / "MLmodel"))


def _as_transformers(mlflow_model, config: dict, folder: Path, out: Path) -> None:
    """The flavours transformers and, for what reads one text, python_function."""
    import mlflow

    parts = _parts(folder)
    for name in parts:
        beside = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.endswith(WEIGHTS)]
        (out / "components" / name).mkdir(parents=True)
        for file in beside:
            shutil.copyfile(file, out / "components" / name / file.name)
    task = task_of(config, parts)
    mlflow_model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task=task,
        pipeline_model_type=config["architectures"][0],
        model_binary="model",
        components=list(parts),
        **{f"{name}_type": kind for name, kind in parts.items()},
    )
    # Encoder-decoders have no pipeline in transformers 5: they are loaded as parts, and `model.generate` is called.
    alone = not config.get("is_encoder_decoder") and not config["architectures"][0].endswith("ForMultipleChoice")
    if "tokenizer" in parts and alone:
        mlflow_model.signature = _signature(task)
        mlflow.pyfunc.add_to_model(
            mlflow_model,
            loader_module="mlflow.transformers",
            python_env="python_env.yaml",
            # 256 new tokens are the pipeline's own, more than a small model has positions for
            model_config={"max_new_tokens": 32} if task == "text-generation" else None,
        )


def _parts(folder: Path) -> dict[str, str]:
    known = {
        "tokenizer": ("AutoTokenizer", "tokenizer_config.json"),
        "image_processor": ("AutoImageProcessor", "preprocessor_config.json"),
    }
    return {name: kind for name, (kind, file) in known.items() if (folder / file).is_file()}


def _signature(task: str):
    """One column of texts in; a label and its score out, or what the pipeline says as text."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    if task == "text-classification":
        outputs = Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    else:
        outputs = Schema([ColSpec("string" if task != "feature-extraction" else AnyType())])
    return ModelSignature(inputs=Schema([ColSpec("string")]), outputs=outputs)


def _requirements(folder: Path) -> list[str]:
    wanted = [*PACKAGES, *(["sentencepiece"] if any(folder.glob("*.model")) else [])]
    found = []
    for package in wanted:
        try:
            found.append(f"{package}=={version(package).split('+')[0]}")
        except PackageNotFoundError:
            raise ValueError(f"{package} is not installed, so the version's requirements cannot be written") from None
    return found


def main(folder: str) -> None:
    """python -m tasks.flavor FOLDER: print the content's SHA-256"""
    print(content(Path(folder)))


if __name__ == "__main__":
    run(main)
