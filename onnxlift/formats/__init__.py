"""Files of data and results in the formats that people have, read lazily and never trusted."""

from onnxlift.formats.data import open_data, read_all
from onnxlift.formats.rows import AS_IT_IS, FileRows, Form, Rows, Stored, required, whole

__all__ = ["AS_IT_IS", "FileRows", "Form", "Rows", "Stored", "open_data", "read_all", "required", "whole"]
