"""What the environment is made of: licences, known vulnerabilities and hashes of every pinned package.

    python -m tasks.supply_chain licences OUT                           bill of materials, and who may not be used
    python -m tasks.supply_chain vulnerabilities OUT --osv FOLDER       against a copy of osv.dev, without a network
    python -m tasks.supply_chain vulnerabilities OUT                    by pip-audit, where it is installed
    python -m tasks.supply_chain hashes                                 hashes.txt pins what constraints.txt pins

Each reads constraints.txt of the folder it runs in. OUT gets bom.json (CycloneDX 1.6) and licences.md, or
vulnerabilities.json and vulnerabilities.md. A copy of osv.dev is all.zip of its ecosystem PyPI, or that file unpacked.
"""

import json
import re
import subprocess
import sys
import uuid
import zipfile
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tasks.command import run
from tasks.files import write_json, write_text
from tasks.settings import SettingsError

__all__ = ["Package", "Refused", "check_hashes", "installed", "licences", "pins", "vulnerabilities"]

PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s\\;]+)", re.MULTILINE)
UNKNOWN = "LicenseRef-unknown"
# Terms that a service or a product built on this repository may not be able to keep; OR leaves a choice, AND does not.
REFUSED = re.compile(r"^(AGPL|SSPL|BUSL|Elastic|CC-BY-NC|CC-BY-ND|PolyForm|LicenseRef-)", re.IGNORECASE)
COPYLEFT = re.compile(r"^(GPL|LGPL|EPL|EUPL|CDDL|OSL)", re.IGNORECASE)  # fine to use as they are; named in the report
PHRASES = {  # the free text of older metadata, in lower case -> SPDX
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "artistic license": "Artistic-1.0-Perl",
    "gnu general public license (gpl)": "GPL-2.0-or-later",
    "gnu general public license v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gplv2 | eplv1": "GPL-2.0-only OR EPL-1.0",
    "gplv2 with linking exception": "GPL-2.0-only WITH GCC-exception-2.0",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "the mit license (mit)": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "zope public license": "ZPL-2.1",
}
KNOWN_BAD = "jinja2==2.10"  # CVE-2019-10906
OFFLINE = "Without one give --osv FOLDER, a copy of osv.dev's ecosystem PyPI"
OWN_WHEEL = "torch"  # its CPU and CUDA builds are different files of one version
READ = {  # read by a person, since the metadata say less than the licence
    "antlr4-python3-runtime": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
}
TEXTS = (  # what a licence's text says, all of it -> SPDX; the first that fits
    (("Apache License", "Version 2.0"), "Apache-2.0"),
    (("Redistribution and use in source and binary forms", "Neither the name"), "BSD-3-Clause"),
    (("Redistribution and use in source and binary forms", "may not be used to endorse"), "BSD-3-Clause"),
    (("Redistribution and use in source and binary forms",), "BSD-2-Clause"),
    (("Permission is hereby granted, free of charge",), "MIT"),
    (("Mozilla Public License", "2.0"), "MPL-2.0"),
)


class Refused(ValueError):
    """A package may not be used as it is: its licence, its version or its hash."""


@dataclass(frozen=True)
class Package:
    """One pinned package; `licence` is SPDX, or LicenseRef-unknown."""

    name: str
    version: str
    licence: str = UNKNOWN
    needs: tuple[str, ...] = field(default=(), compare=False)  # pinned packages that it asks for

    @property
    def address(self) -> str:
        """Package URL."""
        return f"pkg:pypi/{canonicalize_name(self.name)}@{self.version}"

    @property
    def standing(self) -> str:
        """refused, copyleft or permissive."""
        if _only(self.licence, REFUSED):
            return "refused"
        return "copyleft" if _only(self.licence, COPYLEFT) else "permissive"


def pins(file: str | Path = "constraints.txt") -> dict[str, str]:
    """Package -> version of a file of pins, in its order.

    Raises:
        SettingsError: the file is not there or pins nothing.
    """
    if not Path(file).is_file() or not (found := dict(PIN.findall(Path(file).read_text()))):
        raise SettingsError(f"{file} does not exist here, or pins nothing as name==version")
    return found


