"""Code that calls torch_fidelity and cannot change its imports."""

import inspect
import pickle

import pytest
import torch_fidelity
import torch_fidelity.fidelity
from torch_fidelity import calculate_metrics as imported_long_before

from torch_fidelity_lsh.fidelity import hook, upstream
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics

CODE = imported_long_before.__code__


@pytest.fixture(autouse=True)
def _uninstalled():
    yield
    hook.uninstall()


@pytest.fixture
def call(features):
    return {"input1": features[0], "input2": features[1], "fid": True, "shift": True, "verbose": False}


def test_import_installs_nothing():
    assert not hook.is_installed()
    assert imported_long_before.__code__ is CODE


def test_name_imported_before_gains_the_metric(call, shift_metric):
    hook.install()
    expected = calculate_metrics(**call)
    assert expected.keys() == {"frechet_inception_distance", "mean_shift"}
    assert imported_long_before(**call) == expected
    assert torch_fidelity.calculate_metrics(**call) == expected
    assert torch_fidelity.fidelity.calculate_metrics(**call) == expected


def test_uninstall_restores_upstream(call, shift_metric):
    hook.install()
    hook.install()
    hook.uninstall()
    hook.uninstall()
    assert imported_long_before.__code__ is CODE
    assert not hasattr(imported_long_before, "__wrapped__")
    with pytest.raises(ValueError, match="Input descriptor"):  # Upstream ignores `shift` and does not take arrays.
        imported_long_before(**{**call, "cuda": False, "feature_extractor": "efficientnet-lite0"})


def test_calls_without_a_plugin_keyword_are_upstreams_own(images, counting_extractor, shift_metric):
    call = {"input1": images[0], "input2": images[1], "fid": True, "cuda": False, "verbose": False}
    call |= {"feature_extractor": "counting", "save_cpu_ram": True, "some_unknown_keyword": 1}
    before = imported_long_before(**call)
    with hook.installed():
        assert imported_long_before(**call) == before
        with pytest.raises(ValueError, match="Unknown keyword"):
            imported_long_before(**call, shift=True)


def test_upstreams_metrics_inside_a_hooked_call_do_not_recurse(images, counting_extractor, shift_metric):
    call = {"input1": images[0], "input2": images[1], "fid": True, "cuda": False, "verbose": False}
    call |= {"feature_extractor": "counting", "save_cpu_ram": True}
    with hook.installed():
        assert imported_long_before(**call, shift=False) == upstream.calculate_metrics(**call)


def test_nested_blocks_leave_the_outer_one_installed():
    with hook.installed():
        with hook.installed():
            assert hook.is_installed()
        assert hook.is_installed()
    assert not hook.is_installed()


def test_block_inside_an_installation_leaves_it_installed():
    hook.install()
    with hook.installed():
        pass
    assert hook.is_installed()


def test_block_uninstalls_after_an_error():
    with pytest.raises(KeyError), hook.installed():
        raise KeyError
    assert not hook.is_installed()


def test_function_keeps_its_identity():
    documentation, signature = imported_long_before.__doc__, inspect.signature(imported_long_before)
    with hook.installed():
        assert imported_long_before.__doc__ == documentation
        assert inspect.signature(imported_long_before) == signature
        assert imported_long_before.__wrapped__ is upstream.calculate_metrics
        assert pickle.loads(pickle.dumps(imported_long_before)) is imported_long_before


def test_upstream_with_a_metric_of_the_same_name_is_left_alone(shift_metric, monkeypatch):
    monkeypatch.setitem(upstream.DEFAULTS, "shift", False)
    with pytest.raises(RuntimeError, match="torch-fidelity has keywords of these names itself: shift"):
        hook.install()
    assert imported_long_before.__code__ is CODE


def make_closure():
    cell = 1
    return lambda **kwargs: cell


@pytest.mark.parametrize("function", [make_closure(), lambda input1, **kwargs: None, dict])
def test_function_of_another_form_is_refused(function, monkeypatch):
    monkeypatch.setattr("torch_fidelity.metrics.calculate_metrics", function)
    with pytest.raises(RuntimeError, match=r"call torch_fidelity_lsh\.calculate_metrics instead"):
        hook.install()
