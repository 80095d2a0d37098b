"""A few of `mutants.py` in every run: the tests can fail, and the machinery does not cry wolf."""

import pytest

from tests.ttt_impl.mutants import DUAL, MUTANTS, REFERENCE, Mutant, killed

FEW = ("mask_includes_next_token", "gradient_without_mean", "epsilon_of_pytorch", "no_curvature_of_gelu")


@pytest.mark.parametrize("name", FEW)
def test_fault_is_found(name: str) -> None:
    assert killed(MUTANTS[name], everything=False)


def test_no_fault_is_not_found() -> None:
    assert not killed(Mutant("learner.py", "EPSILON = 1e-6", "EPSILON = 1.0e-6", REFERENCE), everything=False)


def test_every_fault_still_fits_the_code(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.ttt_impl.mutants import _copy

    for name, mutant in MUTANTS.items():
        _copy(mutant, tmp_path_factory.mktemp(name))
    with pytest.raises(ValueError, match="it must occur once"):
        _copy(Mutant("learner.py", "no such line", "", DUAL), tmp_path_factory.mktemp("none"))