def installed(pinned: Mapping[str, str]) -> list[Package]:
    """What is known of the pinned packages from their installed metadata.

    Raises:
        Refused: one is not installed, or in another version; names them.
    """
    known, faults = {canonicalize_name(name) for name in pinned}, []
    found = []
    for name, version in pinned.items():
        try:
            there = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            faults.append(f"{name} is not installed")
            continue
        if there.version.split("+")[0] != version:
            faults.append(f"{name} is {there.version}, pinned is {version}")
        found.append(Package(name, version, licence_of(there), tuple(sorted(_needs(there, known)))))
    if faults:
        raise Refused(f"{len(faults)} of {len(pinned)} packages are not as pinned: {_some(faults)}; install again: "
                      f"pip install -r constraints.txt")  # fmt: skip
    return found


def licence_of(there: metadata.Distribution) -> str:
    """SPDX of a distribution: its own expression, else its words, its only classifier, its licence's text.

    >>> licence_of(metadata.distribution("pytest"))
    'MIT'
    """
    told = there.metadata
    if there.name in READ:
        return READ[there.name]
    says = [told.get("License-Expression"), told.get("License")]
    classes = [each.split(" :: ")[-1] for each in told.get_all("Classifier") or [] if each.startswith("License ::")]
    for words in says:
        if words and (spdx := _spdx(words)):
            return spdx
    named = [_spdx(each) for each in classes]
    if len(named) == 1 and named[0]:
        return named[0]
    if spdx := next((spdx for text in _texts(there) if (spdx := _by_text(text))), None):
        return spdx
    options = sorted({spdx for spdx in named if spdx})
    return canonicalize_license_expression(" OR ".join(options)) if options else UNKNOWN


def licences(out: str | Path, found: Sequence[Package]) -> dict[str, int]:
    """Write `out`/bom.json and licences.md; how many packages stand where.

    Raises:
        Refused: a licence that is not to be used, or none; both files are written, and name it.
    """
    rows = sorted(found, key=lambda package: (package.standing != "refused", canonicalize_name(package.name)))
    counts = {
        kind: sum(package.standing == kind for package in found) for kind in ("refused", "copyleft", "permissive")
    }
    table = "".join(f"| {p.name} | {p.version} | {p.licence} | {p.standing} |\n" for p in rows)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    write_text(Path(out) / "licences.md", f"# Licences\n\n{len(found)} packages: {said}.\n\n"
               f"| package | version | licence | standing |\n|---|---|---|---|\n{table}")  # fmt: skip
    write_json(Path(out) / "bom.json", _bom(found))
    if refused := [f"{p.name} {p.version} ({p.licence})" for p in rows if p.standing == "refused"]:
        raise Refused(
            f"{len(refused)} packages have a licence that is refused or unknown: {_some(refused)}; see "
            f"{out}/licences.md. Take another package, or read its licence and add it to READ"
        )
    return counts


