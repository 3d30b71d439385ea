"""Nothing that is read may run: real exploits that only touch a file, through the doors by which data and models come.

Each has a control that reads the same file without care and finds the marker, so that a test can fail.
"""

import ast
import base64
import contextlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from models import build
from tasks.base import base
from tasks.causal import open_causal, prompt_ids
from tasks.checkpoint import latest
from tasks.descriptions import describer
from tasks.fetch import fetch
from tasks.files import digest, read_json, write_json
from tasks.finetune import load_start
from tasks.flavor import check_folder
from tasks.labels import Task, TaskError
from tasks.plain_words import NotPlain, refuse_others
from tasks.poison import PoisonedFolder, refuse_poison
from tasks.prune import prune
from tasks.settings import SettingsError, read
from tasks.shards import Shards, write
from tasks.teachers import load_teachers
from tasks.texts import TextEncoder, UnreadableEncoder
from tasks.tokenizer import make_tokenizer
from tasks.validate import DataRejected
from tasks.writers._writer import open_writer
from tests import _exploits
from tests._exploits import ESCAPES, MODELS, Bomb, edit
from tests.tasks._speaker import speaker

ROOT = Path(__file__).parents[1]
DOORS = {  # name -> reads the folder of a model as the command of that name does
    "base": lambda folder: base(folder, "artifacts/base/evil"),
    "open_causal": open_causal,
    "finetune": load_start,
    "distill": lambda folder: load_teachers([folder]),
    "writer": lambda folder: open_writer({"local": {"folder": str(folder), "licence": "CC0-1.0"}}),
    "tokenizer": lambda folder: make_tokenizer({"pretrained": str(folder)}, [], "artifacts/tokenizer"),
    "descriptions": lambda folder: describer(str(folder))(["a red bike"]),
    "promotion": check_folder,
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture(scope="module")
def _sound(tmp_path_factory) -> Path:
    return speaker(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(_sound, tmp_path) -> Path:
    """A sound model's folder of its own."""
    return shutil.copytree(_sound, tmp_path / "outside/model")


# 1. Folders of models


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("exploit", MODELS)
def test_a_poisoned_model_is_refused_at_every_door(model, marker, exploit, door):
    MODELS[exploit](model, marker)
    with pytest.raises(PoisonedFolder, match="can run code when read"):
        DOORS[door](model)
    assert not marker.exists()


@pytest.mark.parametrize("door", ["base", "open_causal", "writer", "descriptions", "promotion"])
def test_a_sound_model_passes(model, door):
    DOORS[door](model)


@pytest.mark.parametrize("exploit", MODELS)
def test_what_travels_with_a_served_model_runs_nothing(model, marker, exploit):
    MODELS[exploit](model, marker)
    with contextlib.suppress(UnreadableEncoder, ImportError):  # a kernel needs a library that is not here
        TextEncoder(model)
    assert not marker.exists()


@pytest.mark.parametrize("exploit", ["pickle_beside", "pickle_in_place", "pickle_of_lightning",
                                     "pickle_under_another_name", "objects_of_numpy", "index_leads_out"])  # fmt: skip
def test_control_the_pickles_run(model, marker, exploit):
    MODELS[exploit](model, marker)
    new = [path for path in (*model.iterdir(), *model.parent.glob("*.dat"))
           if path.suffix in (".pkl", ".bin", ".ckpt", ".dat", ".npy")]  # fmt: skip
    for path in new:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=True)
        elif path.suffix == ".pkl":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    assert new and marker.exists()


@pytest.mark.parametrize(("exploit", "kind"), [("remote_model", "AutoModelForCausalLM"),
                                               ("remote_tokenizer", "AutoTokenizer")])  # fmt: skip
def test_control_remote_code_runs(model, marker, exploit, kind):
    import transformers

    MODELS[exploit](model, marker)
    with pytest.raises(AttributeError):  # the class is none; by then its file was imported
        getattr(transformers, kind).from_pretrained(model, trust_remote_code=True)
    assert marker.exists()


def test_what_is_no_poison(tmp_path):
    """Lengths of headers that begin like a pickle, words of a template that look like Python's, a plain array."""
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"pad": "p" * 557})
    assert (tmp_path / "model.safetensors").read_bytes()[:2] == b"\x80\x02"
    np.save(tmp_path / "ids.npy", np.arange(3))
    (tmp_path / "chat_template.jinja").write_text("{{ '__start__' }}{% for m in messages %}{{ m.content }}{% endfor %}")
    edit(tmp_path / "config.json", attn_implementation="sdpa", auto_map={})
    edit(tmp_path / "model.safetensors.index.json", weight_map={"x": "model.safetensors"})
    refuse_poison(tmp_path)


