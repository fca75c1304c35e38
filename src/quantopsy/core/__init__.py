"""Plain frozen values that every room shares."""

from quantopsy.core.errors import QuantopsyError
from quantopsy.core.finding import Cause, Finding, Removed
from quantopsy.core.plan import ROLES, Plan, Role, Site
from quantopsy.core.spec import Spec

__all__ = ["ROLES", "Cause", "Finding", "Plan", "QuantopsyError", "Removed", "Role", "Site", "Spec"]
