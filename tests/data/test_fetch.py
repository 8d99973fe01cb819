"""Files are found in a stated order, and a download is whole or not there."""

import gzip
import socket
from pathlib import Path

import pytest

from bptoolkit.data import fetch

GOOD = b"good content " * 1000


def read(content: bytes, origin: str) -> bytes:
    """A reader that accepts GOOD only."""
    if content != GOOD:
        raise ValueError(f"{origin}: expected the good content, got {len(content)} bytes.\nA line of advice.")
    return content


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def quick(urls, into):
    return fetch.download(urls, into, read, pause=0.0)


def closed_port() -> int:
    """A port on which nobody listens: just given out by the system, and given back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_places_come_in_their_order(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path / "mine"))
    home = fetch.Home("set", (), (tmp_path / "system",))
    assert list(fetch.places(home)) == [tmp_path / "mine" / "set", cache / "set", tmp_path / "system"]


def test_an_empty_variable_counts_as_unset_and_home_is_expanded(cache, monkeypatch):
    monkeypatch.setenv("BPTOOLKIT_DATA", "")
    assert list(fetch.places(fetch.Home("set", ()))) == [cache / "set"]
    monkeypatch.setenv("BPTOOLKIT_DATA", "~/data")
    assert next(fetch.places(fetch.Home("set", ()))) == Path.home() / "data" / "set"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_first_place_that_has_the_file_gives_it(cache, tmp_path, monkeypatch, first):
    """With copies in place `first` and all later ones, that place's is found; a folder of that name is no file."""
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path / "mine"))
    home = fetch.Home("set", (), (tmp_path / "system",))
    for place, folder in enumerate(fetch.places(home)):
        folder.mkdir(parents=True)
        (folder / "file.gz").write_bytes(b"") if place >= first else (folder / "file.gz").mkdir()
    assert fetch.find(home, "file") == list(fetch.places(home))[first] / "file.gz"
    assert fetch.find(home, "other") is None


def test_unpacked_comes_before_packed(cache):
    (cache / "set").mkdir(parents=True)
    for name in ("file", "file.gz"):
        (cache / "set" / name).write_bytes(GOOD)
    assert fetch.find(fetch.Home("set", ()), "file") == cache / "set" / "file"


def test_a_found_file_that_is_refused_is_an_error_though_a_good_one_is_further_on(cache, tmp_path, monkeypatch, server):
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path / "mine"))
    for folder, content in ((tmp_path / "mine" / "set", b"bad"), (cache / "set", GOOD)):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(content)
    with pytest.raises(ValueError, match="expected the good content") as caught:
        fetch.obtain(fetch.Home("set", (server.url,)), "file", read)
    assert str(tmp_path / "mine" / "set" / "file") in str(caught.value)
    assert server.asked == []


def test_a_broken_mirror_is_passed_over(server, answer, tmp_path):
    server.answers["/second/file.gz"] = [answer(GOOD)]
    urls = [f"http://127.0.0.1:{closed_port()}/file.gz", f"{server.url}first/file.gz", f"{server.url}second/file.gz"]
    assert quick(urls, tmp_path / "new" / "folder") == GOOD
    assert server.asked == ["/first/file.gz", "/second/file.gz"]
    assert files(tmp_path / "new" / "folder") == ["file.gz"]
    assert (tmp_path / "new" / "folder" / "file.gz").read_bytes() == GOOD


def test_a_mirror_that_recovers_is_tried_again(server, answer, tmp_path):
    server.answers["/file.gz"] = [answer(status=503), answer(GOOD)]
    assert quick([f"{server.url}file.gz"], tmp_path) == GOOD
    assert server.asked == ["/file.gz"] * 2


def test_a_corrupt_download_is_refused_and_not_kept(server, answer, tmp_path):
    server.answers["/file.gz"] = [answer(GOOD[:-1])]
    with pytest.raises(ConnectionError, match=f"expected the good content, got {len(GOOD) - 1} bytes") as caught:
        quick([f"{server.url}file.gz"], tmp_path)
    assert "advice" not in str(caught.value)  # it is about a file that one has
    assert files(tmp_path) == []
    assert server.asked == ["/file.gz"] * fetch.ROUNDS