def test_all_faults_are_named(model, marker):
    for name in ("pickle_beside", "remote_model", "template"):
        MODELS[name](model, marker)
    with pytest.raises(PoisonedFolder) as refused:
        refuse_poison(model)
    for said in ("extra.pkl is a pickle", "modeling_evil.py is code", "config.json names code of its own (auto_map)",
                 "chat_template.jinja is a template"):  # fmt: skip
        assert said in str(refused.value)


@pytest.mark.parametrize("door", ["base", "distill"])
def test_the_command_ends_with_one_line(model, marker, tmp_path, door):
    MODELS["pickle_in_place"](model, marker)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"bases": {"evil": str(model)}, "distill": {"methods": {}}}))
    words = {"base": ["tasks.base", "params.yaml:bases.evil", "artifacts/base/evil"],
             "distill": ["tasks.teacher_cache", str(model)]}[door]  # fmt: skip
    done = command(*words)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not marker.exists()


def command(*words: str, **more) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"} | more
    return subprocess.run([sys.executable, "-m", *words], env=environment, text=True, capture_output=True, check=False)


# 2. Chat templates


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_template_that_leaves_its_sandbox(model, marker, escape):
    """It is refused with its folder; a tokenizer that has it all the same renders it in transformers' sandbox."""
    import jinja2
    from transformers import AutoTokenizer

    template = ESCAPES[escape].format(marker=marker)
    opened = AutoTokenizer.from_pretrained(model)
    opened.chat_template = template
    with pytest.raises((jinja2.exceptions.SecurityError, jinja2.exceptions.UndefinedError)):
        prompt_ids(opened, "Sell the bike.", "")
    assert not marker.exists()
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(PoisonedFolder, match=r"chat_template.jinja is a template that reaches"):
        open_causal(model)
    jinja2.Environment().from_string(template).render(messages=[])
    assert marker.exists()


# 3. Checkpoints, caches, tokens: what we wrote ourselves, and somebody changed


def test_a_poisoned_checkpoint_is_passed_over(tmp_path, marker, capsys):
    file = tmp_path / "step-000000001.safetensors"
    torch.save({"bomb": Bomb(marker)}, file)
    assert latest(tmp_path) is None and not marker.exists()
    assert f"{file} is corrupt" in capsys.readouterr().err
    torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    assert marker.exists()


def test_a_poisoned_cache_of_a_teacher(tmp_path, marker):
    """Also when the manifest was changed to fit."""
    from safetensors import SafetensorError

    from tasks.teacher_cache import FORMAT, MANIFEST, CacheBroken, TeacherCache

    shard = tmp_path / "shard-00000.safetensors"
    torch.save({"bomb": Bomb(marker)}, shard)
    facts = {"count": 2, "shard": 2, "numbered": True, "teacher": "a", "kept": {"needs": ["task"], "layers": {}}}
    told = {"file": shard.name, "bytes": shard.stat().st_size, "sha256": "0" * 64, "rows": 2, "tokens": 4}
    write_json(tmp_path / MANIFEST, {"format": FORMAT, "facts": facts, "shards": [told]})
    with pytest.raises(CacheBroken, match="is corrupt"):
        TeacherCache(tmp_path)
    write_json(tmp_path / MANIFEST, {"format": FORMAT, "facts": facts, "shards": [told | {"sha256": digest(shard)}]})
    with pytest.raises((CacheBroken, SafetensorError, TypeError)):
        TeacherCache(tmp_path).row(0)
    assert not marker.exists()


def test_poisoned_tokens(tmp_path, marker):
    write(tmp_path, [[[5, 6, 7], [8]], [[9, 10]]], vocabulary=100)
    file = tmp_path / "ids.npy"
    np.save(file, np.array([Bomb(marker)] * 6, dtype=object), allow_pickle=True)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["files"]["ids.npy"] |= {"bytes": file.stat().st_size, "sha256": digest(file)}
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(ValueError, match=r"[Oo]bjects|pickle"):
        Shards.open(tmp_path)
    assert not marker.exists()
    np.load(file, allow_pickle=True)
    assert marker.exists()


