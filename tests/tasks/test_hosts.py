"""Where servers listen: the Prefect server asks for a password wherever other machines reach it."""

import pytest

from tasks import deploy, hosts
from tasks.hosts import HostRefused, password, this_machine

CANARY = "me:canary-7f3a-swordfish"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ROOTSTOCK_HOST", "PORT", deploy.AUTH, "PREFECT_API_AUTH_STRING", "ROOTSTOCK_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_this_machine(address, monkeypatch):
    assert this_machine(address) and password("NOTHING", address, "it") is None
    monkeypatch.setenv("ROOTSTOCK_HOST", address)
    assert deploy._environment()["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "", "10.0.0.7", "192.168.1.1", "box.example.org", "localhost.evil"]
)
def test_other_machines_reach_it(address):
    assert not this_machine(address)
    with pytest.raises(HostRefused, match="without a password; nothing was started. Set NOTHING"):
        password("NOTHING", address, "it")


def test_the_prefect_server_has_a_password_on_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOTSTOCK_HOST", "0.0.0.0")
    with pytest.raises(
        HostRefused, match="the Prefect server would listen on 0.0.0.0.* Set PREFECT_SERVER_API_AUTH_STRING"
    ):
        deploy.deploy()
    assert not (tmp_path / ".prefect/server.pid").exists()
    monkeypatch.setenv(deploy.AUTH, CANARY)
    environment = deploy._environment()
    assert environment["PREFECT_API_AUTH_STRING"] == CANARY  # for the worker, which inherits it
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert deploy._listens() == "0.0.0.0"
    monkeypatch.setenv("ROOTSTOCK_HOST", "10.0.0.7")
    assert deploy._environment()["PREFECT_API_URL"] == "http://10.0.0.7:4200/api"
    monkeypatch.setenv(deploy.AUTH, "me:short")
    with pytest.raises(HostRefused, match="has 8 characters") as refused:
        deploy._environment()
    assert "me:short" not in str(refused.value)


def test_an_empty_host_is_no_open_server(monkeypatch):
    monkeypatch.setenv("ROOTSTOCK_HOST", "")
    assert hosts.host() == "127.0.0.1"
