import pickle

import pytest

from distrib import errors


@pytest.mark.parametrize("kind", errors.DistribError.__subclasses__())
def test_every_error_survives_the_way_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("what, where, remedy")))
    assert isinstance(error, kind)
    assert str(error) == "what, where, remedy"
