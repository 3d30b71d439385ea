"""Teachers that write: templates, a local model, an address; records, resume, retries, refusals."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import _tuned
import pytest

from tasks.settings import SettingsError
from tasks.writers import endpoint
from tasks.writers._writer import Prompt, Writer, WriterRefused, filtered, open_writer, write_all, writers

PROMPTS = [Prompt(f"row {n}", f"Sell the lamp number {n}.", {"thing": f"lamp {n}"}) for n in range(7)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


class Counting(Writer):
    """Writes the prompt's length; stops the run when asked to."""

    teacher, licence, batch = "counting", "CC0-1.0", 2

    def __init__(self, until=None, teacher="counting"):
        self.asked, self.until, self.teacher = [], until, teacher

    def write(self, prompts):
        if self.until is not None and len(self.asked) >= self.until:
            raise ConnectionError("gone")
        self.asked += [prompt.key for prompt in prompts]
        return [f"{len(prompt.text)} «ü»\n{prompt.key}" for prompt in prompts]


def test_records_say_where_a_text_comes_from(tmp_path):
    frame = write_all(Counting(), PROMPTS, "v1", tmp_path / "written.jsonl")
    assert frame.columns == ["key", "text", "teacher", "version", "licence", "prompt"]
    assert frame["key"].to_list() == [prompt.key for prompt in PROMPTS]
    assert frame.row(0, named=True)["text"] == "23 «ü»\nrow 0"
    assert set(frame["teacher"]) == {"counting"} and set(frame["licence"]) == {"CC0-1.0"}
    lines = (tmp_path / "written.jsonl").read_text().splitlines()
    assert len(lines) == 7 and json.loads(lines[3]) == frame.row(3, named=True)


def test_a_stopped_run_asks_for_the_rest_alone(tmp_path):
    file = tmp_path / "written.jsonl"
    with pytest.raises(ConnectionError):
        write_all(Counting(until=4), PROMPTS, "v1", file)
    with open(file, "a") as lines:
        lines.write('{"key": "row 4", "text": "cut sh')  # killed while it wrote
    rest = Counting()
    frame = write_all(rest, PROMPTS, "v1", file)
    assert rest.asked == ["row 4", "row 5", "row 6"]
    assert frame.equals(write_all(Counting(), PROMPTS, "v1", tmp_path / "whole.jsonl"))
    again = Counting()
    assert write_all(again, PROMPTS, "v1", file).equals(frame) and again.asked == []


def test_another_wording_version_or_teacher_writes_anew(tmp_path):
    file = tmp_path / "written.jsonl"
    write_all(Counting(), PROMPTS, "v1", file)
    for writer, prompts, version, asked in (
        (Counting(), [*PROMPTS[:-1], Prompt("row 6", "Another wording.")], "v1", 1),
        (Counting(), PROMPTS, "v2", 7),
        (Counting(teacher="another"), PROMPTS, "v1", 7),
    ):
        write_all(writer, prompts, version, file)
        assert len(writer.asked) == asked
    with pytest.raises(ValueError, match="1 keys belong to several prompts, such as 'row 0'"):
        write_all(Counting(), [*PROMPTS, PROMPTS[0]], "v1", file)


def test_what_is_dropped_is_counted():
    assert filtered([None, "short", None, "short", "twice"]) == {
        "asked": 5, "kept": 2, "dropped": {"short": 2, "twice": 1},
    }  # fmt: skip


def test_fewer_texts_than_prompts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "write", lambda self, prompts: ["one"])
    with pytest.raises(WriterRefused, match="1 texts for 2 prompts"):
        write_all(Counting(), PROMPTS, "v1", tmp_path / "written.jsonl")


# ---------------------------------------------------------------- templates


def test_templates_are_a_function_of_the_key():
    chosen = {"templates": {"patterns": ["A {thing}.", "The {thing}!"], "seed": 1}}
    writer = open_writer(chosen)
    texts = writer.write(PROMPTS)
    assert texts == open_writer(chosen).write(PROMPTS[::-1])[::-1] and len({text[0] for text in texts}) == 2
    assert texts[0] in ("A lamp 0.", "The lamp 0!") and writer.licence == "CC0-1.0"
    assert writer.teacher != open_writer({"templates": {"patterns": ["A {thing}."], "seed": 1}}).teacher
    with pytest.raises(WriterRefused, match="the prompt has thing"):
        open_writer({"templates": {"patterns": "{other}"}}).write(PROMPTS)


def test_what_a_writer_cannot_be():
    assert writers() == ["endpoint", "local", "recorded", "templates"]
    for chosen, words in (
        ({"template": {}}, "closest: templates"),
        ({}, "one name with its settings"),
        ("templates", "one name with its settings"),
        ({"templates": {"pattern": "x"}}, "it has: patterns"),
        ({"templates": {"patterns": []}}, "needs patterns"),
        ({"local": {"folder": "absent", "licence": "MIT"}}, "absent is no folder"),
        ({"local": {"folder": "."}}, "licence"),
        ({"endpoint": {"address": "localhost", "model": "m", "licence": "x"}}, "begins with http"),
        ({"endpoint": {"address": "http://localhost", "model": "m", "licence": "x", "tries": 0}}, "tries must be"),
    ):
        with pytest.raises(SettingsError, match=words):
            open_writer(chosen)


# ---------------------------------------------------------------- an address


