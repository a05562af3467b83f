"""A library's warning fails a test only where it is about a call of ours."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
from torch import nn

LIBRARY = """
import warnings
from torch import nn

def deprecated():
    warnings.warn("the caller is blamed", FutureWarning, stacklevel=2)

def self_blaming():
    warnings.warn("its own line is blamed", UserWarning)

def inside():
    deprecated()
    self_blaming()

class Inner(nn.Module):
    def forward(self):
        warnings.warn("a model's caller is blamed", FutureWarning, stacklevel=2)

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self):
        return self.inner()
"""


@pytest.fixture
def library():
    module = ModuleType("library")
    exec(compile(LIBRARY, "/site-packages/library.py", "exec"), vars(module))
    return module


@pytest.mark.parametrize("function", ["deprecated", "self_blaming"])
def test_a_call_of_ours_that_a_library_warns_of_is_an_error(library, function):
    with pytest.raises(Warning, match="is blamed"):
        getattr(library, function)()


def test_a_model_that_warns_of_our_call_is_an_error(library):
    with pytest.raises(FutureWarning):
        library.Inner()()


def test_what_a_library_does_inside_is_not_ours(library):
    library.inside()
    outer: nn.Module = library.Outer()
    outer()


def test_warnings_of_our_own_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("ours", stacklevel=1)


def test_warnings_that_a_test_expects_are_none(library):
    with pytest.warns(FutureWarning):
        library.deprecated()
