"""EC2's launch templates: what groups launch.

They are kept here and not by moto, because a group must follow the template's newest version,
and because moto's EC2 alone would take as much memory as the rest of the local AWS.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.moments import moment
from localsuite.aws.paging import matches_filters, page_of

__all__ = ["LaunchTemplatesApi", "ResolvedTemplate"]

Params = Mapping[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResolvedTemplate:
    """One version of a launch template, as a group's specification names it."""

    template_id: str
    name: str
    version: str
    instance_type: str
    is_spot: bool
    instance_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def specification(self) -> dict[str, str]:
        """As Auto Scaling's LaunchTemplateSpecification."""
        return {
            "LaunchTemplateId": self.template_id,
            "LaunchTemplateName": self.name,
            "Version": self.version,
        }


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    data: Mapping[str, Any]
    description: str | None
    created: datetime


@dataclass(slots=True)
class _Template:
    template_id: str
    name: str
    created: datetime
    tags: dict[str, str]
    versions: dict[int, _Version] = field(default_factory=dict)
    default_number: int = 1

    @property
    def latest_number(self) -> int:
        return max(self.versions)

    def version(self, reference: str) -> _Version:
        """By number, `$Latest` or `$Default`."""
        numbers = {"$Latest": self.latest_number, "$Default": self.default_number}
        number = numbers.get(reference, int(reference) if reference.isdecimal() else 0)
        if number not in self.versions:
            raise ApiError(
                "InvalidLaunchTemplateId.VersionNotFound",
                f"Could not find launch template version {reference} of {self.template_id}.",
            )
        return self.versions[number]


