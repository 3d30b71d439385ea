"""The flow `distill`: the teacher, then its students; one that fails holds up no other."""

from concurrent.futures import Future
from pathlib import Path

import pytest
import yaml

from flows import distill as module
from flows.language import ModelsFailed
from tasks.files import write_json
from tasks.make import StageFailed

STEPS = {"distill": ("distill", "gate_distill", "promote_distill"), "mix": ("mix", "gate_mix", "promote_mix")}
CHAIN = module.student.fn


class Inline:
    """Stands for a Prefect task: runs its function at once, no server."""

    class Future(Future):
        def result(self, raise_on_failure: bool = True):
            return self.exception() or super().result()

    def submit(self, *given) -> Future:
        future = self.Future()
        try:
            future.set_result(CHAIN(*given))
        except StageFailed as error:
            future.set_exception(error)
        return future


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(module, "student", Inline())
    return made


def chain(kind: str, name: str) -> list[str]:
    return [f"-s {step}@{name}" for step in STEPS[kind]]


def test_order(stages):
    ran = module.distill.fn()
    assert stages == ["-s registry", "promote_finetune@category", "ingest@sample", *chain("distill", "kd"),
                      *chain("distill", "pkd"), *chain("mix", "tiny")]  # fmt: skip
    assert ran["tiny"] == ["mix@tiny", "gate_mix@tiny", "promote_mix@tiny"]


def test_a_failed_student_holds_up_no_other(stages):
    stages.broken = {"distill@kd"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 3 students failed.*kd.*stage distill@kd failed: it broke"):
        module.distill.fn()
    assert stages[-3:] == chain("mix", "tiny")
    assert "-s gate_distill@kd" not in stages


def test_nothing_is_taught_without_the_teacher(stages):
    stages.broken = {"promote_finetune@category"}
    with pytest.raises(StageFailed):
        module.distill.fn()
    assert stages == ["-s registry", "promote_finetune@category"]


def test_without_students_no_teacher_is_made(stages):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["distill"] |= {"methods": {}, "mixes": {}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert module.distill.fn() == {"teacher": []}
    assert stages == ["-s registry"]


def test_report(stages, capsys):
    write_json("artifacts/language/gate/kd/verdict.json", {"passed": True})
    write_json("artifacts/language/receipt/kd.json", {"status": "promoted", "version": 2, "champion": 2})
    module.distill.fn()
    assert (
        "| kd | distill@kd, gate_distill@kd, promote_distill@kd | open | promoted | 2 | yes |"
        in capsys.readouterr().out
    )
