"""Layouts: contributions in the files that other tools read."""

from onnxlift.formats.layouts.source import LayoutInput, regions_of
from onnxlift.formats.layouts.table import LAYOUTS, Layout, check_layout, write_layout
from onnxlift.formats.layouts.writing import Written

__all__ = ["LAYOUTS", "Layout", "LayoutInput", "Written", "check_layout", "regions_of", "write_layout"]
