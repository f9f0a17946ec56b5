"""Lease files of four DHCP servers, and what becomes of a file that changes under our eyes."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from gateway.core.contracts import Guest
from gateway.uplink import leases
from gateway.uplink.leases import Lease, LeaseFiles, parse

PHONE, TV = "00:53:00:00:00:01", "00:53:00:00:00:02"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"1764140000 {PHONE} 192.0.2.10 Phone 01:{PHONE}\n0 {TV.upper()} 192.0.2.11 * *\n"
            "duid 00:01:00:01:2c\n1764140000 1193046 2001:db8::10 phone 00:01:00:01\n",
            [Lease(PHONE, "192.0.2.10", "phone", 1764140000), Lease(TV, "192.0.2.11", "")],
        ),
        (
            "# br-lan 005300000001 ipv4 Phone 1764140000 a 32 192.0.2.10/32\n"
            "192.0.2.10\tphone\n# br-lan 000100 1a2b phone 1764140000 5 128 2001:db8::5/128\n"
            "# br-lan 005300000002 ipv4 - -1 b 32 192.0.2.11/32\n",
            [Lease(PHONE, "192.0.2.10", "phone", 1764140000), Lease(TV, "192.0.2.11", "")],
        ),
        (
            "# ISC\nlease 192.0.2.10 {\n  starts 3 2025/11/26 07:00:00;\n  binding state active;\n"
            f'  hardware ethernet {PHONE};\n  uid "\\001a";\n  client-hostname "Phone";\n}}\n'
            f"lease 192.0.2.11 {{\n  binding state free;\n  hardware ethernet {TV};\n}}\n",
            [Lease(PHONE, "192.0.2.10", "phone")],
        ),
        (
            "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n"
            f"192.0.2.10,{PHONE},,3600,1764140000,1,0,0,phone.,0,\n"
            f"192.0.2.11,{TV},,3600,1764140000,1,0,0,tv,2,\n",
            [Lease(PHONE, "192.0.2.10", "phone", 1764140000)],
        ),
        ("", []),
        ("lease {\n\x00\xff nonsense\n# a b\n1 2 3\n", []),
    ],
    ids=["dnsmasq", "odhcpd", "isc", "kea", "empty", "nonsense"],
)
def test_formats(text: str, expected: list[Lease]) -> None:
    assert parse(text) == expected


ISC = "lease 192.0.2.10 {{\n  binding state {state};\n  hardware ethernet {mac};\n  client-hostname {name};\n}}\n"
KEA = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context\n"


@pytest.mark.parametrize(
    "name", [f"x; hardware ethernet {TV}", "x; binding state free", '\\"; hardware ethernet ' + TV]
)
def test_what_a_client_calls_itself_is_a_name_alone(name: str) -> None:
    (lease,) = parse(ISC.format(state="active", mac=PHONE, name=f'"{name}"'))
    assert (lease.mac, lease.hostname) == (PHONE, name.lower())
    rows = f'192.0.2.10,{PHONE},,9,1764140000,1,0,0,"x,0,\n192.0.2.11,{TV},,9,1764140000,1,0,0,tv.,0,\n'
    assert [one.hostname for one in parse(KEA + rows)] == ['"x', "tv"], "a quote hides nobody"


def test_of_a_log_the_last_lease_counts() -> None:
    first, second = (ISC.format(state="active", mac=mac, name='"a"') for mac in (PHONE, TV))
    assert [one.mac for one in parse(first + second)] == [TV]
    assert parse(first + ISC.format(state="free", mac=PHONE, name='"a"')) == []
    kea = [f"192.0.2.10,{PHONE},,{life},1764140000,1,0,0,phone.,{state},\n" for life, state in ((9, 0), (0, 0), (9, 2))]
    assert len(parse(KEA + kea[0])) == 1
    assert parse(KEA + kea[0] + kea[1]) == parse(KEA + kea[0] + kea[2]) == []


def test_what_is_no_sound_line() -> None:
    """Half a line of a server that is writing; more digits than Python reads; leases that never end."""
    whole = f"0 {PHONE} 192.0.2.10 phone *\n"
    assert [one.hostname for one in parse(whole + f"0 {TV} 192.0.2.11 tv-of-an")] == ["phone"]
    assert [one.hostname for one in parse(f"{'9' * 5000} {TV} 192.0.2.11 tv *\n" + whole)] == ["phone"]
    began = time.monotonic()
    assert parse("lease 192.0.2.10 {\n" * 50_000 + "a a " * 100_000 + "\n") == []
    assert time.monotonic() - began < 5


def looked(files: LeaseFiles) -> dict[str, str]:
    files._looked = 0.0
    return dict(files.hostnames())


def test_a_file_is_read_again_when_it_changes_and_may_be_absent(tmp_path: Path) -> None:
    path, files = tmp_path / "leases", LeaseFiles()
    files.use([path, tmp_path / "never"], {TV: "tv"})
    assert looked(files) == {TV: "tv"}
    path.write_text(f"0 {PHONE} 192.0.2.10 phone *\n0 {TV} 192.0.2.11 other *\n")
    assert looked(files) == {PHONE: "phone", TV: "tv"}, "what the configuration says wins"
    path.write_text(f"1 {PHONE} 192.0.2.10 new *\n")
    assert looked(files) == {PHONE: "new", TV: "tv"}
    assert files.leases() == [], "it ended in 1970"
    assert files.mac(ip_address("192.0.2.10")) == PHONE
    assert files.mac(ip_address("192.0.2.11")) == ""
    path.unlink()
    assert looked(files) == {TV: "tv"}


def test_files_are_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files, now = tmp_path / "leases", LeaseFiles(), [100.0]
    monkeypatch.setattr(leases.time, "monotonic", lambda: now[0])
    files.use([path], {})
    assert not files.hostnames()
    path.write_text(f"0 {PHONE} 192.0.2.10 phone *\n")
    now[0] += 0.9
    assert not files.hostnames()
    now[0] += 0.2
    assert files.hostnames() == {PHONE: "phone"}


@pytest.mark.root
def test_at_the_usual_places_a_login_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tmp_path / "leases", LeaseFiles()
    path.write_text(f"0 {PHONE} 192.0.2.10 phone *\n")
    os.chown(path, leases.LOGINS, -1)
    files.use([path], {})
    assert looked(files) == {PHONE: "phone"}, "named by the configuration"
    monkeypatch.setattr(leases, "PLACES", (str(path),))
    files = LeaseFiles()
    files.use([path], {})
    assert looked(files) == {}
    os.chown(path, 0, -1)
    assert looked(files) == {PHONE: "phone"}
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.setattr(leases, "PLACES", (str(link),))
    for owner, names in ((leases.LOGINS, {}), (0, {PHONE: "phone"})):
        os.chown(link, owner, -1, follow_symlinks=False)
        files = LeaseFiles()
        files.use([link], {})
        assert looked(files) == names


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    files = LeaseFiles()
    files.use([tmp_path / "fifo", tmp_path], {TV: "tv"})
    assert looked(files) == {TV: "tv"}


def test_guests_are_those_that_hold_a_lease(tmp_path: Path) -> None:
    """The last lease of an address counts; one that was given before we looked began a length before its end."""
    ends = int(time.time()) + 600
    file = tmp_path / "leases"
    file.write_text(
        f"{ends} 00:53:00:00:00:02 192.0.2.20 Phone *\n"
        f"{ends} 00:53:00:00:00:03 192.0.2.3 * *\n"
        "1 00:53:00:00:00:04 192.0.2.4 gone *\n"
        f"{ends} 00:53:00:00:00:05 nowhere odd *\n"
    )
    files = LeaseFiles()
    files.use([file], {"00:53:00:00:00:03": "tv"}, {ip_network("192.0.2.0/24"): 3600})
    before = int(time.time())
    assert files.guests() == [
        Guest("00:53:00:00:00:03", "tv", "192.0.2.3", ends - 3600, ends),
        Guest("00:53:00:00:00:02", "phone", "192.0.2.20", ends - 3600, ends),
    ]
    files.use([file], {})
    assert [before <= guest.since <= int(time.time()) for guest in files.guests()] == [True, True]
