"""The DATA contract: whatever names images becomes one indexed, checked collection of them."""

from quantopsy.data.images import Batch, Images, prefetch, reader
from quantopsy.data.opening import open_data, without_list
from quantopsy.data.order import evenly_spaced_order
from quantopsy.data.pictures import Preprocess

__all__ = ["Batch", "Images", "Preprocess", "evenly_spaced_order", "open_data", "prefetch", "reader", "without_list"]
