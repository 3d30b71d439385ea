"""The bill of materials, licences, vulnerabilities and hashes: by hand, on made-up packages and records."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tasks import supply_chain as module
from tasks.supply_chain import (
    UNKNOWN,
    Package,
    Refused,
    check_hashes,
    installed,
    licence_of,
    licences,
    osv_records,
    pins,
    vulnerabilities,
)

ROOT = Path(__file__).parents[2]


def made(tmp_path: Path, name: str, *lines: str, text: str = "") -> metadata.Distribution:
    """An installed distribution with these lines of metadata."""
    folder = tmp_path / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]) + "\n"
    )
    (folder / "LICENSE").write_text(text)
    (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n{folder.name}/LICENSE,,\n")
    return metadata.Distribution.at(folder)


MIT = "Permission is hereby granted, free of\ncharge, to any person obtaining a copy"
BSD3 = "Redistribution and use in source and binary forms ...\nNeither the name of the copyright holder"
BSD2 = "Redistribution and use in source and binary forms, with or without modification, are permitted"


@pytest.mark.parametrize(("lines", "text", "expected"), [
    (["License-Expression: MIT AND Apache-2.0"], "", "MIT AND Apache-2.0"),
    (["License: Apache License 2.0"], "", "Apache-2.0"),
    (["License: bsd-3-clause"], "", "BSD-3-Clause"),
    (["License: BSD", "Classifier: License :: OSI Approved :: BSD License"], BSD3, "BSD-3-Clause"),
    (["License: BSD"], BSD2, "BSD-2-Clause"),
    ([], MIT, "MIT"),
    (["Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"], MIT, "MPL-2.0"),
    (["Classifier: License :: OSI Approved :: MIT License",
      "Classifier: License :: OSI Approved :: ISC License (ISCL)"], "", "ISC OR MIT"),
    (["Classifier: License :: OSI Approved :: GNU Affero General Public License v3"], "", "AGPL-3.0-only"),
    (["License: All rights reserved"], "", UNKNOWN),
    ([], "", UNKNOWN),
])  # fmt: skip
def test_licences_of_metadata(tmp_path, lines, text, expected):
    assert licence_of(made(tmp_path, "x", *lines, text=text)) == expected


@pytest.mark.parametrize(("licence", "standing"), [
    ("MIT", "permissive"),
    ("MIT AND (Apache-2.0 OR BSD-2-Clause)", "permissive"),
    ("GPL-2.0-only", "copyleft"),
    ("GPL-2.0-only WITH GCC-exception-2.0", "copyleft"),
    ("GPL-2.0-only OR EPL-1.0", "copyleft"),
    ("Artistic-1.0-Perl OR GPL-2.0-or-later", "permissive"),
    ("MIT AND LGPL-3.0-only", "copyleft"),
    ("AGPL-3.0-only", "refused"),
    ("AGPL-3.0-only OR MIT", "permissive"),
    ("AGPL-3.0-only AND MIT", "refused"),
    ("MIT AND (AGPL-3.0-only OR SSPL-1.0)", "refused"),
    ("AGPL-3.0-only AND (MIT OR Apache-2.0)", "refused"),
    ("SSPL-1.0", "refused"),
    (UNKNOWN, "refused"),
])  # fmt: skip
def test_where_a_licence_stands(licence, standing):
    assert Package("x", "1", licence).standing == standing


def test_the_bill_of_materials(tmp_path):
    found = [Package("Beta.Two", "2.0", "MIT OR ISC", ("alpha",)), Package("alpha", "1.0", "MIT")]
    assert licences(tmp_path, found) == {"refused": 0, "copyleft": 0, "permissive": 2}
    bom = json.loads((tmp_path / "bom.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    assert bom["components"] == [
        {"type": "library", "bom-ref": "pkg:pypi/alpha@1.0", "name": "alpha", "version": "1.0",
         "purl": "pkg:pypi/alpha@1.0", "licenses": [{"license": {"id": "MIT"}}]},
        {"type": "library", "bom-ref": "pkg:pypi/beta-two@2.0", "name": "Beta.Two", "version": "2.0",
         "purl": "pkg:pypi/beta-two@2.0", "licenses": [{"expression": "MIT OR ISC"}]},
    ]  # fmt: skip
    assert bom["dependencies"][-1] == {"ref": "pkg:pypi/beta-two@2.0", "dependsOn": ["pkg:pypi/alpha@1.0"]}
    before = (tmp_path / "bom.json").read_bytes()
    licences(tmp_path, found[::-1])
    assert (tmp_path / "bom.json").read_bytes() == before
    assert "| Beta.Two | 2.0 | MIT OR ISC | permissive |" in (tmp_path / "licences.md").read_text()


def test_a_refused_licence_is_named_and_written(tmp_path):
    with pytest.raises(Refused, match=r"2 packages .* evil 1 \(AGPL-3.0-only\); odd 2 \(LicenseRef-unknown\)"):
        licences(tmp_path, [Package("fine", "3", "MIT"), Package("odd", "2"), Package("evil", "1", "AGPL-3.0-only")])
    assert (tmp_path / "licences.md").read_text().splitlines()[6].startswith("| evil | 1 | AGPL-3.0-only | refused")
    assert json.loads((tmp_path / "bom.json").read_text())["components"][2]["licenses"] == [
        {"license": {"name": "unknown"}}
    ]


def test_this_environment_is_as_pinned_and_may_be_used(tmp_path):
    counts = licences(tmp_path, installed(pins(ROOT / "constraints.txt")))
    assert counts["refused"] == 0 and counts["permissive"] > 200
    with pytest.raises(Refused, match="nothing-like-this is not installed; pytest is .*, pinned is 0.1"):
        installed({"nothing-like-this": "1", "pytest": "0.1"})


PINNED = {"Some.Package": "1.4.2", "other": "2.0rc1", "local": "3.0.post1"}


def record(*events: dict, name: str = "some-package", versions: tuple[str, ...] = (), **more) -> dict:
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "versions": list(versions),
                "ranges": [{"type": "ECOSYSTEM", "events": list(events)}] if events else []}  # fmt: skip
    return {"id": "GHSA-1", "modified": "2026-11-01T00:00:00Z", "affected": [affected]} | more


@pytest.mark.parametrize(("told", "hit"), [
    (record({"introduced": "0"}, {"fixed": "1.4.3"}), True),
    (record({"introduced": "0"}, {"fixed": "1.4.2"}), False),  # a fix is no longer affected
    (record({"introduced": "0"}, {"last_affected": "1.4.2"}), True),  # the last one still is
    (record({"introduced": "0"}, {"last_affected": "1.4.1"}), False),
    (record({"introduced": "1.4.2"}), True),
    (record({"introduced": "1.10"}), False),  # as numbers, not as text
    (record({"introduced": "0"}, {"fixed": "1.10"}), True),
    (record({"fixed": "1.2"}, {"introduced": "0"}, {"introduced": "1.4"}, {"fixed": "1.5"}), True),  # in any order
    (record({"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "1.5"}), False),  # between two ranges
    (record({"introduced": "0"}, {"limit": "1.4"}), False),
    (record({"introduced": "0"}, {"limit": "1.5"}), True),
    (record(versions=("1.4.1", "1.4.2")), True),
    (record(versions=("1.4.2.0",)), True),  # an equal version
    (record(versions=("1.4",)), False),
    (record({"introduced": "0"}, name="Some_Package"), True),  # names are compared as PyPI does
    (record({"introduced": "0"}, name="some-package-two"), False),
    (record({"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"), False),
    (record({"introduced": "2.0"}, name="other"), False),  # a release candidate comes before its release
    (record({"introduced": "2.0a1"}, name="other"), True),
    (record({"introduced": "0"}, {"fixed": "3.0"}, name="local"), False),  # a post release comes after it
    (record({"introduced": "not a version"}, name="local"), True),  # rather one too many
])  # fmt: skip
def test_versions_are_compared_as_pip_does(tmp_path, told, hit):
    if hit:
        with pytest.raises(Refused, match="1 known vulnerabilities"):
            vulnerabilities(tmp_path, PINNED, [told], [], "made up")
    else:
        assert vulnerabilities(tmp_path, PINNED, [told], [], "made up") == []
    assert json.loads((tmp_path / "vulnerabilities.json").read_text())["records"] == 1


def test_other_ecosystems_and_kinds_of_ranges_do_not_count(tmp_path):
    told = record({"introduced": "0"})
    told["affected"][0]["package"]["ecosystem"] = "npm"
    commits = record()
    commits["affected"][0]["ranges"] = [{"type": "GIT", "events": [{"introduced": "0"}]}]
    assert vulnerabilities(tmp_path, PINNED, [told, commits], [], "made up") == []


def test_one_vulnerability_under_several_ids_is_one(tmp_path):
    twins = [record({"introduced": "0"}, {"fixed": "1.5"}, aliases=["CVE-2026-1"], summary="It | leaks"),
             record({"introduced": "0"}, id="PYSEC-1", aliases=["CVE-2026-1"])]  # fmt: skip
    (row,) = vulnerabilities(tmp_path, PINNED, twins, ["CVE-2026-1"], "made up")
    assert row == {"package": "Some.Package", "version": "1.4.2", "id": "GHSA-1", "aliases": ["CVE-2026-1", "PYSEC-1"],
                   "fixed": ["1.5"], "summary": "It | leaks", "accepted": True}  # fmt: skip
    said = (tmp_path / "vulnerabilities.md").read_text()
    assert "| Some.Package | 1.4.2 | GHSA-1, CVE-2026-1, PYSEC-1 | 1.5 | accepted | It / leaks |" in said
    assert "2 records, the newest of 2026-11-01" in said


def test_an_empty_copy_is_no_clean_report(tmp_path):
    (tmp_path / "osv").mkdir()
    with pytest.raises(Refused, match="holds no record"):
        vulnerabilities(tmp_path / "out", PINNED, osv_records(tmp_path / "osv"), [], "osv")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; it is all.zip"):
        list(osv_records(tmp_path / "nowhere"))
    (tmp_path / "osv/GHSA-1.json").write_text("{")
    with pytest.raises(ValueError, match=r"GHSA-1.json is not JSON"):
        list(osv_records(tmp_path / "osv"))


def test_a_folder_and_its_archive_are_the_same(tmp_path):
    (tmp_path / "osv").mkdir()
    for number in range(3):
        (tmp_path / f"osv/{number}.json").write_text(json.dumps(record(id=f"GHSA-{number}")))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "osv").iterdir()):
            archive.write(path, path.name)
    assert list(osv_records(tmp_path / "osv")) == list(osv_records(tmp_path / "all.zip"))
    assert len(list(osv_records(tmp_path / "all.zip"))) == 3


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-m", "tasks.supply_chain", *words], cwd=folder, env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip


PIP_AUDIT = """
import json, os, sys
assert "--no-deps" in sys.argv and "--disable-pip" in sys.argv
asked = open(sys.argv[sys.argv.index("--requirement") + 1]).read()
vuln = {"id": "PYSEC-9", "fix_versions": ["1.5"], "aliases": ["CVE-9"], "description": "Bad"}
known = {"some-package==1.4.2": [vuln], "jinja2==2.10": [] if "BLIND" in os.environ else [vuln | {"id": "PYSEC-1"}]}
name, version = asked.strip().split("==")
print(json.dumps({"dependencies": [{"name": name, "version": version, "vulns": known[asked.strip()]}]}))
sys.exit(1)
"""


def test_pip_audit_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("some-package==1.4.2\n")
    without = command(tmp_path, "vulnerabilities", "out")
    assert without.returncode == 1
    assert "pip-audit gave no answer: " in without.stderr and "--osv FOLDER" in without.stderr
    (tmp_path / "pip_audit.py").write_text(PIP_AUDIT)
    found = command(tmp_path, "vulnerabilities", "out")
    assert found.returncode == 1 and "1 known vulnerabilities: some-package 1.4.2: PYSEC-9" in found.stderr
    assert command(tmp_path, "vulnerabilities", "out", "--accept", "CVE-9").returncode == 0
    monkeypatch.setenv("BLIND", "1")
    blind = command(tmp_path, "vulnerabilities", "out", "--accept", "CVE-9")
    assert blind.returncode == 1 and "the index that it asks has no advisories" in blind.stderr


def test_hashes_are_of_the_pins(tmp_path):
    (tmp_path / "constraints.txt").write_text("Some.Package==1.4.2\nother==2\ntorch==9\n")
    hashed, one = tmp_path / "hashes.txt", f"--hash=sha256:{'a' * 64}"
    check = lambda text: (hashed.write_text(text), check_hashes(tmp_path / "constraints.txt", hashed))[1]
    assert check(f"# made\nsome-package==1.4.2 \\\n    {one} \\\n    {one}\nother==2 \\\n    {one}\n") == 3
    for text, fault in {
        f"some-package==1.4.2 \\\n    {one}\n": "other is absent, pinned is 2",
        f"some-package==1.4.3 \\\n    {one}\nother==2 \\\n    {one}\n": "some-package is 1.4.3, pinned is 1.4.2",
        f"some-package==1.4.2\nother==2 \\\n    {one}\n": "some-package has no hash",
        f"some-package==1.4.2 \\\n    {one}\nother==2 {one}\nmore==1 {one}\n": "more is 1, pinned is nothing",
        f"some-package==1.4.2 {one}\nother==2 {one}\ntorch==9 {one}\n": "torch is 9, pinned is nothing",
    }.items():
        with pytest.raises(Refused, match=re.escape(fault)):
            check(text)
    hashed.unlink()
    with pytest.raises(Refused, match="some-package is absent"):
        check_hashes(tmp_path / "constraints.txt", hashed)


def test_the_licences_of_this_checkout_by_the_command(tmp_path):
    (tmp_path / "constraints.txt").write_text("pytest==" + metadata.version("pytest") + "\n")
    done = command(tmp_path, "licences", "out")
    assert (done.returncode, done.stdout) == (0, "out/licences.md: 0 refused, 0 copyleft, 1 permissive\n")
    assert module.pins(tmp_path / "constraints.txt") == {"pytest": metadata.version("pytest")}
