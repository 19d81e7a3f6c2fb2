"""What becomes of measurements: tables, pictures, the page, provenance."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from hadacore.benchmarking import colours, page, pictures, provenance, report, results
from hadacore.benchmarking.grid import Point
from hadacore.benchmarking.measure import Measurement

MADE_WITH: dict[str, str | None] = {"gpu": 'A, "GPU"', "driver": None, "torch": "2", "hadacore": "0", "commit": "abc"}


def measurement(size: int, elements: int, regime: str = "hot", dtype: str = "float16", **times: float) -> Measurement:
    return Measurement(Point(dtype, size, elements, regime), 2.0, "copy_vectors x2", 2.0 + math.log2(size) / 8, 1.0,
                       peers_us=times)  # fmt: skip


def test_columns_begin_as_published() -> None:
    columns = report.columns_for(["fast_hadamard_transform", "quack"], in_place=True)
    assert columns[:9] == (
        "dtype", "hadamard_size", "elements", "regime", "copy_us", "hadacore_us", "fast_hadamard_transform_us",
        "quack_us", "hadacore_inplace_us",
    )  # fmt: skip
    assert set(report.PROVENANCE_COLUMNS) <= set(columns)


def test_table_survives_a_kill_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    columns = report.columns_for([], in_place=False)
    rows = [report.row_of(measurement(size, 4096), MADE_WITH) for size in (1, 2, 4)]
    table = report.PartialTable(path, columns)
    for row in rows:
        table.append(row)
    assert not path.exists()
    whole = table.partial.read_bytes()
    for cut in (len(whole), len(whole) - 1, len(whole) - 30, len(whole.splitlines()[0]) + 5, 3, 0):
        table.partial.write_bytes(whole[:cut])
        resumed = report.PartialTable(path, columns, resume=True)
        kept = max(0, whole[:cut].count(b"\n") - 1)
        assert resumed.rows == rows[:kept]
        for row in rows[kept:]:
            resumed.append(row)
        assert resumed.partial.read_bytes() == whole
    resumed.complete()
    assert report.read_rows(path) == (columns, rows) and sorted(p.name for p in tmp_path.iterdir()) == ["t.csv"]
    assert report.point_of(rows[1]) == Point("float16", 2, 4096, "hot")


def test_table_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = report.PartialTable(path, report.columns_for([], in_place=False))
    with pytest.raises(
        ValueError, match=r"t\.partial\.csv is left from a run that did not end: continue it with --resume"
    ):
        report.PartialTable(path, table.columns)
    with pytest.raises(ValueError, match=r"cannot continue .* it has the columns .* Use the same options and packages"):
        report.PartialTable(path, report.columns_for(["quack"], in_place=False), resume=True)
    with pytest.raises(KeyError, match=r"no columns .*unknown"):
        table.append({"unknown": "1"})


def test_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    report.write_whole(path, "old")

    def killed(self: Path, data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write_whole(path, "new")
    assert path.read_text() == "old"


def example_rows() -> list[report.Row]:
    columns = report.columns_for(["quack"], in_place=False)
    rows = []
    for dtype in ("float16", "bfloat16"):
        for size in (1, 128, 8192):
            for elements in (4096, 65536):
                if elements % size == 0:
                    times = {"quack": 5.0} if size > 1 else {}
                    row = report.row_of(measurement(size, elements, dtype=dtype, **times), MADE_WITH)
                    rows.append(dict.fromkeys(columns, "") | row)
    return rows


def test_panels() -> None:
    first, second = results.panels_of(example_rows())
    assert (first.dtype, first.regime, first.sizes, first.elements) == ("float16", "hot", (1, 128, 8192), (4096, 65536))
    assert second.dtype == "bfloat16" and first.implementations == ("hadacore", "quack")
    assert first.ratio("quack", 128, 4096) == 2.5
    assert first.ratio("quack", 1, 4096) is None and first.ratio("hadacore", 8192, 4096) is None
    assert [results.count(n) for n in (100, 4096, 2_097_152, 5000)] == ["100", "4 Ki", "2 Mi", "5,000"]
    with pytest.raises(ValueError, match="the table has no rows"):
        results.panels_of([])
    with pytest.raises(ValueError, match="the table has no column copy_us, hadacore_us"):
        results.panels_of([{"dtype": "", "hadamard_size": "", "elements": "", "regime": ""}])


def test_panels_of_a_file(tmp_path: Path) -> None:
    rows = example_rows()
    report.write_csv(tmp_path / "t.csv", tuple(rows[0]), rows)
    assert results.read_panels(tmp_path / "t.csv") == results.panels_of(rows)


def test_pictures_and_page() -> None:
    pytest.importorskip("matplotlib")
    panels = results.panels_of(example_rows())
    drawn = pictures.draw_all(panels, "a GPU")
    kinds = ("ratios", "times", "speedups")
    assert set(drawn) == {f"{kind}-{dtype}-hot" for kind in kinds for dtype in ("float16", "bfloat16")}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in drawn.values())
    text = page.page(panels, drawn, MADE_WITH, ["peer: failed at <x>"])
    assert text.count("<table>") == 4 and text.count("data:image/png;base64,") == 4
    assert "https:" not in text and "http:" not in text  # self-contained
    assert "failed at &lt;x&gt;" in text and "A, &quot;GPU&quot;" in text
    assert "prefers-color-scheme: dark" in text and ">2.50</td>" in text and 'title="5.000 µs, a copy 2.000 µs"' in text


def test_no_speedup_picture_without_a_peer() -> None:
    pytest.importorskip("matplotlib")
    rows = [report.row_of(measurement(128, 4096), MADE_WITH)]
    assert set(pictures.draw_all(results.panels_of(rows), "")) == {"ratios-float16-hot", "times-float16-hot"}


def test_missing_matplotlib_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(pictures.PicturesUnavailableError, match=r'pip install "hadacore\[bench\]"'):
        pictures.new_figure(1, 1)


def test_colours_are_readable() -> None:
    assert colours.ratio_colour(0.5) == colours.ratio_colour(1.0) and colours.ratio_colour(9.0) == colours.ratio_colour(
        3.0
    )

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for i in range(41):
        background = colours.ratio_colour(1 + i / 20)
        lights = sorted((luminance(colours.hexadecimal(background)), luminance(colours.text_colour(background))))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 3.5
    assert colours.scale_top([1.0]) == 3.0 and colours.scale_top([50.0]) == 50.0
    names = ("copy", "hadacore", "a", "b")
    assert len({colours.line_colour(name, names) for name in names}) == 4


def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance.provenance(torch.device("cpu"))
    assert found["torch"] == torch.__version__ and "thread" in (found["gpu"] or "")
    assert provenance.package_version("there-is-no-such-package") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.driver_version() is None and provenance.commit() is None
