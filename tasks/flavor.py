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
from tasks.poison import PoisonedFolder, refuse_poison

__all__ = ["check_folder", "check_version", "content", "save_model", "task_of"]

WEIGHTS = (".safetensors", ".index.json")
TASKS = {  # end of the class's name -> the pipeline that serves it
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
LOADER = "mlflow.transformers"
RECIPE = {"recipe": "model/recipe.json", "weights": "model/model.safetensors"}
FUNCTION = ("code", "config", "env", "loader_module", "python_version", "streamable")  # what MLflow writes of it
PACKAGES = ("mlflow", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def check_folder(folder: Path) -> dict:
    """The config.json of a folder that may be loaded; {} of a recipe of ours that transformers has no class for.

    Raises:
        PoisonedFolder: it holds a pickle or code, or names code to be run; see tasks/poison.py.
        ValueError, OSError: there is no config.json, or it does not say which class it is of.
    """
    refuse_poison(folder)
    if (folder / "recipe.json").is_file() and not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    if not config.get("architectures"):
        raise ValueError(f"{folder}/config.json names no class below `architectures`; export the model again")
    return config


def check_version(version: Path) -> None:
    """A registered version's files around its judged model/ may be loaded: MLflow trusts them more than it should.

    Its loader runs code that a tokenizer's folder names, imports the module that MLmodel names, and puts a folder that
    MLmodel names on the import path. None of these files is part of the content's hash, so each must be what
    `save_model` writes.

    Args:
        version: the MLflow model, which was `save_model`'s output.

    Raises:
        PoisonedFolder: a file is not, MLmodel included; names it.
    """
    refuse_poison(version)
    for path in sorted((version / "components").rglob("*")):
        twin = version / "model" / path.name
        if path.is_file() and not (twin.is_file() and twin.read_bytes() == path.read_bytes()):
            raise PoisonedFolder(f"{path} is not the judged {twin}; nothing was loaded")
    told = _flavors(version / "MLmodel")
    config = check_folder(version / "model")
    expected = {"transformers": _flavor(config, version / "model")} if config else {"rootstock": RECIPE}
    function = told.pop("python_function", {})
    if odd := {key: value for key, value in function.items() if key not in FUNCTION or key == "code" and value}:
        raise PoisonedFolder(f"{version}/MLmodel loads by {odd}, which is not written here; nothing was loaded")
    if function.get("loader_module", LOADER) != LOADER or told != expected:
        raise PoisonedFolder(f"{version}/MLmodel describes another way to load than was written here: {told}, "
                             f"{function}; nothing was loaded")  # fmt: skip


def _flavors(file: Path) -> dict[str, dict]:
    """The flavours of an MLmodel file, without the versions that wrote them."""
    import yaml

    try:
        told = yaml.safe_load(file.read_text())["flavors"]
        return {name: {key: value for key, value in flavor.items() if key != "transformers_version"}
                for name, flavor in told.items()}  # fmt: skip
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise PoisonedFolder(f"{file} is no description of a model ({error}); nothing was loaded") from None


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
        mlflow_model.add_flavor("rootstock", **RECIPE)
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
    mlflow_model.add_flavor("transformers", transformers_version=version("transformers"), **_flavor(config, folder))
    # Encoder-decoders have no pipeline in transformers 5: they are loaded as parts, and `model.generate` is called.
    alone = not config.get("is_encoder_decoder") and not config["architectures"][0].endswith("ForMultipleChoice")
    if "tokenizer" in parts and alone:
        mlflow_model.signature = _signature(task)
        mlflow.pyfunc.add_to_model(
            mlflow_model,
            loader_module=LOADER,
            python_env="python_env.yaml",
            # 256 new tokens are the pipeline's own, more than a small model has positions for
            model_config={"max_new_tokens": 32} if task == "text-generation" else None,
        )


def _flavor(config: dict, folder: Path) -> dict:
    """The flavour transformers of a model's folder."""
    parts = _parts(folder)
    return {
        "code": None,
        "task": task_of(config, parts),
        "pipeline_model_type": config["architectures"][0],
        "model_binary": "model",
        "components": list(parts),
        **{f"{name}_type": kind for name, kind in parts.items()},
    }


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
