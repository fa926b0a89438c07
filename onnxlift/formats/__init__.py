"""Files of data and results in the formats that people have, read lazily and never trusted."""

from onnxlift.formats.data import FileRows, Form, Rows, Stored, open_data, read_all, required, whole

__all__ = ["FileRows", "Form", "Rows", "Stored", "open_data", "read_all", "required", "whole"]