class LaunchTemplatesApi:
    """One method per operation: parameters in, result out, both keyed as in the API reference.

    `on_change` is told a template's id when its versions or its default have changed.
    """

    def __init__(self, account_id: str, clock: Callable[[], float]) -> None:
        self._creator = f"arn:aws:iam::{account_id}:root"
        self._clock = clock
        self._lock = threading.RLock()
        self._templates: dict[str, _Template] = {}
        self._made = 0
        self.on_change: Callable[[str], None] = lambda template_id: None
        self.operations: Mapping[str, Callable[[Params], Result]] = {
            "CreateLaunchTemplate": self.create,
            "CreateLaunchTemplateVersion": self.create_version,
            "ModifyLaunchTemplate": self.modify,
            "DeleteLaunchTemplate": self.delete,
            "DescribeLaunchTemplates": self.describe,
            "DescribeLaunchTemplateVersions": self.describe_versions,
            "DeleteLaunchTemplateVersions": self._refuse("DeleteLaunchTemplateVersions"),
            "GetLaunchTemplateData": self._refuse("GetLaunchTemplateData"),
        }

    def resolve(self, specification: Mapping[str, str]) -> ResolvedTemplate:
        """The template version a group's LaunchTemplateSpecification names.

        Raises ApiError with Auto Scaling's ValidationError when there is none.
        """
        if bool(specification.get("LaunchTemplateName")) == bool(
            specification.get("LaunchTemplateId")
        ):
            raise ApiError(
                "ValidationError",
                "Valid requests must contain either launchTemplateId or LaunchTemplateName",
            )
        reference = specification.get("Version") or "$Default"
        with self._lock:
            try:
                template = self._find(specification)
                version = template.version(reference)
            except ApiError as error:
                raise ApiError(
                    "ValidationError",
                    f"You must use a valid fully-formed launch template. {error.message}",
                ) from error
        market = version.data.get("InstanceMarketOptions") or {}
        return ResolvedTemplate(
            template_id=template.template_id,
            name=template.name,
            version=reference,
            instance_type=version.data.get("InstanceType") or "",
            is_spot=market.get("MarketType") == "spot",
            instance_tags=_tags(version.data, "instance"),
        )

    def create(self, params: Params) -> Result:
        """Creates a template with its first version."""
        name = params["LaunchTemplateName"]
        with self._lock:
            if any(template.name == name for template in self._templates.values()):
                raise ApiError(
                    "InvalidLaunchTemplateName.AlreadyExistsException",
                    "Launch template name already in use.",
                )
            self._made += 1
            digest = hashlib.sha256(f"{name}/{self._made}".encode()).hexdigest()
            now = moment(self._clock())
            template = _Template(f"lt-{digest[:17]}", name, now, _tags(params, "launch-template"))
            template.versions[1] = _Version(
                1, params["LaunchTemplateData"], params.get("VersionDescription"), now
            )
            self._templates[template.template_id] = template
            return {"LaunchTemplate": self._document(template)}

    def create_version(self, params: Params) -> Result:
        """Adds a version, on top of a source version when one is named."""
        with self._lock:
            template = self._find(params)
            data = params["LaunchTemplateData"]
            source = params.get("SourceVersion")
            if source:
                data = {**template.version(source).data, **data}
            number = template.latest_number + 1
            version = _Version(
                number, data, params.get("VersionDescription"), moment(self._clock())
            )
            template.versions[number] = version
            result = {"LaunchTemplateVersion": self._version_document(template, version)}
        self.on_change(template.template_id)
        return result

    def modify(self, params: Params) -> Result:
        """Makes another version the default."""
        with self._lock:
            template = self._find(params)
            # EC2's model names the member SetDefaultVersion on the wire and DefaultVersion here.
            template.default_number = template.version(params["DefaultVersion"]).number
            result = {"LaunchTemplate": self._document(template)}
        self.on_change(template.template_id)
        return result

    def delete(self, params: Params) -> Result:
        """Deletes a template; groups keep what they resolved."""
        with self._lock:
            template = self._find(params)
            del self._templates[template.template_id]
            return {"LaunchTemplate": self._document(template)}

    def describe(self, params: Params) -> Result:
        """Templates by id, name and filter, a page of 200."""
        with self._lock:
            ids = params.get("LaunchTemplateIds") or ()
            names = params.get("LaunchTemplateNames") or ()
            if ids or names:
                chosen = [self._find({"LaunchTemplateId": each}) for each in ids]
                chosen += [self._find({"LaunchTemplateName": each}) for each in names]
            else:
                chosen = sorted(self._templates.values(), key=lambda t: t.name)
            matching = [
                template
                for template in chosen
                if matches_filters(
                    template,
                    params.get("Filters") or (),
                    {"launch-template-name": lambda t: (t.name,)},
                    lambda t: t.tags,
                )
            ]
            page, token = page_of(
                matching, token=params.get("NextToken"), limit=params.get("MaxResults") or 200
            )
            documents = [self._document(template) for template in page]
        return {"LaunchTemplates": documents, "NextToken": token}

    def describe_versions(self, params: Params) -> Result:
        """The versions of one template, all or the named ones, newest first."""
        with self._lock:
            template = self._find(params)
            references = params.get("Versions") or ()
            versions = (
                [template.version(reference) for reference in references]
                if references
                else sorted(template.versions.values(), key=lambda v: -v.number)
            )
            page, token = page_of(
                versions, token=params.get("NextToken"), limit=params.get("MaxResults") or 200
            )
            documents = [self._version_document(template, version) for version in page]
        return {"LaunchTemplateVersions": documents, "NextToken": token}

    def _find(self, params: Mapping[str, Any]) -> _Template:
        template_id = params.get("LaunchTemplateId")
        if template_id:
            if template_id not in self._templates:
                raise ApiError(
                    "InvalidLaunchTemplateId.NotFound",
                    f"The specified launch template, with template ID {template_id}, does not "
                    "exist.",
                )
            return self._templates[template_id]
        name = params.get("LaunchTemplateName")
        for template in self._templates.values():
            if template.name == name:
                return template
        raise ApiError(
            "InvalidLaunchTemplateName.NotFoundException",
            f"The specified launch template, with template name {name}, does not exist.",
        )

    def _document(self, template: _Template) -> Result:
        return {
            "LaunchTemplateId": template.template_id,
            "LaunchTemplateName": template.name,
            "CreateTime": template.created,
            "CreatedBy": self._creator,
            "DefaultVersionNumber": template.default_number,
            "LatestVersionNumber": template.latest_number,
            "Tags": [{"Key": key, "Value": value} for key, value in template.tags.items()],
        }

    def _version_document(self, template: _Template, version: _Version) -> Result:
        return {
            "LaunchTemplateId": template.template_id,
            "LaunchTemplateName": template.name,
            "VersionNumber": version.number,
            "VersionDescription": version.description,
            "CreateTime": version.created,
            "CreatedBy": self._creator,
            "DefaultVersion": version.number == template.default_number,
            "LaunchTemplateData": version.data,
        }

    @staticmethod
    def _refuse(operation: str) -> Callable[[Params], Result]:
        def refuse(_: Params) -> Result:
            raise not_modelled("UnsupportedOperation", operation)

        return refuse


def _tags(document: Mapping[str, Any], resource_type: str) -> dict[str, str]:
    return {
        tag["Key"]: tag.get("Value") or ""
        for specification in document.get("TagSpecifications") or ()
        if specification.get("ResourceType") == resource_type
        for tag in specification.get("Tags") or ()
    }