def test_poisoned_features(tmp_path, marker):
    from tasks.batches import load_split

    for kind in ("categorical", "numerical"):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "train.npy", np.array([[Bomb(marker)]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        load_split(tmp_path, "train")
    assert not marker.exists()


# 4. Data sets


def poisoned_parquet(file: Path, marker: Path, text: bool) -> None:
    """A sound table whose metadata hold pickles where pandas and the old PyExtensionType of Arrow looked for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    bomb = base64.b64encode(pickle.dumps(Bomb(marker))) if text else pickle.dumps(Bomb(marker))
    odd = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bomb}
    pairs = {"source": ["A red bicycle in good shape"] * 4, "target": ["Ein rotes Fahrrad in gutem Zustand"] * 4,
             "source_language": ["en"] * 4, "target_language": ["de"] * 4}  # fmt: skip
    fields = [pa.field(name, pa.string(), metadata=odd if name == "source" else None) for name in pairs]
    schema = pa.schema(fields, metadata={b"pandas": b'{"columns": []}', b"PANDAS_ATTRS": bomb})
    pq.write_table(pa.table(list(map(pa.array, pairs.values())), schema=schema), file)


@pytest.mark.parametrize("text", [True, False])
def test_pickles_in_a_parquet_file_are_bytes(tmp_path, marker, text):
    import pyarrow.parquet as pq

    file = tmp_path / "source/pairs.parquet"
    file.parent.mkdir()
    poisoned_parquet(file, marker, text)
    with pytest.raises(DataRejected) as rejected:  # four equal pairs break rules of their own; bytes are no UTF-8
        fetch("parallel", {"source": str(file.parent)}, tmp_path / "landing/parallel", tmp_path / "report")
    assert ("rules broken on 4 rows" if text else "unreadable footer") in str(rejected.value)
    assert pq.read_table(file)["source"][0].as_py() == "A red bicycle in good shape"
    assert not marker.exists()
    found = pq.read_schema(file).metadata[b"PANDAS_ATTRS"]
    pickle.loads(base64.b64decode(found) if text else found)
    assert marker.exists()


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl", "pairs.csv", "pairs.jsonl.gz"])
def test_a_pickle_among_raw_files_is_no_data(tmp_path, marker, name):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / name).write_bytes(pickle.dumps(Bomb(marker)))
    (tmp_path / "source/conftest.py").write_text(_exploits.code(marker))
    with pytest.raises((DataRejected, OSError)):
        fetch("parallel", {"source": str(tmp_path / "source")}, tmp_path / "landing/parallel", tmp_path / "report")
    assert not (tmp_path / "landing").exists() or not list((tmp_path / "landing").rglob("*.*"))
    assert not marker.exists()


# 5. Settings


TAG = '!!python/object/apply:os.system ["touch {marker}"]'


def test_tags_of_python_in_yaml_are_refused(tmp_path, marker):
    (tmp_path / "params.yaml").write_text(f"recommend: {TAG.format(marker=marker)}\n")
    with pytest.raises(SettingsError, match="params.yaml is not plain YAML"):
        read("params.yaml:recommend")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(SettingsError, match="not plain YAML"):
        refuse_others()
    (tmp_path / "dvc.lock").write_text(f"stages: {TAG.format(marker=marker)}\n")
    (tmp_path / "params.yaml").write_text("tasks: {}\n")
    assert prune() == []
    assert not marker.exists()
    yaml.unsafe_load((tmp_path / "dvc.lock").read_text())
    assert marker.exists()


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "dvc.lock", "data.dvc"])
def test_dvc_reads_no_tags_either(tmp_path, marker, file, monkeypatch):
    dvc_here(tmp_path, monkeypatch)
    sound = {"params.yaml": "tasks: {a: {}}\n", "data.dvc": "outs: [{path: data}]\n",
             "dvc.yaml": "vars: [params.yaml]\nstages: {one: {cmd: echo '${tasks}'}}\n",
             "dvc.lock": "schema: '2.0'\nstages: {}\n"}  # fmt: skip
    for name, text in (sound | {file: f"tasks: {TAG.format(marker=marker)}\n"}).items():
        (tmp_path / name).write_text(text)
    assert command("dvc", "repro", "one" if file != "data.dvc" else "data.dvc").returncode != 0
    assert not marker.exists()


def dvc_here(folder: Path, monkeypatch) -> None:
    """What `dvc init --no-scm` leaves."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site"))
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = True\n    analytics = false\n")


EXPRESSIONS = (
    "__import__('os').system('touch marker')",
    "exec('import os')",
    "event_id.__class__ = 'x'",
    "event_id = (select * from read_csv('params.yaml'))",
    "(select count(*) from read_parquet('params.yaml')) > 1",
    "(select 1 from scan_csv('params.yaml')) = 1",
    "event_id in (select line from read_ndjson('params.yaml'))",
    "price > 1; copy (select 1) to 'marker'",
    "price > 1 union select * from read_json('params.yaml')",
    'map_elements(price, \'lambda x: open("marker", "w")\') > 1',
    "map_batches(price) is not null",
    "pipe(price, 'os.system') is null",
    "price::varchar = 'x'",
    "regexp_replace(event_id, '.*', '') = ''",
    "$(touch marker) = 1",
    "`touch marker` = 1",
    "event_id = 'a' -- '",
    "event_id = 'a' /* x */",
)


