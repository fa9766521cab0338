"""The zones of subnets. Networks are moto's; its EC2 is loaded when a subnet is first named."""

from moto.backends import get_backend
from moto.core.exceptions import ServiceException

from localsuite.aws.errors import ApiError

__all__ = ["Subnets"]


class Subnets:
    """Looks up the subnets of one account and region."""

    def __init__(self, account_id: str, region_name: str) -> None:
        self._account_id = account_id
        self._region_name = region_name

    def zone_of(self, subnet_id: str) -> str:
        """The Availability Zone a subnet lies in.

        Raises ApiError (Auto Scaling's ValidationError) when there is no such subnet.
        """
        try:
            ec2 = get_backend("ec2")[self._account_id][self._region_name]
            return str(ec2.get_subnet(subnet_id).availability_zone)
        except ServiceException as error:
            raise ApiError(
                "ValidationError", f"The subnet ID '{subnet_id}' does not exist"
            ) from error
