"""AWS's wire formats for one service: requests in, results and errors out.

The service models are botocore's; requests are parsed and errors and JSON results serialised by
moto's own code. Results in XML are written by `xml_results`, from the same models.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.model import OperationNotFoundError
from moto.core.model import OperationModel, ServiceModel
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import determine_request_protocol
from moto.core.serialize import SerializationContext, get_serializer_class
from moto.core.utils import get_service_model
from werkzeug.wrappers import Request, Response

from localsuite.aws.errors import ApiError
from localsuite.aws.xml_results import XmlResults

__all__ = ["CallTarget", "Parameters", "ServiceWire", "call_target"]


class Parameters(dict[str, Any]):
    """A request's parameters; `[]` refuses the call when a required one is absent."""

    def __missing__(self, name: str) -> Any:
        raise ApiError("ValidationError", f"The parameter {name} is required.")


@dataclass(frozen=True, slots=True)
class CallTarget:
    """What a signed request is for."""

    service: str
    region: str
    operation: str


def call_target(request: Request) -> CallTarget | None:
    """The service, region and operation of a request; None when it is not a signed AWS call.

    Signature Version 4 names service and region in the credential scope
    (`Credential=KEY/DATE/REGION/SERVICE/aws4_request`).
    """
    authorization = request.headers.get("Authorization", "")
    _, separator, rest = authorization.partition("Credential=")
    scope = rest.split(",", 1)[0].split("/")
    if not separator or len(scope) != 5:
        return None
    amz_target = request.headers.get("X-Amz-Target", "")
    operation = amz_target.rpartition(".")[2] or request.values.get("Action", "")
    return CallTarget(scope[3].lower(), scope[2], operation)


class ServiceWire:
    """Parses requests to and serialises answers of one service, for instance `autoscaling`."""

    def __init__(self, service: str) -> None:
        self._model = get_service_model(service)
        self._protocol = determine_request_protocol(self._model)
        self._xml = XmlResults(self._protocol) if self._protocol in ("query", "ec2") else None
        self._error_codes = {
            code for shape in self._model.error_shapes for code in (shape.name, shape.error_code)
        }

    def parse(self, request: Request, operation: str) -> Parameters:
        """The request's parameters with the names of the API reference.

        Raises ApiError when the service has no such operation.
        """
        try:
            operation_model = self._model.operation_model(operation)
        except OperationNotFoundError:
            raise ApiError("InvalidAction", f"Could not find operation {operation}") from None
        parser = PROTOCOL_PARSERS[self._protocol](operation_model)
        return Parameters(
            parser.parse(
                {
                    "method": request.method,
                    "values": request.values,
                    "headers": request.headers,
                    "body": request.get_data(),
                    "url_path": request.path,
                    "url_params": {},
                }
            )
        )

    def respond(self, operation: str, result: Mapping[str, Any]) -> Response:
        """The answer that carries `result`, keyed as in the API reference."""
        operation_model = self._model.operation_model(operation)
        if self._xml is None:
            return self._serialise(operation_model, result)
        request_id = str(uuid.uuid4())
        body = self._xml.document(operation_model, result, request_id)
        response = Response(body, content_type="text/xml;charset=UTF-8")
        response.headers["x-amzn-RequestId"] = request_id
        return response

    def refuse(self, operation: str, error: ApiError) -> Response:
        """The answer that carries an error."""
        model = self._model_with_error(error.code)
        response = self._serialise(OperationModel({}, model, operation), error)
        response.status_code = error.status
        return response

    def _model_with_error(self, code: str) -> ServiceModel:
        """The service's model, or one that declares `code` where it leaves it out.

        Service models list what is special to the service and few of the codes that every
        service has (Throttling, ValidationError, ...).
        """
        if code in self._error_codes:
            return self._model
        shape = {"type": "structure", "members": {}, "exception": True, "error": {"code": code}}
        description = {"metadata": self._model.metadata, "operations": {}, "shapes": {code: shape}}
        return ServiceModel(description, self._model.service_name)

    def _serialise(self, operation_model: Any, result: object) -> Response:
        request_id = str(uuid.uuid4())
        serializer_class = get_serializer_class(self._model.service_name, self._protocol)
        serialized = serializer_class(
            operation_model=operation_model, context=SerializationContext(request_id)
        ).serialize(result)
        response = Response(
            serialized["body"], status=serialized["status_code"], headers=serialized["headers"]
        )
        response.headers["x-amzn-RequestId"] = request_id
        return response
