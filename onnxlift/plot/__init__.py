"""Pictures of contributions. They need matplotlib and logomaker: pip install 'onnxlift[plot]'.

`image`, `logo`, `bars` and `tokens` return a matplotlib Figure of all samples they are given; `report` writes a page
of HTML about an explanation.
"""

from onnxlift.plot.api import bars, image, logo, report, tokens
from onnxlift.plot.drawing import Options

__all__ = ["Options", "bars", "image", "logo", "report", "tokens"]
