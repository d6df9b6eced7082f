"""The comparison with the reference way runs, and both sides compute the same losses."""

import json

import pytest


@pytest.mark.parametrize("data", [False, True])
def test_both_ways_compute_the_same(saved_backbone, prepared, data, tmp_path, capsys):
    import training_speed

    arguments = ["--backbone", str(saved_backbone), "--dtype", "float32", "--max-length", "96", "--turns", "2"]
    arguments += ["--batch", "6", "--steps", "3", "--reference-batch", "4", "--json", str(tmp_path / "speed.json")]
    training_speed.main(arguments + (["--data", str(prepared)] if data else []))
    (result,) = json.loads((tmp_path / "speed.json").read_text())
    assert result["difference"] < 1e-5
    assert result["layers"] == 2 and result["parameters"] > 0 and result["peak"] > 0
    cases = {"content": 6, "collaborative": 12, "content, regularized": 6, "recommendation": 12}
    assert set(result["rows"]) == set(cases)
    for case, documents in cases.items():
        turns = result["rows"][case]
        assert len(turns) == 2
        for turn in turns:
            assert turn["documents"] == documents and turn["tokens"] > 5 * documents
            assert 0 < turn["layers"] + turn["head"] < turn["seconds"]
            assert (turn["head"] > 0) == case.startswith("content")
            assert turn["reference"] > 0
    table = capsys.readouterr().out
    assert all(case in table for case in cases) and "losses in float32 differ by" in table
