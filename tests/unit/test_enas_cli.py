"""`ofa nas enas`: what a user does, what it prints, and the report of it."""

import json
import os
import re
import subprocess
import sys

import pytest

from ofa.formats.enas import parse_arc
from ofa.genotype import parse_genotype
from search.cli import main
from search.report import write_report

TINY = ["--channels", "2", "--resolution", "8", "--epochs", "2", "--batch-size", "8", "--max-images", "100"]
STEPS = ["--controller-steps", "2", "--samples", "2", "--candidates", "3", "--train-portion", "0.5"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(run, what the command said) of a tiny macro search."""
    out = tmp_path_factory.mktemp("nas") / "tiny"
    command = [sys.executable, "-c", "from search.cli import main; main()", "nas", "enas", "--space", "macro", "--depth", "4"]
    done = subprocess.run(
        [*command, "--data", "digits", *TINY, *STEPS, "--reward", "mnasnet_soft", "--where", "macs <= 2M", "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_the_arc_is_on_stdout_and_the_rest_is_not(searched):
    out, done = searched
    assert done.stdout == (out / "arc.txt").read_text()
    assert len(parse_arc(done.stdout)) == 10  # of 4 layers
    assert "must be trained anew" in done.stderr
    assert f"drawn in {out}/chain.svg; ranking: {out}/nas/candidates.json" in done.stderr
    assert f"next: ofa train --arch {out}/arch.json --data digits --out {out}-trained --dropout 0.5" in done.stderr  # as priced
    assert "--depth 24" in done.stderr
    assert f"ofa report {out}" in done.stderr
    assert (out / "chain.svg").read_text().startswith("<svg")
    record = json.loads((out / "nas" / "candidates.json").read_text())
    assert f"{record['held_out_top1']:.4f} on {record['held_out']} held out" in done.stderr
    assert "pricing enas_macro:layers=4,resolution=8: macs" in done.stderr


def test_the_command_and_its_settings_are_kept(searched):
    record = json.loads((searched[0] / "run.json").read_text())
    assert record["commands"][0]["argv"][:3] == ["ofa", "nas", "enas"]
    config = json.loads((searched[0] / "nas" / "config.json").read_text())
    assert (config["method"], config["space"], config["variant"], config["depth"]) == ("enas", "macro", "paper", 4)
    assert (config["reward"], config["where"], config["controller_lr"]) == ("mnasnet_soft", ["macs <= 2M"], 0.001)
    assert len(config["objective_sha256"]) == 64


def test_its_report_shows_what_was_found_and_how(searched):
    html = write_report(searched[0]).read_text()
    assert "A search by a controller in a space of" in html
    assert "Found by ENAS, after 2 of 2 epochs. Rewarded was mnasnet_soft of the accuracy with macs &lt;= 2M." in html
    assert "those with shared weights: what was found must be trained anew" in html
    assert 'aria-label="Reward over epoch"' in html
    assert 'aria-label="Share of skips over epoch"' in html
    assert 'aria-label="layer 1: ' in html  # the drawing
    assert (searched[0] / "arc.txt").read_text().strip() in html
    ranked = json.loads((searched[0] / "nas" / "candidates.json").read_text())["candidates"]
    assert [row.strip() for row in re.findall(r'data-label="Tokens"><code>(.*?)</code>', html)] == [row["arc"] for row in ranked]
    assert html.count('data-label="Reward"') == len(ranked)
    assert "ofa train --arch" in html
    assert "By gradients" not in html


def test_a_report_of_a_search_under_way_says_so(searched, tmp_path):
    import shutil

    copy = shutil.copytree(searched[0], tmp_path / "copy")
    for name in ("arch.json", "arc.txt", "chain.svg", "nas/candidates.json"):
        (copy / name).unlink()
    html = write_report(copy).read_text()
    assert "Not found yet: ENAS is under way, after 2 of 2 epochs" in html
    assert "It is under way." in html
    assert 'aria-label="Reward over epoch"' in html
    assert "ofa train --arch" not in html


def test_micro_cells_are_drawn_and_goes_on_where_it_was(cli, tmp_path):
    command = ["nas", "enas", "--data", "digits", "--out", tmp_path / "x", "--depth", 5, *TINY, *STEPS, "--variant", "release"]
    done = cli(*command, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert len(parse_arc(done.stdout)) == 40
    again = cli(*command, env=ONE_THREAD)
    assert again.returncode == 1
    assert "already holds a search; add --resume auto to go on" in again.stderr
    assert "--cells 17 --channels 36 --drop-path 0.2 --dropout 0.2" in done.stderr
    html = write_report(tmp_path / "x").read_text()
    assert html.count('<svg class="cell"') == 2
    assert "epochs, as the published code computes. Rewarded was accuracy." in html
    genotype = (tmp_path / "x" / "genotype.txt").read_text().strip()
    parse_genotype(genotype)
    assert genotype.replace("'", "&#39;") in html


def test_networks_that_were_trained_one_by_one_have_such_a_report_too(cli, tmp_path):
    small = ["--layers", 4, "--least-layers", 2, "--resolution", 8, "--children", 2, "--batch", 1, "--child-epochs", 1]
    some = ["--last-epochs", 1, "--max-images", 200]
    done = cli("nas", "nas_rl", "--space", "cnn", "--data", "digits", "--out", tmp_path / "x", *small, *some, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    html = write_report(tmp_path / "x").read_text()
    assert "trained from scratch, after 2 of 2 updates. Rewarded was accuracy, to the power of 3." in html
    assert 'aria-label="Reward over update"' in html
    assert "train the best few longer" in html
    assert html.count('<code class="command">ofa train --arch') == len(list((tmp_path / "x" / "nas" / "best").iterdir()))
    assert 'aria-label="layer 1: ' in html


def test_recurrent_cells(cli, tmp_path):
    words = " ".join(str(i * i % 7) for i in range(3_000))
    (tmp_path / "words.txt").write_text("\n".join(words[i : i + 60] for i in range(0, len(words), 60)))
    small = ["--features", 8, "--epochs", 1, "--batch-size", 4, "--bptt", 10, "--dropout", 0.2]
    steps = ["--controller-steps", 2, "--samples", 3, "--candidates", 2, "--variant", "release"]
    command = ["nas", "enas", "--space", "rnn", "--text", tmp_path / "words.txt", "--out", tmp_path / "x", *small, *steps]
    done = cli(*command, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "x" / "genotype.txt").read_text()
    config = json.loads((tmp_path / "x" / "nas" / "config.json").read_text())
    assert (config["controller_samples"], config["variant"], config["candidates"]) == (3, "release", 2)
    assert config["dropouts"]["outputs"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a search needs images: --data cifar10"),
        (["--space", "nano", "--data", "digits"], "space is 'nano', expected one of: micro, macro, rnn"),
        (["--space", "rnn"], "--space rnn needs a text"),
        (["--space", "rnn", "--text", "x", "--depth", "8"], "--depth 8: --space rnn searches a cell for text, which has no use"),
        (["--data", "digits", "--text", "x"], "--text x: --space micro searches on images"),
        (["--data", "digits", "--features", "8"], "--features 8: --space micro searches on images"),
        (["--data", "digits", "--variant", "x"], "variant is 'x', expected one of: paper, release"),
        (["--data", "digits", "--depth", "4"], "cells is 4, expected at least 5"),
        (["--data", "digits", "--samples", "0"], "samples is 0, expected a whole number from 1"),
        (["--data", "digits", "--reward", "mnasnet_soft"], "needs limits on costs"),
        (["--data", "digits", "--where", "macs <= 3M"], "is weighed against accuracy by a reward, and none is given"),
        (["--data", "digits", "--reward", "x", "--where", "macs <= 3M"], "unknown reward 'x'"),
        (
            ["--data", "digits", "--reward", "mnasnet_soft", "--where", "latency@pi4 <= 3ms", "--table", "/no/such.json"],
            "/no/such.json",
        ),
        (["--data", "/no/such"], "no such directory, archive or name"),
        (["--data", "digits", "--max-images", "20"], "fewer than batch_size"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, arguments, message, capsys, monkeypatch):
    out = tmp_path / "x"
    monkeypatch.setattr(sys, "argv", ["ofa", "nas", "enas", "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


def test_help_teaches(cli):
    text = " ".join(cli("nas", "enas", "--help").stdout.split())
    assert "Example: ofa nas enas --space micro --data cifar10 --out runs/enas" in text
    assert "On a processor begin small" in text
    assert "Compare" not in text
    assert "the paper names temperature 5, tanh constant 2.5" in text
    assert "enas" in cli("nas", "--help").stdout
