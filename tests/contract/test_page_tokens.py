"""A list can be continued from wherever its page ended, however long the names there are."""

import importlib
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from servicekit.paging import encode_page_token

PROTOS = Path(__file__).resolve().parents[2] / "protos"

# The longest position in any list: a document's path and collection, all outside the basic plane.
LONGEST_POSITION = ["\U0001f409" * 512, "\U0001f409" * 63]


def page_token_fields() -> list[FieldDescriptor]:
    found = []
    for proto in sorted((PROTOS / "gaming").rglob("*.proto")):
        name = ".".join(proto.relative_to(PROTOS).with_suffix("").parts) + "_pb2"
        messages = importlib.import_module(name).DESCRIPTOR.message_types_by_name.values()
        found += [
            m.fields_by_name["page_token"] for m in messages if "page_token" in m.fields_by_name
        ]
    return found


FIELDS = page_token_fields()


def test_lists_are_paged_in_every_service_that_has_them() -> None:
    assert len(FIELDS) >= 7


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.full_name))
def test_the_longest_token_a_list_gives_out_is_accepted_back(field: FieldDescriptor) -> None:
    allowed = field.GetOptions().Extensions[validate_pb2.field].string.max_len
    assert len(encode_page_token(("list", "filter"), LONGEST_POSITION)) <= allowed
