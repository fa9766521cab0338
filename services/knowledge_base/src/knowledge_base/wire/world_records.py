"""Records of whole worlds on the wire."""

import uuid
from datetime import UTC, datetime

from gaming.knowledge_base.v1 import world_records_pb2 as pb
from knowledge_base.domain.world_records import WorldHeader, WorldRow, WorldTrailer
from knowledge_base.wire.times import optional_time, stamp
from knowledge_base.world_records import ExportStep, Record

__all__ = ["export_message", "record_of"]

_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def export_message(step: ExportStep) -> pb.ExportWorldResponse:
    """Returns one step of an export."""
    return pb.ExportWorldResponse(
        resume_token=step.token,
        record=_record_message(step.record),
        sent_rows=step.sent_rows,
        total_rows=step.total_rows,
    )


def record_of(message: pb.WorldRecord) -> Record:
    """Returns one record of an import. Raises InvalidRequest when a time is out of range."""
    match message.WhichOneof("record"):
        case "header":
            header = message.header
            return WorldHeader(
                header.format_version,
                uuid.UUID(header.world_id),
                header.name,
                header.description,
                optional_time(header, "create_time", "header.create_time") or _NO_TIME,
                optional_time(header, "export_time", "header.export_time") or _NO_TIME,
                header.embedding_model,
                {uuid.UUID(each.concept_id): each.name for each in header.shared_concepts},
                header.row_count,
            )
        case "rows":
            rows = [WorldRow(row.columns_json, dict(row.vectors)) for row in message.rows.rows]
            return message.rows.table, rows
        case _:
            return WorldTrailer(dict(message.trailer.row_counts), message.trailer.checksum_sha256)


def _record_message(record: Record) -> pb.WorldRecord:
    match record:
        case WorldHeader():
            return pb.WorldRecord(
                header=pb.WorldHeader(
                    format_version=record.format_version,
                    world_id=str(record.world_id),
                    name=record.name,
                    description=record.description,
                    create_time=stamp(record.create_time),
                    export_time=stamp(record.export_time),
                    embedding_model=record.embedding_model,
                    shared_concepts=[
                        pb.SharedConceptName(concept_id=str(concept_id), name=name)
                        for concept_id, name in record.shared_concepts.items()
                    ],
                    row_count=record.row_count,
                )
            )
        case WorldTrailer():
            return pb.WorldRecord(
                trailer=pb.WorldTrailer(
                    row_counts=record.row_counts, checksum_sha256=record.checksum
                )
            )
        case table, rows:
            return pb.WorldRecord(
                rows=pb.WorldRows(
                    table=table,
                    rows=[
                        pb.WorldRow(columns_json=row.columns_json, vectors=row.vectors)
                        for row in rows
                    ],
                )
            )