def vulnerabilities(out: str | Path, pinned: Mapping[str, str], records: Iterable[Mapping], accepted: Sequence[str],
                    of: str) -> list[dict]:  # fmt: skip
    """Write `out`/vulnerabilities.json and .md; the findings, one for each package and vulnerability.

    Args:
        records: of the OSV schema 1.x, each a vulnerability; others than of PyPI's packages are passed over.
        accepted: ids or aliases that were looked at and do no harm here; they are listed all the same.
        of: where the records come from, for the report.

    Raises:
        Refused: a finding is not accepted; both files are written, and name it. Or there are no records.
    """
    found, seen, newest = {}, 0, ""
    names = {canonicalize_name(name): name for name in pinned}
    for record in records:
        seen, newest = seen + 1, max(newest, str(record.get("modified", "")))
        for finding in _affects(record, names, pinned):
            ids = {finding["id"], *finding["aliases"]}
            twin = next((key for key, other in found.items() if key[0] == finding["package"]
                         and ids & {other["id"], *other["aliases"]}), None)  # fmt: skip
            if twin is None:
                found[finding["package"], finding["id"]] = finding
            else:
                found[twin]["aliases"] = sorted((ids | set(found[twin]["aliases"])) - {found[twin]["id"]})
    if not seen:
        raise Refused(f"{of} holds no record of the OSV schema; nothing was checked")
    rows = [finding | {"accepted": bool({finding["id"], *finding["aliases"]} & set(accepted))}
            for _, finding in sorted(found.items())]  # fmt: skip
    write_json(Path(out) / "vulnerabilities.json",
               {"source": of, "records": seen, "newest": newest, "packages": len(pinned), "found": rows})  # fmt: skip
    write_text(Path(out) / "vulnerabilities.md", _vulnerable(rows, of, seen, newest, len(pinned)))
    if left := [f"{row['package']} {row['version']}: {row['id']}" for row in rows if not row["accepted"]]:
        raise Refused(f"{len(left)} known vulnerabilities: {_some(left)}; see {out}/vulnerabilities.md. Raise the pins "
                      f"to the fixed versions, or look at each and give --accept ID")  # fmt: skip
    return rows


def osv_records(place: str | Path) -> Iterator[Mapping]:
    """The records of a folder of JSON files, or of a zip archive of such.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is not JSON; names it.
    """
    place = Path(place)
    if place.is_dir():
        for path in sorted(place.rglob("*.json")):
            yield _record(path.read_bytes(), path)
    elif place.is_file():
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    yield _record(archive.read(name), f"{place}:{name}")
    else:
        what = "all.zip of osv.dev's ecosystem PyPI, or that file unpacked"
        raise FileNotFoundError(f"{place} does not exist; it is {what}")


def audited(pinned: str | Path) -> Iterator[Mapping]:
    """What pip-audit says of a file of pins, as records of the OSV schema that name exact versions.

    Raises:
        Refused: pip-audit is not installed, could not ask, or asked an index that knows no vulnerabilities.
    """
    with TemporaryDirectory() as place:
        known = Path(place) / "known.txt"
        known.write_text(KNOWN_BAD + "\n")
        if not any(package.get("vulns") for package in _audit(known)):
            raise Refused(f"pip-audit finds nothing in {KNOWN_BAD}, which is known to be vulnerable: the index that it "
                          f"asks has no advisories, as many mirrors have none. {OFFLINE}")  # fmt: skip
    yield {"id": "asked", "affected": []}  # so that an empty answer is one
    for package in _audit(pinned):
        for each in package.get("vulns", []):
            fixed = [{"fixed": version} for version in each.get("fix_versions", [])]
            affected = {
                "package": {"ecosystem": "PyPI", "name": package["name"]},
                "versions": [package["version"]],
                "ranges": [{"type": "ECOSYSTEM", "events": fixed}],
            }
            told = {"aliases": each.get("aliases", []), "summary": each.get("description", "")}
            yield {"id": each["id"], "affected": [affected]} | told


def check_hashes(pinned: str | Path = "constraints.txt", hashed: str | Path = "hashes.txt") -> int:
    """That a file of hashes pins the same packages in the same versions, each with SHA-256: how many hashes there are.

    torch may not be in it: pip prefers the file of PyPI to a machine's own wheel, even where both hashes are given.

    Raises:
        Refused: names what differs.
    """
    wanted, text = pins(pinned), Path(hashed).read_text() if Path(hashed).is_file() else ""
    blocks = {found[1]: block for block in re.split(r"\n(?=\S)", text) if (found := PIN.match(block))}
    there = dict(PIN.findall(text))
    plain = lambda versions: {canonicalize_name(name): version for name, version in versions.items()}
    ours, theirs = plain(wanted), plain(there)
    ours.pop(OWN_WHEEL, None)
    faults = [f"{name} is {theirs.get(name, 'absent')}, pinned is {ours.get(name, 'nothing')}"
              for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]  # fmt: skip
    counts = {name: len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)) for name, block in blocks.items()}
    faults += [f"{name} has no hash" for name, count in counts.items() if not count]
    if faults:
        raise Refused(f"{hashed} is not of {pinned}: {_some(faults)}; make it again as its first lines say")
    return sum(counts.values())


