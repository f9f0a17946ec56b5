"""Commands that read a configuration or the host, as a person calls them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import COMMANDS, doctor, instance, main
from gateway.cli import status as status_command
from gateway.config.anchor import VERSION
from gateway.core.errors import GatewayError
from gateway.kernel import journal
from gateway.kernel.probe import Finding
from gateway.service.control import listener

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
LOG = '{"log": {"level": "info"}, /* one */ "outbounds": [{"type": "direct", "tag": "a"},]}'
MORE = '{"outbounds": [{"type": "block", "tag": "b"}]}'


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"gateway {name}" in capsys.readouterr().out


def test_examples_are_taken() -> None:
    names = sorted(EXAMPLES.glob("*.json"))
    assert names
    for name in names:
        assert main(["check", "-c", str(name)]) == 0


def test_check_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.json"
    file.write_text('{\n "log": {"levl": "info"}\n}')
    assert main(["check", "-c", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"{file}:2" in said
    assert "log.levl" in said
    assert "level" in said


def test_format_is_canonical_and_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.json"
    file.write_text(LOG)
    assert main(["format", "-c", str(file)]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"log": {"level": "info"}, "outbounds": [{"type": "direct", "tag": "a"}]}
    assert file.read_text() == LOG
    assert main(["format", "-w", "-c", str(file)]) == 0
    assert file.read_text() == printed
    assert capsys.readouterr().out.strip() == str(file)
    assert main(["format", "-w", "-c", str(file)]) == 0
    assert capsys.readouterr().out == ""
    file.write_text("{")
    assert main(["format", "-w", "-c", str(file)]) == 1
    assert file.read_text() == "{"


def test_merge_joins_files(tmp_path: Path) -> None:
    for name, text in (("1.json", LOG), ("2.json", MORE)):
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    assert main(["merge", "-C", str(tmp_path), str(out)]) == 0
    merged = json.loads(out.read_text())
    assert [item["tag"] for item in merged["outbounds"]] == ["a", "b"]
    assert merged["log"] == {"level": "info"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "-n"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main(["version"]) == 0
    assert VERSION in capsys.readouterr().out


FINE = Finding("nft tproxy", True, "here")
COSTS = Finding("btf", False, "no /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF", needed=False)
LACKS = Finding("CAP_NET_ADMIN", False, "not held", "run as root")


@pytest.mark.parametrize(("findings", "status"), [((FINE,), 0), ((FINE, COSTS), 0), ((FINE, COSTS, LACKS), 1)])
def test_doctor_names_what_is_missing(
    findings: tuple[Finding, ...], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: findings)
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       nft tproxy: here"
    if COSTS in findings:
        assert lines[1] == "without  btf: no /sys/kernel/btf/vmlinux -> CONFIG_DEBUG_INFO_BTF"
    if status:
        assert lines[2:] == ["missing  CAP_NET_ADMIN: not held -> run as root", "1 needed and missing"]
    assert main(["doctor", "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is (status == 0)
    assert [item["name"] for item in report["findings"]] == [finding.name for finding in findings]


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e300", "soon"])
def test_doctor_listens_for_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", f"--listen={seconds}"])
    assert ended.value.code == 2
    assert "--listen" in capsys.readouterr().err


def test_doctor_says_what_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As somebody who is not root."""

    def refused(*words: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", "undo.jsonl")

    def failed() -> list[str]:
        raise subprocess.CalledProcessError(1, "nft")

    monkeypatch.setattr(doctor, "standing", failed)
    (found,) = doctor.instances(tmp_path)
    assert (found.name, found.ok) == ("instances", False)
    (tmp_path / "lives").mkdir()
    (tmp_path / "lives" / "undo.jsonl").write_text(json.dumps(journal.head()) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        (found,) = doctor.instances(tmp_path)
        assert (found.ok, found.remedy) == (False, "run as root")
        with pytest.raises(GatewayError, match="run as root"):
            doctor.repair(tmp_path)
        monkeypatch.setattr(instance, "folders", lambda arguments: (tmp_path / "lives", tmp_path))
        assert main(["down"]) == 1
    assert "run as root" in capsys.readouterr().err
    assert (tmp_path / "lives" / "undo.jsonl").exists()


def test_one_that_hangs_is_found_however_often_it_was_asked(tmp_path: Path) -> None:
    """Each question waits in its queue until that is full."""
    path = tmp_path / "control.sock"
    assert listener(path) == -1
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(path))
        assert listener(path) == -1
        hangs.listen(1)
        assert [listener(path) for _ in range(5)] == [os.getpid()] * 5
    assert listener(path) == -1


def test_doctor_on_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the host lacks, it is said and not raised."""
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is (status == 0)
    assert {"name", "ok", "detail", "remedy", "needed"} <= set(report["findings"][0])


def test_status_tells_what_a_relaxed_mode_skips(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "ok": True, "state": "running", "uptime": 1.0, "files": {"open": 1, "limit": 9}, "inbounds": [], "flows": 0,
        "classes": [], "problems": {}, "steering": True, "mode": "fast",
        "skipped": [{"rule": 3, "match": "domain=far.example", "action": "Route", "outbound": "vps"}],
    }  # fmt: skip
    monkeypatch.setattr(status_command, "conflicts", lambda: ())
    monkeypatch.setattr(instance, "ask", lambda arguments, request: dict(answer))
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  rule 3 (Route): domain=far.example -> vps" in lines
    assert any(line.startswith("mode fast skips") for line in lines)
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == answer["skipped"]
    answer["skipped"] = []
    assert main(["status"]) == 0
    assert "skips" not in capsys.readouterr().out


def test_repair_lets_the_living_and_the_strange_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"dead": journal.head(), "lives": journal.head(), "elsewhere": journal.head() | {"netns": 1},
             "old": journal.head() | {"boot": "another"}, "torn": {}}  # fmt: skip
    for name, head in heads.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "undo.jsonl").write_text(json.dumps(head)[: 3 if name == "torn" else None] + "\n")
    (tmp_path / "starting").mkdir()
    monkeypatch.setattr(doctor, "alive", lambda path: path.parent.name == "lives")
    assert doctor.repair(tmp_path) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "lives", "starting"]
    assert "dead: undone" in said
    assert "lives: runs" in said
    assert "elsewhere: of another" in said


def test_repair_names_what_it_could_not_undo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dead").mkdir()
    step = {"kind": "nonsense", "op": "none"}
    (tmp_path / "dead" / "undo.jsonl").write_text(f"{json.dumps(journal.head())}\n{json.dumps(step)}\n")
    assert doctor.repair(tmp_path, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert "nonsense" in told["failed"][0]
    assert (tmp_path / "dead" / "undo.jsonl").exists(), "kept for the next try"
