"""Competitors by name."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

from cllm4rec_hf.baselines.base import Baseline
from cllm4rec_hf.baselines.popularity import Popularity
from cllm4rec_hf.baselines.registry import REGISTRY, baseline_class, load_baseline
from cllm4rec_hf.errors import CLLM4RecError, DataError


@pytest.mark.parametrize("name", REGISTRY)
def test_each_is_a_baseline_of_its_name(name):
    baseline = baseline_class(name)
    assert issubclass(baseline, Baseline)
    config = getattr(baseline, "config_class", None)
    assert (config.model_type if config else baseline.model_type) == name
    # what the grid names, a fit takes
    settings = {setting for point in baseline.GRID for setting in point}
    known = {*dir(config)} if config else {*inspect.signature(baseline).parameters}
    assert settings <= known


@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.needs_texts])
def test_those_that_need_texts_say_so(name, textless_data):
    settings = {"backbone": "nobody/asks"} if REGISTRY[name].needs_backbone else {}
    with pytest.raises(DataError, match="needs texts of items"):
        baseline_class(name).fit_to(textless_data, **settings)


def test_the_others_do_without(textless_data):
    for name in ("popularity", "ease"):
        assert not REGISTRY[name].needs_texts
        baseline_class(name).choose(textless_data)


def test_an_unknown_name():
    with pytest.raises(CLLM4RecError, match="Unknown baseline 'magic'; expected one of popularity, ease"):
        baseline_class("magic")


def test_loads_whatever_was_saved(tmp_path, planted_data):
    model = Popularity.fit_to(planted_data)
    model.save_pretrained(tmp_path)
    loaded = load_baseline(tmp_path)
    assert isinstance(loaded, Popularity)
    np.testing.assert_array_equal(loaded.counts, model.counts)


def test_what_is_no_baseline_is_refused(tmp_path):
    with pytest.raises(CLLM4RecError, match="holds no config.json"):
        load_baseline(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CLLM4RecError, match="names no model_type"):
        load_baseline(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CLLM4RecError, match="Unknown baseline 'bert'"):
        load_baseline(tmp_path)


def test_listing_them_does_not_import_torch():
    code = "import sys; from cllm4rec_hf.baselines.registry import REGISTRY; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
