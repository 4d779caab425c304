import http.server
import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from loopback_pacs import SLICES, Archive, Web, free_port, matches
from pydicom.dataset import Dataset

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")

from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from pynetdicom.transport import AssociationSocket

from rarescan.configs.schema import RunConfig
from rarescan.errors import (
    ChangedRecipeError,
    ExitCode,
    InputError,
    SettingError,
    UnreachableError,
)
from rarescan.flows import verbs
from rarescan.pacs.pull import pull_series
from rarescan.pacs.spec import PullConfig


@pytest.fixture(scope="module")
def datasets(
    make_dataset: Any, make_head: Any, save_dataset: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[Dataset]:
    """Return three series as datasets that lie on disk."""
    folder = tmp_path_factory.mktemp("archive")
    made = []
    for series, values in {
        "a": {"SeriesDescription": "t1_mprage"},
        "b": {"SeriesDescription": "localizer"},
        "c": {"PatientID": "OTHER", "StudyDate": "20200101", "SeriesDescription": "T1 space"},
    }.items():
        for k in range(SLICES):
            ds = make_dataset(make_head(ord(series), 24), k, series, **values)
            save_dataset(ds, folder / f"{series}{k}")
            made.append(pydicom.dcmread(folder / f"{series}{k}"))
    return made


@pytest.fixture
def archive(datasets: list[Dataset]) -> Archive:
    return Archive(list(datasets))


@pytest.fixture
def dicom(archive: Archive) -> Iterator[str]:
    """Return the address of the archive behind DICOM's own protocol."""

    def find(event: Any) -> Iterator[Any]:
        yield from ((0xFF00, row) for row in matches(archive, event.identifier))

    def send(event: Any) -> Iterator[Any]:
        series = event.identifier.SeriesInstanceUID
        archive.asked.append(series)
        found = archive.deliver(archive.of(series))
        if "MoveDestination" in event.request.__dict__ or hasattr(event, "move_destination"):
            if not archive.knows_us:
                yield None, None
                return
            yield "127.0.0.1", receive_port, {}
        yield len(found)
        for k, ds in enumerate(found):
            if series in archive.drops and k == 3:
                archive.drops.remove(series)
                event.assoc.abort()
                return
            yield 0xFF00, ds

    entity = AE(ae_title="PACS")
    entity.require_called_aet = True
    for model in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        entity.add_supported_context(model)
    entity.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    entity.add_requested_context(MRImageStorage)
    receive_port = free_port()
    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_GET, send), (evt.EVT_C_MOVE, send)],
    )
    assert server is not None
    yield f"dicom://PACS@127.0.0.1:{server.server_address[1]}#{receive_port}"
    server.shutdown()