@pytest.fixture
def server(monkeypatch):
    """A stand-in: answers in upper case; `server.plan` holds status codes for the next requests."""
    waits = []
    monkeypatch.setattr(endpoint.time, "sleep", waits.append)

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.seen.append((self.path, dict(self.headers), body))
            code = made.plan.pop(0) if made.plan else 200
            said = {"choices": [{"message": {"content": body["messages"][-1]["content"].upper()}}]}
            content = json.dumps(said if code == 200 else {"error": "mended soon"}).encode()
            if code == 418:
                code, content = 200, b"a page"
            self.send_response(code)
            self.send_header("Retry-After", "3")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *given):
            pass

    made = HTTPServer(("127.0.0.1", 0), Answers)
    made.seen, made.plan, made.waits = [], [], waits
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def of(server, **settings):
    told = {"address": f"http://127.0.0.1:{server.server_port}/v1", "model": "m-1", "licence": "Apache-2.0"}
    return open_writer({"endpoint": told | {"parallel": 1} | settings})


def test_an_address_is_asked_in_the_chat_protocol(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    writer = of(server, system="Be brief.", new_tokens=9, parallel=2)
    assert writer.write(PROMPTS[:3]) == [prompt.text.upper() for prompt in PROMPTS[:3]]
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["max_tokens"] == 9
    assert (body["model"], body["temperature"]) == ("m-1", 0.0) and "secret" not in writer.teacher


def test_a_busy_server_is_asked_again(server):
    server.plan = [503, 429]
    assert of(server, wait=1.0).write(PROMPTS[:1]) == [PROMPTS[0].text.upper()]
    assert server.waits == [3.0, 3.0]  # what it asked for, more than our own 1 and 2
    server.plan = [500] * 5
    with pytest.raises(ConnectionError, match="no answer to prompt row 0 in 3 tries: it answered 500"):
        of(server, tries=3).write(PROMPTS[:1])


def test_what_trying_again_cannot_mend(server):
    server.plan = [401]
    with pytest.raises(WriterRefused, match="answered 401 to prompt row 0"):
        of(server).write(PROMPTS[:1])
    server.plan = [418]
    with pytest.raises(WriterRefused, match="does not speak the chat protocol, it answered: a page"):
        of(server).write(PROMPTS[:1])
    assert len(server.seen) == 2 and server.waits == []


def test_nobody_there(server):
    port, writer = server.server_port, of(server, tries=2)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=rf"127.0.0.1:{port}.* in 2 tries"):
        writer.write(PROMPTS[:1])


# ---------------------------------------------------------------- a local model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """gpt2/ and t5/ of transformers, bert/ that cannot write, and lstm/ of ours."""
    import torch
    from safetensors.torch import save_file

    from models.components._model import assemble
    from tasks.files import write_json

    root = tmp_path_factory.mktemp("local")
    for family in ("gpt2", "t5", "bert"):
        (root / family).mkdir()
        _tuned.write_model(root / family, family)
    (root / "lstm").mkdir()
    recipe = {"width": 12, "vocabulary": _tuned.write_tokenizer(root / "lstm"), "dropout": 0.0,
              "embedding": {"word": {}, "norm": "none"}, "encoder": {"lstm": {"layers": 1}},
              "target": {"lm": {}}}  # fmt: skip
    torch.manual_seed(0)
    save_file(assemble(recipe).state_dict(), root / "lstm/model.safetensors")
    write_json(root / "lstm/recipe.json", recipe)
    return root


@pytest.mark.parametrize("family", ["gpt2", "t5", "lstm"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_depends_on_its_prompt_alone(folders, family, temperature):
    told = {"folder": str(folders / family), "licence": "MIT", "new_tokens": 6, "temperature": temperature}
    writer = open_writer({"local": told | {"batch": 3}})
    prompts = [Prompt(prompt.key, prompt.text + " red" * n) for n, prompt in enumerate(PROMPTS[:4])]
    texts = [text for prompt in prompts for text in writer.write([prompt])]
    together = []
    for first in range(0, 4, writer.batch):
        together += writer.write(prompts[first : first + writer.batch])
    assert together == texts
    assert writer.teacher.startswith(f"{family}@") and writer.licence == "MIT"
    other = open_writer({"local": told | {"seed": 1}})
    assert other.teacher != writer.teacher
    assert (other.write(prompts[:1]) != texts[:1]) is bool(temperature)


def test_greedy_words_are_the_models_own(folders):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folders / "gpt2").eval()
    tokenizer = AutoTokenizer.from_pretrained(folders / "gpt2")
    ids = torch.tensor([tokenizer("a red lamp")["input_ids"][:-1]])  # [CLS] and the words, without [SEP]
    for _ in range(4):
        with torch.no_grad():
            word = model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, word], 1)
    writer = open_writer({"local": {"folder": str(folders / "gpt2"), "licence": "MIT", "new_tokens": 4}})
    assert writer.write([Prompt("x", "a red lamp")]) == [tokenizer.decode(ids[0, -4:], skip_special_tokens=True)]


def test_a_prompt_beyond_the_models_places(folders):
    writer = open_writer({"local": {"folder": str(folders / "gpt2"), "licence": "MIT", "new_tokens": 90}})
    with pytest.raises(WriterRefused, match=r"prompt x has \d+ tokens, and new_tokens is 90, but .* has places for 96"):
        writer.write([Prompt("x", "a red lamp and a green chair and a table")])


def test_what_cannot_write(folders):
    writer = open_writer({"local": {"folder": str(folders / "bert"), "licence": "MIT"}})
    with pytest.raises(WriterRefused, match="which writes no text"):
        writer.write(PROMPTS[:1])