@pytest.mark.parametrize("place", ["given", "positive"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_reads_the_columns_of_a_row_and_nothing_else(tmp_path, expression, place):
    schema = {"event_id": pl.String, "price": pl.Float64}
    declared = {"given": "price > 1", "positive": "price > 2", "within": "session"} | {place: expression}
    before = set(tmp_path.iterdir())
    with pytest.raises(TaskError, match=f"{place} `"):
        Task.read("evil", declared, schema, [], ["a"], schema)
    assert set(tmp_path.iterdir()) == before


def test_control_sql_of_polars_reads_files(tmp_path):
    (tmp_path / "secret.csv").write_text("word\nswordfish\n")
    found = pl.SQLContext().execute("select * from read_csv('secret.csv')", eager=True)
    assert found["word"].to_list() == ["swordfish"]


@pytest.mark.parametrize("name", ["../../evil", "minilm/../../evil", "os", "..evil", "tasks.command"])
def test_names_of_methods_and_writers_import_nothing_else(tmp_path, marker, name):
    (tmp_path / "evil.py").write_text(_exploits.code(marker))
    with pytest.raises(LookupError):
        build("distill", name)
    with pytest.raises(SettingsError, match="no writer"):
        open_writer({name: {}})
    assert not marker.exists()


GRAPH = """
vars: [params.yaml]
stages:
  prompt:
    foreach: ${tasks}
    do: {cmd: "echo params.yaml:tasks.${key} ${item.from} ${data}"}
"""


@pytest.mark.parametrize("params", [
    {"tasks": {"a; touch marker; echo": {"from": "b"}}, "data": "d"},
    {"tasks": {"a": {"from": "$(touch marker)"}}, "data": "d"},
    {"tasks": {"a": {"from": "b"}}, "data": "d\ntouch marker"},
    {"tasks": {"a": {"from": "b"}}, "data": "`touch marker`"},
])  # fmt: skip
def test_a_name_that_the_shell_would_run_is_refused(tmp_path, params):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    with pytest.raises(NotPlain, match="1 names or values would be run by the shell"):
        refuse_others()


def test_control_dvc_hands_names_to_the_shell(tmp_path, marker, monkeypatch):
    dvc_here(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tasks": {"a; touch marker": {"from": "b"}}, "data": "d"}))
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    command("dvc", "repro")
    assert marker.exists()


@pytest.mark.parametrize("value", ["..", "../../etc", "a b", "-c", "a'b", 'a"b', "a&b", "a|b", "a>b", "~", "a*", ""])
def test_words_that_are_not_plain(tmp_path, value):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tasks": {"a": {"from": value}}, "data": "d"}))
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    with pytest.raises(NotPlain, match=re.escape(f"tasks.a.from: {value!r}")):
        refuse_others()


def test_the_names_of_this_checkout_are_plain():
    assert refuse_others(ROOT / "dvc.yaml", ROOT / "params.yaml") > 10


def test_flows_and_dvc_repro_look_at_the_names_first(tmp_path, marker):
    """The stage `guard`, which runs before data come in, and what every flow runs DVC through."""
    from tasks.repro import dvc

    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"tasks": {"a; touch marker": {"from": "b"}}, "data": "d"}))
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    with pytest.raises(NotPlain):
        dvc("repro")
    done = command("tasks.guard", "data", "landing")
    assert done.returncode == 1 and "would be run by the shell" in done.stderr
    assert not marker.exists()


# 6. Our own code


def calls(tree: ast.Module):
    """(call, name as written) of every call of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def dotted(node: ast.expr) -> str:
    """`a.b.c` as written; of a chain that begins with a call or an index, what follows it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def given(call: ast.Call, names: dict[str, dict]) -> dict[str, object]:
    """Keyword arguments that are constants, those of `**names` included where a dict literal of the file tells them."""
    found = {}
    for word in call.keywords:
        if word.arg is None and isinstance(word.value, ast.Name):
            found |= names.get(word.value.id, {})
        elif isinstance(word.value, ast.Constant):
            found[word.arg] = word.value.value
    return found


def literals(tree: ast.Module) -> dict[str, dict]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            entries = zip(node.value.keys, node.value.values, strict=True)
            plain = lambda each: isinstance(each, ast.Constant)
            told = {key.value: value.value for key, value in entries if plain(key) and plain(value)}
            found[node.targets[0].id] = told
    return found


