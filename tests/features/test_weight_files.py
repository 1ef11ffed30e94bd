"""Weights on disk, with a web server and a hub cache of the test's own."""

import hashlib
import http.server
import socket
import threading
from pathlib import Path

import pytest

from cedm_ray.errors import InputDataError, IntegrityError
from cedm_ray.features.weight_files import WebFile, cache_folder, fetch, given_file, hub_file, unreachable

CONTENT = b"weights" * 1000


class Server(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) + (5 if self.path == "/short" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    Server.asked = 0
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead_address():
    """An address at which nothing listens: the port was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("CEDM_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cedm-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cedm-ray"


def test_a_file_is_downloaded_once_and_its_hash_kept_beside_it(address, cache):
    file = WebFile(name="net.pt", url=f"{address}/net")
    path = fetch(file, "a network")
    assert (path.read_bytes(), path) == (CONTENT, cache / "net.pt")
    assert fetch(file, "a network") == path
    assert Server.asked == 1
    assert (cache / "net.pt.sha256").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  net.pt\n"
    assert listing(cache) == ["net.pt", "net.pt.sha256"]


def test_a_file_put_there_by_hand_is_taken(cache, dead_address):
    (cache / "net.pt").write_bytes(b"mine")
    assert fetch(WebFile(name="net.pt", url=dead_address), "a network").read_bytes() == b"mine"


def test_a_file_that_changes_after_its_first_use_is_noticed(cache, dead_address):
    file = WebFile(name="net.pt", url=dead_address)
    (cache / "net.pt").write_bytes(b"mine")
    fetch(file, "a network")
    (cache / "net.pt").write_bytes(b"another")
    with pytest.raises(IntegrityError, match=r"net.pt has the SHA-256 \w{64}, not \w{64}") as caught:
        fetch(file, "a network")
    assert "net.pt.sha256" in caught.value.mend


def test_a_stated_hash_is_checked_before_the_file_is_kept(address, cache):
    wrong = WebFile(name="net.pt", url=f"{address}/net", sha256="0" * 64)
    with pytest.raises(IntegrityError, match="not 0000"):
        fetch(wrong, "a network")
    assert listing(cache) == []
    right = WebFile(name="net.pt", url=f"{address}/net", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert fetch(right, "a network").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("place", "reason"), [("/short", "ended after 7,000 of 7,005 bytes"), ("/missing", "Not Found")]
)
def test_a_download_that_fails_leaves_nothing(address, cache, place, reason):
    with pytest.raises(InputDataError, match=reason):
        fetch(WebFile(name="net.pt", url=address + place), "a network")
    assert listing(cache) == []


def test_without_a_network_the_message_says_what_to_put_where(dead_address, cache):
    with pytest.raises(InputDataError, match=r"weights of Net-1 are not at .*cache/net.pt and cannot be") as caught:
        fetch(WebFile(name="net.pt", url=f"{dead_address}/net"), "Net-1")
    assert f"download {dead_address}/net and put it there" in caught.value.mend
    assert "features.weights" in caught.value.mend
    # CLIP's pseudo-labels take their weights from neither of the space's two keys.
    assert "cedm-ray cluster --method clip: --clip-weights" in caught.value.mend


def test_a_named_file_must_be_there(tmp_path):
    with pytest.raises(InputDataError, match="there is no weight file"):
        given_file(tmp_path / "none.pth")
    (tmp_path / "some.pth").write_bytes(b"x")
    assert given_file(tmp_path / "some.pth") == tmp_path / "some.pth"


# The hub ------------------------------------------------------------------------------------------------------------


def put_in_hub_cache(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    """The layout of the hub's cache: blobs named by their SHA-256, a snapshot that links to them, a reference."""
    repository = folder / "models--owner--net"
    blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = repository / "snapshots" / ("a" * 40) / name
    for path in (blob, snapshot, repository / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    snapshot.symlink_to(blob)
    (repository / "refs" / "main").write_text("a" * 40)
    return blob


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache of the test's own; the functions of the hub's client took the real one as their default."""
    import huggingface_hub

    find = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *a, **k: find(*a, cache_dir=tmp_path / "hub", **k)
    )
    return tmp_path / "hub"


NAMES = ("model.safetensors", "pytorch_model.bin")


def test_what_the_hubs_cache_has_needs_no_network(hub):
    put_in_hub_cache(hub, CONTENT)
    assert hub_file("owner/net", NAMES, kept_as="net", what="Net").read_bytes() == CONTENT


def test_a_damaged_file_in_the_hubs_cache_is_noticed(hub):
    put_in_hub_cache(hub, CONTENT).write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError, match="its SHA-256 is not its name"):
        hub_file("owner/net", NAMES, kept_as="net", what="Net")


def test_a_hub_file_put_into_our_own_folder_comes_first(hub, cache):
    put_in_hub_cache(hub, CONTENT)
    (cache / "net.tag.bin").write_bytes(b"mine")
    assert hub_file("owner/net", NAMES, kept_as="net.tag", what="Net") == cache / "net.tag.bin"


def test_an_offline_hub_is_answered_with_address_and_place(hub, cache):
    with pytest.raises(
        InputDataError, match=r"neither at .*cache/net.tag.safetensors nor in .*HF_HUB_OFFLINE"
    ) as caught:
        hub_file("owner/net@v2", NAMES, kept_as="net.tag", what="Net")
    assert "https://huggingface.co/owner/net/resolve/v2/model.safetensors" in caught.value.mend


def test_a_host_that_does_not_answer_is_found_out_by_one_connection(hub, monkeypatch, dead_address):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead_address)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("the client was asked"))
    with pytest.raises(InputDataError, match="Connection refused"):
        hub_file("owner/net", NAMES, kept_as="net", what="Net")


def test_the_second_name_is_asked_for_where_the_first_does_not_exist(hub, monkeypatch, address, tmp_path):
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository, name, revision):
        if name == "model.safetensors":
            raise EntryNotFoundError("404")
        (tmp_path / name).write_bytes(CONTENT)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert hub_file("owner/net", NAMES, kept_as="net", what="Net") == tmp_path / "pytorch_model.bin"


def test_a_hub_that_fails_is_not_asked_for_the_second_name(hub, monkeypatch, address):
    asked = []

    def download(repository, name, revision):
        asked.append(name)
        raise RuntimeError("the connection was reset\nand more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputDataError, match=r"cannot be downloaded: the connection was reset$"):
        hub_file("owner/net", NAMES, kept_as="net", what="Net")
    assert asked == ["model.safetensors"]


def test_where_there_is_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch, address, dead_address):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", address)
    assert unreachable("https://nowhere.invalid/x") is None
    monkeypatch.setenv("https_proxy", dead_address)
    assert isinstance(unreachable("https://nowhere.invalid/x"), ConnectionRefusedError)
