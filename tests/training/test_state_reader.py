"""What a checkpoint's .metadata may create: DCP's records, in the forms of each Python."""

from __future__ import annotations

import io
import pickle

import pytest
from torch.distributed.checkpoint import metadata

from alpaca_lib.errors import CheckpointError
from alpaca_lib.training.state_reader import _Unpickler

ENCODING = metadata._MEM_FORMAT_ENCODING


class Stored:
    """Is pickled as a call of getattr, as Python 3.11.2 stores the member of an enum."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


def load(value):
    return _Unpickler(io.BytesIO(pickle.dumps(value))).load()


@pytest.mark.parametrize("member", list(ENCODING))
def test_a_member_of_an_enum_is_read_in_both_forms(member):
    assert load(member) is member
    assert load(Stored(ENCODING, member.name)) is member


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ENCODING, "__init__"), (ENCODING, "mro"), (metadata.Metadata, "__init__"), ("text", "join")],
)
def test_getattr_gives_nothing_else(owner, name):
    with pytest.raises(CheckpointError, match="which no checkpoint of a run does"):
        load(Stored(owner, name))