@pytest.fixture
def web(archive: Archive) -> Iterator[str]:
    """Return the address of the archive behind DICOMweb."""
    Web.archive, Web.status = archive, 200
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the child processes where the test is not about them; what they set is set back."""
    monkeypatch.setattr("rarescan.pacs.pull._in_child", lambda work, *given: work(*given))
    for place, name in (
        (tempfile, "tempdir"), (threading, "excepthook"), (AssociationSocket, "recv"),
        (_config, "STORE_RECV_CHUNKED_DATASET"), (_config, "UNRESTRICTED_STORAGE_SERVICE"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(logging.getLogger("pydicom"), "level", logging.WARNING)
    monkeypatch.setattr(
        pydicom.config.settings, "_reading_validation_mode", pydicom.config.WARN, raising=False
    )


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarescan.pacs.pull._WAITS_SECONDS", (0.0, 0.0))
    monkeypatch.delenv("RARESCAN_PULL_CREDENTIALS", raising=False)


here = pytest.mark.usefixtures("in_this_process")
both = pytest.mark.parametrize("way", ["web", "get"])


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Callable[..., PullConfig]:
    """Return the maker of settings: `settings(way, **values)`."""

    def make(way: str, **values: Any) -> PullConfig:
        address = request.getfixturevalue("web" if way == "web" else "dicom")
        address, _, port = address.partition("#")
        given = {
            "address": address, "retrieve": "move" if way == "move" else "get",
            "receive_port": int(port or 1), "pause_seconds": 0.0,
            "from_date": "2019-06-10", "to_date": "2019-06-12",
        }  # fmt: skip
        return PullConfig(**{**given, **values})

    return make


def received(folder: Path) -> dict[str, set[bytes]]:
    """Return the pixels by series; every name must be ours."""
    found: dict[str, set[bytes]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert re.fullmatch(r"\d{6}/\d{6}\.dcm", str(path.relative_to(folder)))
        ds = pydicom.dcmread(path)
        found.setdefault(str(ds.SeriesInstanceUID), set()).add(ds.PixelData)
    return found


def held(archive: Archive, *names: str) -> dict[str, set[bytes]]:
    wanted = [archive.datasets[0], archive.datasets[SLICES], archive.datasets[2 * SLICES]]
    return {
        str(ds.SeriesInstanceUID): {d.PixelData for d in archive.of(ds.SeriesInstanceUID)}
        for ds in wanted
        if ds.SeriesDescription in names
    }


@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_what_was_promised_arrives_under_our_own_names(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    done = pull_series(tmp_path / "p", settings(way))
    assert received(done.export) == held(archive, "t1_mprage", "localizer")
    assert (done.n_series, done.n_files, done.n_incomplete) == (2, 2 * SLICES, 0)
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {"export", "pull.sqlite", "recipe.json"}
    assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700


@here
@both
def test_descriptions_persons_and_days_choose(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("patient_id,diagnosis\nOTHER,control\nNOBODY,bvFTD\n")
    done = pull_series(tmp_path / "a", settings(way, persons=str(table), from_date="", to_date=""))
    assert received(done.export) == held(archive, "T1 space")
    done = pull_series(tmp_path / "b", settings(way, persons=str(table)))
    assert (done.n_series, received(done.export)) == (0, {})
    days = {"from_date": "2020-01-01", "to_date": "2020-01-02"}
    done = pull_series(tmp_path / "c", settings(way, **days, description="*T1*"))
    assert received(done.export) == held(archive, "T1 space")
    done = pull_series(tmp_path / "d", settings(way, description="T1*"))
    assert received(done.export) == held(archive, "t1_mprage")


@here
def test_the_verb_says_so_where_nothing_matches(
    settings: Any, archive: Archive, tmp_path: Path
) -> None:
    config = RunConfig(pull=settings("web", description="flair*"))
    with pytest.raises(InputError, match="no series that matches") as error:
        verbs.pull(config, tmp_path / "a")
    assert "description" in error.value.remedy


@here
@both
def test_an_archive_that_ignores_the_question_gives_no_other_person(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    archive.ignores_keys = True
    archive.more = [
        {"level": "STUDY", "StudyInstanceUID": "../../x", "StudyDate": "20190611"},
        {"level": "SERIES", "SeriesInstanceUID": "..", "SeriesDescription": "t1_mprage"},
    ]
    table = tmp_path / "labels.csv"
    table.write_text("patient_id\n00471199\n")
    done = pull_series(tmp_path / "a", settings(way, persons=str(table)))
    assert received(done.export) == held(archive, "t1_mprage", "localizer")
    done = pull_series(tmp_path / "b", settings(way, from_date="2020-01-01", to_date="2020-01-01"))
    assert received(done.export) == held(archive, "T1 space")
    done = pull_series(tmp_path / "c", settings(way, modality="US"))
    assert done.n_series == 0


@pytest.mark.long
@here
@pytest.mark.parametrize("way", ["web", "get", "move"])
@pytest.mark.parametrize("fault", ["fewer", "more", "twice", "foreign"])
def test_wrong_counts_and_foreign_files_are_set_apart_until_the_series_comes_whole(
    fault: str, way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    other = archive.datasets[-1]
    faults: dict[str, Callable[[list[Dataset]], list[Dataset]]] = {
        "fewer": lambda found: found[:-1],
        "twice": lambda found: [found[0], *found[:-1]],
        "foreign": lambda found: [*found[:-1], other],
        "more": lambda found: found,
    }
    archive.deliver = faults[fault]
    if fault == "more":
        archive.promise = lambda n: n - 2
    config = settings(way, description="t1_mprage")
    done = pull_series(tmp_path / "p", config)
    assert (done.n_series, done.n_files, done.n_incomplete) == (0, 0, 1)
    assert received(done.export) == {}
    (pixels,) = received(tmp_path / "p/incomplete").values()
    assert len(pixels) == SLICES - 1
    archive.deliver, archive.promise = (lambda found: found), (lambda n: n)
    done = pull_series(tmp_path / "p", config)
    assert received(done.export) == held(archive, "t1_mprage")
    assert not [*(tmp_path / "p/incomplete").iterdir()]


@here
@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_a_connection_that_drops_in_the_middle_is_made_again(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    archive.drops = [str(archive.datasets[0].SeriesInstanceUID)] * 2
    done = pull_series(tmp_path / "p", settings(way))
    assert received(done.export) == held(archive, "t1_mprage", "localizer")
    assert archive.drops == []


@here
@both
def test_a_series_that_always_breaks_off_does_not_keep_the_others_back(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    archive.drops = [str(archive.datasets[0].SeriesInstanceUID)] * 99
    done = pull_series(tmp_path / "p", settings(way))
    assert received(done.export) == held(archive, "localizer")
    assert (done.n_series, done.n_incomplete) == (1, 1)


@here
@both
def test_a_repeated_pull_asks_again_and_fetches_only_what_is_new(
    way: str, settings: Any, archive: Archive, datasets: list[Dataset], tmp_path: Path
) -> None:
    archive.datasets = [ds for ds in datasets if ds.SeriesDescription == "t1_mprage"]
    first = pull_series(tmp_path / "p", settings(way))
    before = {p: p.stat().st_mtime_ns for p in first.export.rglob("*.dcm")}
    archive.datasets = list(datasets)
    archive.asked = []
    again = pull_series(tmp_path / "p", settings(way))
    assert received(again.export) == held(archive, "t1_mprage", "localizer")
    assert before.items() <= {p: p.stat().st_mtime_ns for p in again.export.rglob("*.dcm")}.items()
    assert str(datasets[0].SeriesInstanceUID) not in archive.asked


@here
def test_a_file_whose_uid_is_a_path_stays_inside(
    settings: Any, archive: Archive, tmp_path: Path
) -> None:
    evil = pydicom.dcmread(str(archive.datasets[0].filename))
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        evil.SOPInstanceUID = "../../../../../../evil"
    evil.filename = archive.datasets[0].filename
    archive.datasets[0] = evil
    done = pull_series(tmp_path / "deep/er/p", settings("get", description="t1*"))
    assert len(received(done.export)[str(evil.SeriesInstanceUID)]) == SLICES
    assert not [p for p in tmp_path.rglob("*evil*")]


def test_an_archive_that_refuses_or_is_away_ends_with_a_remedy(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarescan.pacs.pull._WAITS_SECONDS", ())
    config = settings("get")
    wrong = config.address.replace("PACS@", "OTHER@")
    with pytest.raises(SettingError, match="rejects us") as refused:
        pull_series(tmp_path / "a", settings("get", address=wrong))
    assert "AE title" in refused.value.remedy
    for address in (f"dicom://PACS@127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        with pytest.raises(UnreachableError) as away:
            pull_series(tmp_path / "b", settings("get", address=address))
        assert away.value.exit_code is ExitCode.UNREACHABLE
        assert "pull.address" in away.value.remedy


@here
def test_a_query_that_is_hung_up_on_has_no_status_and_ends_with_5(
    settings: Any, archive: Archive, tmp_path: Path
) -> None:
    def hang_up(*_: Any) -> list[dict[str, str]]:
        raise RuntimeError("nobody may ask")

    archive.find = hang_up  # type: ignore[method-assign]
    with pytest.raises(UnreachableError, match="status 0xc") as caught:
        pull_series(tmp_path / "p", settings("get"))
    assert "nobody may ask" not in str(caught.value)


def test_an_endless_message_costs_no_memory(settings: Any, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    sent = []

    def talk() -> None:
        # An association is accepted with a message of 4 GiB, again and again.
        for _ in range(3):
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                sent.append(0)
                try:
                    for _ in range(1 << 16):
                        peer.sendall(b"\x02\0\xff\xff\xff\xff" + bytes(1 << 16))
                        sent[-1] += 1 << 16
                except OSError:
                    continue

    thread = threading.Thread(target=talk)
    thread.start()
    address = f"dicom://PACS@127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(UnreachableError):
        pull_series(tmp_path / "p", settings("get", address=address))
    thread.join()
    listener.close()
    # What the kernel buffers, and not the 4 GiB.
    assert max(sent) < 64 << 20


@here
@both
def test_endless_matches_end(
    way: str, settings: Any, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarescan.pacs.peer._MOST_MATCHES", 9)
    archive.more = [
        {"level": "STUDY", "StudyInstanceUID": f"1.2.{k}", "StudyDate": "20190611"}
        for k in range(12)
    ]
    with pytest.raises(UnreachableError, match="more than 9"):
        pull_series(tmp_path / "p", settings(way))


@here
@pytest.mark.parametrize(
    ("status", "error"),
    [(401, SettingError), (403, SettingError), (302, UnreachableError), (503, UnreachableError)],
)
def test_refusals_over_http_are_told_apart(
    status: int, error: type[Exception], settings: Any, tmp_path: Path
) -> None:
    config = settings("web")
    Web.status = status
    with pytest.raises(error):
        pull_series(tmp_path / "p", config)


@here
def test_the_page_that_comes_again_and_again_is_the_last(
    settings: Any, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rarescan.pacs.dicomweb._PAGE", 1)
    done = pull_series(tmp_path / "p", settings("web"))
    assert received(done.export) == held(archive, "t1_mprage", "localizer")


@here
@pytest.mark.parametrize(
    ("given", "sent"), [("anna:pw", "Basic YW5uYTpwdw=="), ("Bearer t0ken", "Bearer t0ken")]
)
def test_credentials_reach_an_archive_on_this_machine(
    given: str, sent: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RARESCAN_PULL_CREDENTIALS", given)
    pull_series(tmp_path / "p", settings("web"))
    assert Web.authorization == sent


@here
@both
def test_an_archive_that_tells_no_counts_is_asked_for_its_files(
    way: str, settings: Any, archive: Archive, tmp_path: Path
) -> None:
    archive.counts = False
    done = pull_series(tmp_path / "p", settings(way, description="t1*"))
    assert (done.n_files, done.n_incomplete) == (SLICES, 0)
    archive.deliver = lambda found: found[:-1]
    assert pull_series(tmp_path / "q", settings(way)).n_incomplete == 2


@here
def test_an_archive_that_does_not_know_our_receiver_is_told_to_the_person(
    settings: Any, archive: Archive, tmp_path: Path
) -> None:
    archive.knows_us = False
    with pytest.raises(SettingError, match="does not know where 'RARESCAN' is"):
        pull_series(tmp_path / "p", settings("move"))
    config = settings("move", receive_host="203.0.113.1")
    with pytest.raises(SettingError, match="Nothing can be received"):
        pull_series(tmp_path / "p", config)


@here
def test_passwords_come_from_a_private_file_and_never_travel_open(
    settings: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("anna:pass-w0rd\n")
    secret.chmod(0o644)
    config = settings("web", credentials_file=str(secret))
    with pytest.raises(SettingError, match="Other users") as caught:
        pull_series(tmp_path / "p", config)
    os.system(caught.value.remedy.split("`")[1])  # noqa: S605 - the remedy must work as written
    far = settings("web", credentials_file=str(secret), address="http://pacs.hospital/dicom-web")
    with pytest.raises(SettingError, match="unencrypted"):
        pull_series(tmp_path / "p", far)


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"from_date": ""}, "which studies"),
    ({"from_date": "11.06.2019"}, "from_date is no date"),
    ({"from_date": "2019-06-13"}, "which studies"),
    ({"persons": "/nowhere.csv"}, "missing"),
    ({"address": ""}, "no address"),
    ({"address": "dicom://127.0.0.1:104"}, "no address"),
    ({"address": "dicom://PACS@127.0.0.1:x"}, "no address"),
    ({"address": "ftp://x"}, "no address"),
    ({"credentials_file": "/nowhere"}, "missing"),
]


@here
@pytest.mark.parametrize(("values", "words"), BAD_SETTINGS)
def test_settings_that_cannot_be_are_told(
    values: dict[str, Any], words: str, settings: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        pull_series(tmp_path / "p", settings("get", **values))


@here
@pytest.mark.parametrize("row", ["*", "A?", "A\\B", ""])
def test_persons_that_would_match_others_are_refused_by_line(
    row: str, settings: Any, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"patient_id,accession\nGOOD,\n{row},\n")
    with pytest.raises(SettingError, match="Line 3") as caught:
        pull_series(tmp_path / "p", settings("get", persons=str(table)))
    assert not row or row not in caught.value.problem


@here
def test_a_folder_is_for_one_process_and_one_archive(settings: Any, tmp_path: Path) -> None:
    from rarescan.pacs.manifest import opened

    config = settings("web")
    first = pull_series(tmp_path / "p", config)
    with (
        opened(tmp_path / "p", config, overwrite=False),
        pytest.raises(InputError, match="Another process"),
    ):
        pull_series(tmp_path / "p", config)
    other = settings("web", modality="US")
    with pytest.raises(ChangedRecipeError, match=r"pull\.modality"):
        pull_series(tmp_path / "p", other)
    assert pull_series(tmp_path / "p", config, overwrite=True) == first
    assert pull_series(tmp_path / "p", other, overwrite=True).n_files == 0
    assert not [*first.export.iterdir()]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").touch()
    with pytest.raises(ChangedRecipeError, match="not filled"):
        pull_series(tmp_path / "mine", config)


@here
def test_the_recipe_holds_no_identity(settings: Any, archive: Archive, tmp_path: Path) -> None:
    table = tmp_path / "labels-Mustermann.csv"
    table.write_text("patient_id\n00471199\n")
    pull_series(tmp_path / "p", settings("web", persons=str(table)))
    recipe = (tmp_path / "p/recipe.json").read_text()
    first = archive.datasets[0]
    for token in ("00471199", "Mustermann", str(first.StudyInstanceUID), "2019"):
        assert token not in recipe
