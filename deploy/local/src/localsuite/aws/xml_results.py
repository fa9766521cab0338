"""Results of the XML protocols (`query`, `ec2`), written straight from a service's model.

A serialiser that looks at every member a shape could have spends a fifth of a second on a
hundred EC2 instances; this one looks at the members a result has. Names, list wrapping and
timestamps follow the model's traits (botocore's `protocols` documentation of the same names).
"""

from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from moto.core.model import OperationModel

__all__ = ["XmlResults"]

#: Appends the element `name` with a value to the pieces of a document.
_Writer = Callable[[list[str], str, Any], None]


class XmlResults:
    """Writes the results of one service; writers are made once per shape. Thread-safe."""

    def __init__(self, protocol: str) -> None:
        if protocol not in ("query", "ec2"):
            raise ValueError(f"{protocol} is not an XML protocol with results in a body")
        self._protocol = protocol
        self._writers: dict[str, _Writer] = {}

    def document(
        self, operation_model: OperationModel, result: Mapping[str, Any], request_id: str
    ) -> str:
        """The whole body of an answer. Raises KeyError for a member the model does not have."""
        operation = operation_model.name
        namespace = operation_model.metadata.get("xmlNamespace", "")
        pieces = [f'<?xml version="1.0" encoding="utf-8"?>\n<{operation}Response']
        pieces.append(f' xmlns="{namespace}">' if namespace else ">")
        shape = operation_model.output_shape
        if self._protocol == "ec2":
            if shape is not None:
                self._write_members(pieces, shape, result)
            pieces.append(f"<requestId>{request_id}</requestId>")
        else:
            if shape is not None:
                wrapper = shape.serialization.get("resultWrapper", f"{operation}Result")
                pieces.append(f"<{wrapper}>")
                self._write_members(pieces, shape, result)
                pieces.append(f"</{wrapper}>")
            pieces.append(
                f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
            )
        pieces.append(f"</{operation}Response>")
        return "".join(pieces)

    def _write_members(self, pieces: list[str], shape: Any, value: Mapping[str, Any]) -> None:
        members = shape.members
        for key, member_value in value.items():
            if member_value is not None:
                member = members[key]
                name = member.serialization.get("name", key)
                self._writer(member)(pieces, name, member_value)

    def _writer(self, shape: Any) -> _Writer:
        # Traits of a member (its name, flattening) belong to the reference, not to the shape.
        key = f"{shape.name}|{shape.serialization.get('flattened', False)}"
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = self._new_writer(shape)
        return writer

    def _new_writer(self, shape: Any) -> _Writer:
        if shape.type_name == "structure":
            return self._structure_writer(shape)
        if shape.type_name == "list":
            return self._list_writer(shape)
        if shape.type_name == "timestamp":
            return _write_timestamp
        if shape.type_name == "boolean":
            return _write_boolean
        if shape.type_name in ("map", "blob"):
            raise NotImplementedError(f"no result of ours has a {shape.type_name} ({shape.name})")
        return _write_text

    def _structure_writer(self, shape: Any) -> _Writer:
        members: dict[str, tuple[str, _Writer]] = {}

        def write(pieces: list[str], name: str, value: Mapping[str, Any]) -> None:
            pieces.append(f"<{name}>")
            for key, member_value in value.items():
                if member_value is None:
                    continue
                known = members.get(key)
                if known is None:
                    member = shape.members[key]
                    member_name = member.serialization.get("name", key)
                    known = members[key] = (member_name, self._writer(member))
                known[1](pieces, known[0], member_value)
            pieces.append(f"</{name}>")

        return write

    def _list_writer(self, shape: Any) -> _Writer:
        write_item = self._writer(shape.member)
        item_name = shape.member.serialization.get("name", "member")

        def write_wrapped(pieces: list[str], name: str, value: Any) -> None:
            pieces.append(f"<{name}>")
            for item in value:
                write_item(pieces, item_name, item)
            pieces.append(f"</{name}>")

        def write_flattened(pieces: list[str], name: str, value: Any) -> None:
            for item in value:
                write_item(pieces, name, item)

        return write_flattened if shape.serialization.get("flattened") else write_wrapped


def _write_text(pieces: list[str], name: str, value: Any) -> None:
    pieces.append(f"<{name}>{escape(str(value))}</{name}>")


def _write_boolean(pieces: list[str], name: str, value: Any) -> None:
    pieces.append(f"<{name}>{'true' if value else 'false'}</{name}>")


def _write_timestamp(pieces: list[str], name: str, value: Any) -> None:
    moment = value.isoformat(timespec="milliseconds").removesuffix("+00:00")
    pieces.append(f"<{name}>{moment}Z</{name}>")
