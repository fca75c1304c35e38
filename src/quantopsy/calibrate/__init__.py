"""From data to qparams: streaming statistics, range estimators, corrections of weights."""

from quantopsy.calibrate.fit import fit, realise
from quantopsy.calibrate.observer import Observer, observer
from quantopsy.calibrate.registry import check

__all__ = ["Observer", "check", "fit", "observer", "realise"]
