"""Which cluster is meant."""

import json
import os
import socket

import pytest

from cluster.addresses import context_file, forget, job_address, keep, kept, normal, use_token
from msrcnn.errors import InputError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    """No cluster is known."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what a test sets besides is taken back too
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def dashboard():
    """The address of something that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_what_is_given_goes_before_the_environment_and_that_before_what_is_kept(dashboard, monkeypatch):
    keep(dashboard)
    assert job_address(None) == (dashboard, str(context_file()))
    monkeypatch.setenv("RAY_ADDRESS", dashboard + "/")
    assert job_address(None) == (dashboard, "RAY_ADDRESS")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    assert job_address(None) == (dashboard, "RAY_API_SERVER_ADDRESS")
    assert job_address(dashboard.removeprefix("http://")) == (dashboard, "--address")


def test_no_cluster_is_said_with_the_three_ways_to_name_one():
    with pytest.raises(InputError, match=r"--address.*RAY_API_SERVER_ADDRESS.*msrcnn context"):
        job_address(None)


def test_an_address_to_join_is_none_for_jobs(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match=r"RAY_ADDRESS 10\.0\.0\.1:6379: is for programs that join"):
        job_address(None)


def test_a_cluster_that_is_gone_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"127.0.0.1:{port} .from --address.: no cluster answers"):
        job_address(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(("given", "meant"), [
    ("head", "http://head:8265"), ("head:9000", "http://head:9000"), ("https://ray.example.org/", "https://ray.example.org"),
    ("http://10.0.0.1:8265", "http://10.0.0.1:8265"),
])  # fmt: skip
def test_addresses_in_short(given, meant):
    assert normal(given) == meant


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "http://head:port", "http://head:0"])
def test_what_is_no_dashboard_is_refused(given):
    with pytest.raises(InputError, match="expected http://HOST:8265"):
        keep(given)
    assert kept() is None


def test_an_address_with_a_password_is_neither_kept_nor_shown():
    for use in (keep, job_address):
        with pytest.raises(InputError, match="password") as raised:
            use("http://me:hunter2@head:8265")
        assert "hunter2" not in str(raised.value)
    assert not context_file().exists()


def test_kept_until_it_is_forgotten():
    assert kept() is None
    path = keep("head")
    assert json.loads(path.read_text()) == {"address": "http://head:8265"}
    keep("other:9000")
    assert kept() == "http://other:9000"
    assert list(path.parent.iterdir()) == [path]
    assert (forget(), forget(), kept()) == (True, False, None)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"address"', '"text"'])
def test_a_damaged_file_is_said(content):
    keep("head").write_text(content)
    with pytest.raises(InputError, match=r"cluster.json: cannot be read .*msrcnn context"):
        job_address(None)


def test_a_token_that_is_there_is_used(monkeypatch, tmp_path):
    use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("t")
    use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