def _audit(pinned: str | Path) -> list[dict]:
    words = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip",
             "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(words, text=True, capture_output=True, check=False)
    try:
        return json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, LookupError, TypeError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        raise Refused(
            f"pip-audit gave no answer: {said}. It needs `pip install pip-audit` and a network. {OFFLINE}"
        ) from None


def _only(licence: str, kinds: re.Pattern) -> bool:
    """Whether no choice of an SPDX expression avoids these licences: AND binds them, OR needs both sides bound."""
    words = licence.replace("(", " ( ").replace(")", " ) ").split()[::-1]

    def either() -> bool:
        bound = both()
        while words and words[-1] == "OR":
            words.pop()
            bound = both() and bound
        return bound

    def both() -> bool:
        bound = one()
        while words and words[-1] in ("AND", "WITH"):
            joined = words.pop()
            bound = one() and joined == "AND" or bound
        return bound

    def one() -> bool:
        word = words.pop()
        if word != "(":
            return bool(kinds.match(word))
        bound = either()
        words.pop()
        return bound

    return either()


def _spdx(words: str) -> str | None:
    if phrase := PHRASES.get(" ".join(words.lower().split())):
        return phrase
    try:
        return canonicalize_license_expression(words) if len(words) < 100 else None
    except InvalidLicenseExpression:
        return None


def _texts(there: metadata.Distribution) -> Iterator[str]:
    wanted = re.compile(r"licen[cs]e|copying", re.IGNORECASE)
    yield there.metadata.get("License") or ""
    for path in there.files or []:
        if path.parts[0].endswith(".dist-info") and wanted.match(path.name) and path.locate().is_file():
            yield Path(path.locate()).read_text(errors="replace")


def _by_text(text: str) -> str | None:
    flat = " ".join(text.split())
    return next((spdx for says, spdx in TEXTS if all(each in flat for each in says)), None)


def _needs(there: metadata.Distribution, known: set[str]) -> set[str]:
    asked = [Requirement(line) for line in there.requires or []]
    wanted = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})]
    return {canonicalize_name(each.name) for each in wanted} & known


def _bom(found: Sequence[Package]) -> dict:
    """CycloneDX 1.6; the serial number follows from the packages, so that the same environment gives the same bytes."""
    address = {canonicalize_name(package.name): package.address for package in found}
    parts = sorted(found, key=lambda package: package.address)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(package.address for package in parts))}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": "rootstock", "name": "rootstock"}},
        "components": [
            {"type": "library", "bom-ref": package.address, "name": package.name, "version": package.version,
             "purl": package.address, "licenses": _listed(package.licence)}
            for package in parts
        ],
        "dependencies": [{"ref": "rootstock", "dependsOn": [package.address for package in parts]}] + [
            {"ref": package.address, "dependsOn": [address[name] for name in package.needs]} for package in parts
        ],
    }  # fmt: skip


def _listed(licence: str) -> list[dict]:
    if licence == UNKNOWN:
        return [{"license": {"name": "unknown"}}]
    return [{"expression": licence}] if " " in licence else [{"license": {"id": licence}}]


def _affects(record: Mapping, names: Mapping[str, str], pinned: Mapping[str, str]) -> Iterator[dict]:
    if record.get("withdrawn"):
        return
    for part in record.get("affected", []):
        package = part.get("package", {})
        name = names.get(canonicalize_name(package.get("name", ""))) if package.get("ecosystem") == "PyPI" else None
        if name and _in(Version(pinned[name]), part):
            fixed = {event["fixed"] for row in _ranges(part) for event in row.get("events", []) if "fixed" in event}
            yield {"package": name, "version": pinned[name], "id": record["id"],
                   "aliases": sorted(record.get("aliases", [])), "fixed": sorted(fixed, key=_order),
                   "summary": " ".join(str(record.get("summary", "")).split())[:200]}  # fmt: skip