def test_a_corrupt_download_sends_it_to_the_next_mirror(server, answer, tmp_path):
    server.answers["/bad/file.gz"] = [answer(b"a page of HTML")]
    server.answers["/good/file.gz"] = [answer(GOOD)]
    assert quick([f"{server.url}bad/file.gz", f"{server.url}good/file.gz"], tmp_path) == GOOD
    assert (tmp_path / "file.gz").read_bytes() == GOOD


def test_a_connection_that_breaks_off_leaves_nothing(server, answer, tmp_path):
    """The server promises more than it sends: the part that came is the good content, and is refused all the same."""
    server.answers["/file.gz"] = [answer(GOOD, promised=len(GOOD) + 1)]
    with pytest.raises(ConnectionError, match="no mirror gave a good file"):
        quick([f"{server.url}file.gz"], tmp_path)
    assert files(tmp_path) == []


def test_an_error_without_words_is_told_by_its_name(server, answer, tmp_path, monkeypatch):
    """And the next mirror is asked."""

    def silent(url, path):
        if "first" in url:
            raise TimeoutError
        path.write_bytes(GOOD)

    monkeypatch.setattr(fetch, "_transfer", silent)
    assert quick([f"{server.url}first/file.gz", f"{server.url}second/file.gz"], tmp_path / "both") == GOOD
    with pytest.raises(ConnectionError, match="TimeoutError"):
        quick([f"{server.url}first/file.gz"], tmp_path / "one")


def test_an_interrupted_download_leaves_nothing(server, answer, tmp_path):
    def interrupted(content: bytes, origin: str) -> bytes:
        assert len(files(tmp_path)) == 2  # the part is there, in its folder, while it is read
        raise KeyboardInterrupt

    server.answers["/file.gz"] = [answer(GOOD)]
    with pytest.raises(KeyboardInterrupt):
        fetch.download([f"{server.url}file.gz"], tmp_path, interrupted)
    assert files(tmp_path) == []


def test_a_download_shows_its_progress(server, answer, tmp_path, capfd):
    server.answers["/file.gz"] = [answer(GOOD)]
    quick([f"{server.url}file.gz"], tmp_path)
    assert "100%" in capfd.readouterr().err


def test_a_server_that_unpacks_what_it_sends_does_no_harm(server, answer, tmp_path):
    """With Content-Encoding: gzip the bytes arrive unpacked under a .gz name; the reader gets what is stored."""
    server.answers["/file.gz"] = [answer(gzip.compress(GOOD), headers=(("Content-Encoding", "gzip"),))]
    assert quick([f"{server.url}file.gz"], tmp_path) == (tmp_path / "file.gz").read_bytes() == GOOD


def test_what_was_downloaded_is_found_next_time(cache, server, answer):
    server.answers["/file.gz"] = [answer(GOOD)]
    home = fetch.Home("set", (server.url,))
    assert fetch.obtain(home, "file", read) == fetch.obtain(home, "file", read) == GOOD
    assert server.asked == ["/file.gz"]
    assert files(cache) == ["set", "set/file.gz"]


def test_nowhere_to_be_had_says_where_it_looked_and_what_to_do(cache, tmp_path, monkeypatch, server):
    monkeypatch.setattr(fetch.download, "__kwdefaults__", {"rounds": 2, "pause": 0.0})
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path / "mine"))
    dead = f"http://127.0.0.1:{closed_port()}/"
    home = fetch.Home("set", (server.url, dead), (tmp_path / "system",))
    with pytest.raises(FileNotFoundError) as caught:
        fetch.obtain(home, "file", read)
    message = str(caught.value)
    places = (f"{tmp_path / 'mine' / 'set'} (no such folder)", f"{cache / 'set'}\n", f"{tmp_path / 'system'} (no such")
    for part in (*places, f"{server.url}file.gz", f"{dead}file.gz", "404", "refused", "Set BPTOOLKIT_DATA to a folder"):
        assert part in message
    assert "not set" not in message
    assert files(cache) == ["set"]


def test_an_unset_variable_is_said_to_be_unset(cache):
    with pytest.raises(FileNotFoundError, match=r"\$BPTOOLKIT_DATA/set \(the variable is not set\)"):
        fetch.obtain(fetch.Home("set", ()), "file", read)


def test_a_cache_that_cannot_be_written_is_said_to_be(cache, server, answer):
    server.answers["/file.gz"] = [answer(GOOD)]
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded: .*cache"):
        fetch.obtain(fetch.Home("set", (server.url,)), "file", read)
    assert server.asked == []