RUNS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
        "yaml.unsafe_load", "yaml.full_load", "joblib.load", "dill.load", "cloudpickle.load", "marshal.loads",
        "shelve.open", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load"}  # fmt: skip
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def safe_loader(file: Path, call: ast.Call) -> bool:
    """Whether a `yaml.load` is ruamel's of a `yaml = YAML()`, or is given PyYAML's safe loader."""
    text = file.read_text()
    said = " ".join(ast.unparse(each) for each in [*call.args[1:], *(word.value for word in call.keywords)])
    named = " ".join(re.findall(rf"^{re.escape(said)} = (.+)$", text, re.M)) if said.isidentifier() else said
    return "SafeLoader" in named or bool(re.search(r"\byaml(, \w+)* = YAML\(\)", text))


def careless(file: Path) -> list[str]:
    """What in a file could run what it reads."""
    tree = ast.parse(file.read_text())
    found, names = [], literals(tree)
    for call, name in calls(tree):
        told = given(call, names)
        said = f"{file.name}:{call.lineno} {name}"
        if name in RUNS or told.get("shell") is True or told.get("trust_remote_code") is True:
            found.append(said)
        if name.startswith("torch.load") and told.get("weights_only") is not True:
            found.append(said)
        if name in ("np.load", "numpy.load") and told.get("allow_pickle") is not False:
            found.append(said)
        if name in ("np.save", "np.savez") and told.get("allow_pickle") is True:
            found.append(said)
        if name == "yaml.load" and not safe_loader(file, call):
            found.append(said)
        if name.endswith((".Environment", "SQLContext", "extractall", "unpack_archive")):
            found.append(said)
        if name == "YAML" and any(word.value.value == "unsafe" for word in call.keywords if word.arg == "typ"):
            found.append(said)
        if name.endswith(".from_pretrained") and name != "nn.Embedding.from_pretrained":
            weights = not re.search(r"Tokenizer|Config|Processor", name)
            wanted = LOCAL | ({"use_safetensors": True} if weights else {})
            if lacks := [key for key, value in wanted.items() if told.get(key) is not value]:
                found.append(f"{said} lacks {', '.join(lacks)}")
    return found


def test_our_code_reads_nothing_carelessly():
    files = [file for folder in ("models", "tasks", "flows") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 200
    assert [said for file in files for said in careless(file)] == []


@pytest.mark.parametrize("line", [
    "pickle.load(file)", "torch.load(file)", "torch.load(file, weights_only=False)", "np.load(file)", "eval('1')",
    "np.load(file, allow_pickle=True)", "yaml.load(text)", "exec(text)", "subprocess.run('ls', shell=True)",
    "AutoModel.from_pretrained(folder)", "AutoModel.from_pretrained(folder, local_files_only=True)",
    "AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)",
    "AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=True)", "os.system('ls')",
    "own = {'local_files_only': True}\nAutoConfig.from_pretrained(folder, **own)", "YAML(typ='unsafe')",
    "jinja2.Environment()", "pl.SQLContext()", "LOADER = yaml.Loader\nyaml.load(text, LOADER)",
])  # fmt: skip
def test_the_careless_are_seen(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert careless(tmp_path / "x.py")


@pytest.mark.parametrize("line", [
    "torch.load(file, weights_only=True)", "np.load(file, allow_pickle=False)", "yaml.safe_load(text)", "model.eval()",
    "AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)", "re.compile('a')", "YAML()",
    "LOADER = yaml.CSafeLoader\nyaml.load(text, LOADER)", "yaml = YAML()\nyaml.load(text)",
    "own = {'local_files_only': True, 'trust_remote_code': False, 'use_safetensors': True}\n"
    "AutoModel.from_pretrained(folder, **own)",
])  # fmt: skip
def test_the_careful_pass(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert not careless(tmp_path / "x.py")


def test_no_secret_stands_in_the_settings():
    """No entry of the settings looks like a key, and nobody's name of a host or account is in them."""
    text = "\n".join((ROOT / name).read_text() for name in ("params.yaml", "prefect.yaml", "dvc.yaml", ".dvc/config"))
    assert not re.search(r"(?i)(password|secret|token|api_key)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{8,}", text)
    assert not re.search(r"\b(sk-|hf_|ghp_|AKIA)[A-Za-z0-9]{8,}|//[^/\s]+:[^/\s]+@", text)


def test_every_pickle_switch_is_off():
    from tasks.command import quiet

    quiet()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false" in (ROOT / "Makefile").read_text()