def _in(version: Version, part: Mapping) -> bool:
    """Whether a version is affected: it is listed, or lies in a range; the schema's own algorithm."""
    if any(_order(listed) == version for listed in part.get("versions", [])):
        return True
    return any(_within(version, row.get("events", [])) for row in _ranges(part))


def _within(version: Version, events: Sequence[Mapping]) -> bool:
    """Events in order of their versions: an `introduced` opens, a `fixed` closes at it, a `last_affected` after it."""
    limits = [_order(event["limit"]) for event in events if "limit" in event]
    if limits and all(version >= limit for limit in limits):
        return False
    inside = False
    marks = [(_order(value), kind) for event in events for kind, value in event.items() if kind != "limit"]
    for mark, kind in sorted(marks, key=lambda each: (each[0], each[1] == "introduced")):
        if kind == "introduced" and version >= mark or kind == "fixed" and version >= mark:
            inside = kind == "introduced"
        elif kind == "last_affected" and version > mark:
            inside = False
    return inside


def _ranges(part: Mapping) -> list[Mapping]:
    return [row for row in part.get("ranges", []) if row.get("type") == "ECOSYSTEM"]


def _order(text: str) -> Version:
    """A version as pip orders it; "0" is before all, as the schema has it, and what is no version of Python's too."""
    try:
        return Version("0.dev0" if text == "0" else text)
    except InvalidVersion:
        return Version("0.dev0")


def _record(content: bytes, place) -> Mapping:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}); unpack the copy of osv.dev again") from None


def _vulnerable(rows: Sequence[Mapping], of: str, seen: int, newest: str, packages: int) -> str:
    head = f"# Vulnerabilities\n\n{len(rows)} known in {packages} packages, by {of}"
    head += f" ({seen:,} records, the newest of {newest[:10]}).\n" if newest else ".\n"
    table = "\n| package | version | id | fixed in | | what |\n|---|---|---|---|---|---|\n"
    for row in rows:
        ids, fixed = ", ".join([row["id"], *row["aliases"]]), ", ".join(row["fixed"]) or "-"
        state, what = "accepted" if row["accepted"] else "open", row["summary"].replace("|", "/")
        table += f"| {row['package']} | {row['version']} | {ids} | {fixed} | {state} | {what} |\n"
    return head + (table if rows else "")


def _some(faults: Sequence[str]) -> str:
    return "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if faults[8:] else "")


def main(*words: str) -> None:
    """python -m tasks.supply_chain licences OUT | vulnerabilities OUT [--osv FOLDER] [--accept ID ...] | hashes"""
    parser = ArgumentParser(prog="python -m tasks.supply_chain", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="what", required=True)
    kinds.add_parser("licences").add_argument("out", type=Path)
    known = kinds.add_parser("vulnerabilities")
    known.add_argument("out", type=Path)
    known.add_argument("--osv", type=Path, help="a copy of osv.dev's ecosystem PyPI: a folder of JSON, or all.zip")
    known.add_argument("--accept", nargs="*", default=[], metavar="ID", help="looked at, and no harm here")
    kinds.add_parser("hashes")
    told = parser.parse_args(words)
    if told.what == "licences":
        counts = licences(told.out, installed(pins()))
        print(f"{told.out}/licences.md: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    elif told.what == "vulnerabilities":
        records, of = (osv_records(told.osv), str(told.osv)) if told.osv else (audited("constraints.txt"), "pip-audit")
        rows = vulnerabilities(told.out, pins(), records, told.accept, of)
        print(f"{told.out}/vulnerabilities.md: {len(rows)} known, all of them accepted")
    else:
        print(f"hashes.txt pins what constraints.txt pins, with {check_hashes():,} hashes")


if __name__ == "__main__":
    run(main)
