"""Plain frozen values that every room shares."""

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.plan import ROLES, Plan, Role, Site
from quantopsy.core.spec import Spec

__all__ = ["ROLES", "Plan", "QuantopsyError", "Role", "Site", "Spec"]
