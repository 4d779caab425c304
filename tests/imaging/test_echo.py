import ast
from pathlib import Path

import clips
import numpy as np
import pytest

from rarescan.errors import InputError, SettingError
from rarescan.imaging import echonet
from rarescan.imaging.echo import ClipSource, list_clips
from rarescan.imaging.echo_frames import decoded, read_frames

ROOM = Path(echonet.__file__).parents[1]
FILMS = "FileName,EF,ESV,EDV,Split\n"


def source(folder: Path, **more: str) -> ClipSource:
    return ClipSource(folder=folder, columns={"file": "file"}, workers=1, **more)


def test_t18_nothing_that_current_libraries_have_dropped_is_used() -> None:
    files = [*ROOM.glob("classifiers/echo/*.py"), *ROOM.glob("imaging/echo*.py")]
    named = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            named |= {a.name for a in getattr(node, "names", ()) if isinstance(a, ast.alias)}
            named |= {str(getattr(node, "module", ""))}
    assert len(files) > 12
    assert not {"cv2", "scipy.misc", "imresize", "imread"} & named


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("aa12.avi", "aa12"),
        ("a_12.dcm", "a_12"),
        ("clips/E001.mp4", "E001"),
        ("1.2.840.12345", "1.2.840.12345"),
        ("0X1A", "0X1A"),
    ],
)
def test_t21_a_name_keeps_its_first_letters_and_its_dots(written: str, name: str) -> None:
    assert echonet.film_name(written) == name


def test_t19_a_clip_of_ten_frames_gives_ten_and_the_same_each_time(tmp_path: Path) -> None:
    clips.save_video(tmp_path / "a1.avi", clips.fan(n_frames=10))
    (tmp_path / "FileList.csv").write_text(FILMS + "a1,55,50,110,TEST\n")
    (clip,) = list_clips(source(tmp_path))
    frames = read_frames([(clip, 12), (clip, 5), (clip, 5)], workers=1)
    assert [len(f) for f in frames if f is not None] == [10, 5, 5]
    assert np.array_equal(frames[1], frames[2])
    for fewest, told in ((10, ""), (11, "too_few_frames")):
        for _, raw, fault in decoded([clip], tmp_path, fewest_frames=fewest, workers=1):
            assert fault == told
            assert raw.exists() is (told == "")
        assert not raw.exists()


def test_tables_with_words_for_numbers_or_without_a_column_are_refused(tmp_path: Path) -> None:
    table = tmp_path / echonet.FILMS
    for text, words in (
        (FILMS + "a1,high,50,110,TEST\n", "word where a number"),
        (FILMS + "a1,55,50,110,TEST,more\n", "shifted"),
        ("FileName,EF\na1,55\n", "no column Split"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=words):
            echonet.read_films(tmp_path)
    with pytest.raises(SettingError, match="missing"):
        echonet.read_tracings(tmp_path)
    table.write_text(FILMS + "a1,,50,110,val\n")
    film = echonet.read_films(tmp_path)["a1"]
    assert np.isnan(film.ef)
    assert film.split == "VAL"


def test_a_film_that_is_missing_and_a_name_that_is_no_pseudonym_are_told(tmp_path: Path) -> None:
    (tmp_path / "FileList.csv").write_text(FILMS + "a1,55,50,110,TEST\n")
    with pytest.raises(InputError, match="row 2"):
        list_clips(source(tmp_path))
    (tmp_path / "Jane Doe.avi").write_bytes(b"nothing")
    (tmp_path / "FileList.csv").write_text(FILMS + "Jane Doe,55,50,110,TEST\n")
    with pytest.raises(InputError, match="no pseudonym") as told:
        list_clips(source(tmp_path))
    assert "Jane" not in str(told.value)
