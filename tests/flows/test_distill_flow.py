"""The flow `distill`: the teacher, then its students; one that fails holds up no other."""

from pathlib import Path

import pytest
import yaml
from _inline import Inline

from flows import distill as module
from flows.language import ModelsFailed
from tasks.files import write_json
from tasks.repro import StageFailed

STEPS = {kind: (f"parts_{kind}", kind, f"gate_{kind}", f"promote_{kind}") for kind in ("distill", "mix")}


@pytest.fixture
def stages(made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    for name in ("student", "whole"):
        monkeypatch.setattr(module, name, Inline(getattr(module, name).fn))
    return made


def chain(kind: str, name: str) -> list[str]:
    return [f"-s {step}@{name}" for step in STEPS[kind]]


def test_order(stages):
    ran = module.distill.fn()
    assert stages == ["-s registry", "promote_finetune@category", "ingest@sample", *chain("distill", "kd"),
                      *chain("distill", "pkd"), *chain("mix", "tiny")]  # fmt: skip
    assert ran["tiny"] == ["parts_mix@tiny", "mix@tiny", "gate_mix@tiny", "promote_mix@tiny"]


def test_students_of_students_come_last_and_bring_their_teachers(stages):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["distill"] |= {"chains": {"half": {"teacher": {"from": "distill", "name": "kd"}}}, "several": {"both": {}},
                          "specific": {"shop": {"start": {"from": "chain", "name": "half"}}}}  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stages.broken = {"promote_chain@half"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 6 students failed.*half"):
        module.distill.fn()
    assert stages[-3:] == ["promote_chain@half", "promote_several@both", "promote_specific@shop"]


def test_what_has_other_teachers_comes_last_and_may_share_a_name(stages):
    params = yaml.safe_load(Path("params.yaml").read_text())
    more = {"reasons": {"match": {}}, "relevance": {"match": {}}, "tasks": {"shop": {}}, "served": {"category": {}}}
    params["distill"] |= {"methods": {}, "mixes": {}, "examples": {"few": {}}, **more}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stages.broken = {"promote_relevance@match"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 5 students failed.*promote_relevance@match"):
        module.distill.fn()
    assert stages == ["-s registry", "generate_examples@few", "generate_reasons@match", "promote_relevance@match",
                      "distill_tasks@shop", "promote_tasks@category"]  # fmt: skip
    stages.broken = set()
    assert set(module.distill.fn()) == {"teacher", "generate_examples@few", "generate_reasons@match",
                                        "match", "distill_tasks@shop", "category"}  # fmt: skip


def test_every_stage_of_students_is_run_by_the_flow():
    """A stage that the flow forgot would go stale unseen."""
    graph = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]
    parts = {
        stage["foreach"][len("${distill.") : -1] for stage in graph.values() if "${distill." in stage.get("foreach", "")
    }
    assert parts - {"teachers"} == {*module.PARTS.values(), *module.LATER.values(), *module.OTHERS.values()}
    assert {*module.PARTS, *module.LATER, *module.OTHERS} <= set(graph)


def test_a_failed_student_holds_up_no_other(stages):
    stages.broken = {"distill@kd"}
    with pytest.raises(ModelsFailed, match=r"(?s)1 of 3 students failed.*kd.*stage distill@kd failed: it broke"):
        module.distill.fn()
    assert stages[-4:] == chain("mix", "tiny")
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
        "| kd | parts_distill@kd, distill@kd, gate_distill@kd, promote_distill@kd | open | promoted | 2 | yes |"
        in capsys.readouterr().out
    )
