"""Equal objects have equal identities, in every process; objects that may behave differently have different ones."""

import functools
import operator
import os
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_pruning.pruner.importance import MagnitudeImportance

from compressors import ChannelPruner, Pipeline, Quantizer
from compressors.study.identity import identify


class Color(Enum):
    RED, BLUE = 1, 2


@dataclass(frozen=True)
class Settings:
    share: float
    names: tuple = ()


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Plain:
    bound = 3

    def __init__(self, value):
        self.value = value

    def __call__(self, x):
        return x * self.value


def multiplied(x, by=2, *, plus=0):
    return x * by + plus


def by(number):
    def inner(x):
        def innermost():
            return x * number

        return innermost()

    return inner


def installed_closure(value):
    """Return a function that was defined in a function of an installed package."""
    return torch.optim.swa_utils.get_ema_multi_avg_fn(value / 10)


def module(value=1.0, persistent=True, flag=0, trained=True):
    made = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    made[0].weight.data.fill_(value)
    made[0].bias.data.zero_()
    made.register_buffer("extra", torch.zeros(1), persistent)
    made.flag = flag
    return made.train(trained)


def cyclic(value):
    made = {"value": value}
    made["self"] = [made]
    return made


# Makers of objects; all of them differ from each other.
MAKERS = [
    lambda: 1,
    lambda: 1.0,
    lambda: True,
    lambda: "1",
    lambda: b"1",
    lambda: None,
    lambda: (1, 2),
    lambda: [1, 2],
    lambda: {1, 2},
    lambda: {"a": 1, "b": 2},
    lambda: {"a": 1, "b": [2]},
    lambda: OrderedDict(a=1, b=2),
    lambda: deque([1, 2]),
    lambda: {"red", "green", "blue"},
    lambda: torch.zeros(2, 3),
    lambda: torch.zeros(3, 2),
    lambda: torch.zeros(2, 3, dtype=torch.bfloat16),
    lambda: torch.zeros(2, 3, dtype=torch.bool),
    lambda: np.zeros((2, 3)),
    lambda: np.zeros((2, 3))[:, ::-1] + 1,
    lambda: np.array([1, "a"], dtype=object),
    lambda: np.float32(0.5),
    lambda: np.random.default_rng(0),
    lambda: torch.Generator().manual_seed(0),
    lambda: torch.Generator().manual_seed(1),
    lambda: torch.float16,
    lambda: torch.device("cuda"),
    lambda: Path("a"),
    lambda: slice(1),
    lambda: Color.RED,
    lambda: Color.BLUE,
    lambda: Settings(0.5),
    lambda: Settings(0.5, ("a",)),
    lambda: Slots(1),
    lambda: Slots(2),
    lambda: Plain(1),
    lambda: Plain(2),
    lambda: Plain(2).__call__,
    lambda: Plain,
    lambda: Slots,
    lambda: multiplied,
    lambda: functools.partial(multiplied, by=3),
    lambda: functools.partial(multiplied, by=4),
    lambda: functools.lru_cache(multiplied),
    lambda: functools.lru_cache(by(2)),
    lambda: by(2),
    lambda: by(3),
    lambda: by(torch.ones(2)),
    lambda: operator.itemgetter(1),
    lambda: operator.itemgetter(2),
    lambda: installed_closure(1),
    lambda: installed_closure(2),
    lambda: torch.relu,
    lambda: torch.sigmoid,
    lambda: nn.functional.relu,
    lambda: len,
    lambda: [1, 2].append,
    lambda: torch,
    lambda: cyclic(1),
    lambda: cyclic(2),
    lambda: module(),
    lambda: module(2.0),
    lambda: module(flag=1),
    lambda: module(trained=False),
    lambda: Quantizer(4),
    lambda: Quantizer(5),
    lambda: Pipeline(Quantizer(4)),
    lambda: ChannelPruner(0.5),
    lambda: ChannelPruner(0.5, importance=MagnitudeImportance(p=1)),
    lambda: ChannelPruner(0.5, importance=MagnitudeImportance(p=2)),
    lambda: ChannelPruner(0.5, importance=multiplied),
]


def test_objects_that_differ_in_anything_have_different_identities():
    found = [identify(make()) for make in MAKERS]
    assert not any(identity.unknown for identity in found)
    assert len({identity.digest for identity in found}) == len(found)


def test_equal_objects_have_equal_identities_whether_they_are_shared_or_not():
    shared = [1, [2]]
    assert identify([shared, shared]) == identify([[1, [2]], [1, [2]]])
    assert identify(shared, shared) == identify([1, [2]], [1, [2]])


def hooked(hook):
    made = module()
    for _ in range(3):  # Which moves the number of the next hook.
        made.register_forward_hook(multiplied).remove()
    made.register_forward_hook(hook)
    return made


def test_hooks_count_and_their_numbers_do_not():
    assert identify(hooked(multiplied)) == identify(hooked(multiplied)) != identify(hooked(by(2)))
    assert identify(hooked(multiplied)) != identify(module())


def test_a_buffer_outside_of_the_state_dict_counts():
    first, second = module(persistent=False), module(persistent=False)
    second.extra.add_(1)
    assert identify(first) != identify(second)


def test_code_defaults_constants_and_globals_count(monkeypatch):
    before = identify(multiplied), identify(Plain(1))
    monkeypatch.setattr(multiplied, "__defaults__", (3,))
    assert identify(multiplied) != before[0]
    monkeypatch.setattr(Plain, "bound", 4)
    assert identify(Plain(1)) != before[1]
    monkeypatch.setattr(Plain, "bound", 3)
    assert identify(Plain(1)) == before[1]
    monkeypatch.setattr(Plain, "__call__", multiplied)
    assert identify(Plain(1)) != before[1]


class Hidden:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not for you")


@pytest.mark.parametrize("make", [threading.Lock, Hidden, lambda: sys.stdout, lambda: (x for x in "ab")])
def test_what_cannot_be_read_is_named_wherever_it_is(make):
    secret = make()
    for holder in (
        secret,
        [secret],
        {"a": (secret,)},
        Plain(secret),
        by(secret),
        functools.partial(multiplied, secret),
    ):
        assert type(secret).__qualname__ in identify(holder).unknown


def test_identities_are_the_same_in_another_process():
    code = "import test_study_identity as t; print(*(t.identify(make()).digest for make in t.MAKERS))"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1])]),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [identify(make()).digest for make in MAKERS]
    assert run.stdout.split() == expected
