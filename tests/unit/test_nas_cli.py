"""`ofa nas`: what a user does, what it prints, and the report of it."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from ofa.genotype import parse_genotype
from search.alpha_plot import EdgeHistory, draw_edge
from search.report import write_report

TINY = ["--cells", "3", "--channels", "4", "--resolution", "16", "--epochs", "2", "--batch-size", "8", "--max-images", "60"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(run, what the command said) of a tiny search."""
    import os
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("nas") / "tiny"
    command = [sys.executable, "-c", "from search.cli import main; main()", "nas", "darts", "--data", "digits", *TINY]
    done = subprocess.run(
        [*command, "--max-skips", "1", "--out", str(out)], capture_output=True, text=True, env={**os.environ, **ONE_THREAD}
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_genotype_is_on_stdout_and_the_rest_is_not(searched):
    out, done = searched
    assert done.stdout.strip() == (out / "genotype.txt").read_text().strip()
    parse_genotype(done.stdout)
    assert "must be trained anew" in done.stderr
    assert "Cells of one seed vary" in done.stderr
    assert f"next: ofa train --arch {out}/arch.json --data digits" in done.stderr
    assert f"ofa report {out}" in done.stderr


def test_the_command_is_in_the_record_of_the_run(searched):
    record = json.loads((searched[0] / "run.json").read_text())
    assert record["commands"][0]["argv"][:3] == ["ofa", "nas", "darts"]
    assert json.loads((searched[0] / "nas" / "config.json").read_text())["guards"]["max_skips"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search needs images: --data cifar10"),
        (["--rnn"], "--rnn needs a text"),
        (["--rnn", "--text", "x", "--cells", "8"], "--cells 8: --rnn searches a cell for text, which has no use for it"),
        (["--data", "digits", "--text", "x"], "--text x: without --rnn"),
        (["--data", "digits", "--dropout", "0"], "--dropout 0.0: without --rnn"),
        (["--rnn", "--text", "x", "--dropout", "1.5"], "--dropout 1.5: expected a factor of at least 0 and below 1.33"),
        (["--data", "digits", "--order", "3"], "unknown order '3'; known: 1, 2, exact"),
        (["--data", "digits", "--space", "nasnet"], "expected one of: darts, nasbench201"),
        (["--data", "digits", "--target-ms", "3"], "target_ms is 3, but there is no latency table"),
        (["--data", "digits", "--latency-weight", "1"], "--latency-weight 1.0: this search has no --target-ms and no --table"),
        (["--data", "digits", "--target-ms", "3", "--table", "/no/such.json"], "/no/such.json: no such file"),
        (["--data", "digits", "--max-skips", "-1"], "max_skips is -1"),
        (["--data", "/no/such"], "no such directory, archive or name"),
        (["--data", "digits", "--max-images", "20"], "fewer than batch_size"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, arguments, message, capsys, monkeypatch):
    import sys

    from search.cli import main

    out = tmp_path / "x"
    monkeypatch.setattr(sys, "argv", ["ofa", "nas", "darts", "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_usage_has_its_own_code(cli):
    assert cli("nas", "bogus").returncode == 2
    assert cli("nas", "darts").returncode == 2  # no --out
    assert "darts" in cli("nas", "--help").stdout


def test_help_teaches(cli):
    text = " ".join(cli("nas", "darts", "--help").stdout.split())
    assert "Example: ofa nas darts --data cifar10 --out runs/darts" in text
    assert "P-DARTS" in text
    assert "of the network of all operations" in text


def test_cyclic_darts_and_its_report(cli, tmp_path):
    small = ["--cells", 3, "--evaluation-cells", 3, "--channels", 4, "--resolution", 16, "--batch-size", 8, "--max-images", 60]
    phases = ["--pretrain-epochs", 1, "--cycles", 1, "--warmup-epochs", 1, "--cycle-epochs", 1]
    done = cli("nas", "cdarts", "--data", "digits", "--out", tmp_path / "x", *small, *phases, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    parse_genotype(done.stdout)
    html = write_report(tmp_path / "x").read_text()
    assert "Found by Cyclic-DARTS, after" in html
    assert html.count('<svg class="alphas"') == 28


def test_recurrent_cells(cli, tmp_path):
    words = " ".join(str(i * i % 7) for i in range(3_000))
    (tmp_path / "words.txt").write_text("\n".join(words[i : i + 60] for i in range(0, len(words), 60)))
    small = ["--features", 8, "--epochs", 1, "--batch-size", 4, "--bptt", 10, "--dropout", 0.2]
    done = cli("nas", "darts", "--rnn", "--text", tmp_path / "words.txt", "--out", tmp_path / "x", *small, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "x" / "genotype.txt").read_text()
    parse_genotype(done.stdout)
    assert (tmp_path / "x" / "cells.svg").exists()
    assert "a search on text has no report" in done.stderr
    assert f"next: ofa train-text {tmp_path / 'x'} --text {tmp_path / 'words.txt'} --out {tmp_path / 'x'}-trained" in done.stderr
    shares = json.loads((tmp_path / "x" / "nas" / "config.json").read_text())["dropouts"]
    assert shares == pytest.approx({"outputs": 0.15, "hidden": 0.05, "inputs": 0.15, "embeddings": 0.04, "words": 0.0})


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_shows_cells_alphas_and_skips(searched, tmp_path):
    html = write_report(searched[0], tmp_path / "report.html").read_text()
    assert re.findall(r'<section id="([\w-]+)">', html) == ["cells", "provenance"]
    drawings = re.findall(r'<svg class="cell".*?</svg>', html, re.S)
    assert [ET.fromstring(svg).get("aria-label").partition(":")[0] for svg in drawings] == ["Normal cell", "Reduction cell"]
    assert html.count('<svg class="alphas"') == 28
    assert html.count("Skips in the derived cells over epoch") == 1
    assert "must be trained anew" in html
    assert str(parse_genotype((searched[0] / "genotype.txt").read_text())).replace("'", "&#39;") in html
    assert html.count("<strong>0.") == 16  # what is in the cells, in the tables


def test_the_report_of_a_search_under_way(searched, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(searched[0], run)
    (run / "genotype.txt").unlink()
    html = write_report(run).read_text()
    assert "It is under way." in html
    assert "as they would be now" in html


def test_a_damaged_record_is_told(searched, tmp_path):
    import shutil

    from ofa.errors import OfaError

    run = tmp_path / "run"
    shutil.copytree(searched[0], run)
    lines = (run / "nas" / "alphas.jsonl").read_text().splitlines()
    broken = json.loads(lines[0])
    broken["probabilities"]["normal"] = broken["probabilities"]["normal"][:3]
    (run / "nas" / "alphas.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(OfaError, match=r"damaged .* remove alphas.jsonl to go on without it"):
        write_report(run)


def test_a_genotype_that_is_none_is_shown_as_text(searched, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(searched[0], run)
    (run / "genotype.txt").write_text("<script>alert(1)</script>")
    html = write_report(run).read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_a_heat_map_has_the_probabilities_and_says_which_is_best():
    history = EdgeHistory("c(k-1) to 3", [0, 1, 2], [[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], "skip_connect")
    svg = ET.fromstring(str(draw_edge(history, ["none", "skip_connect"], 1.0)))
    maps = [float(r.get("fill-opacity")) for r in svg.iter("rect")]
    assert maps == [0.5, 0.25, 0.1, 0.5, 0.75, 0.9]
    assert svg.get("aria-label") == ("c(k-1) to 3: skip is most probable after epoch 2 with 0.90; it is skip in the cell")


def test_long_searches_stay_small():
    n = 1000
    history = EdgeHistory("x", range(n), [[i / n] for i in range(n)], "")
    svg = ET.fromstring(str(draw_edge(history, ["none"], 1.0)))
    rects = list(svg.iter("rect"))
    assert len(rects) <= 62
    assert float(rects[-1].get("fill-opacity")) == pytest.approx(0.999)
