"""Where importance ends: operators that look at a float tensor and return no value that varies with it."""

from onnxlift.registry import stop

stop("looks at the shape only", "Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike")
stop("returns an index", "ArgMax", "ArgMin", "NonMaxSuppression", "NonZero")
stop("returns a truth value", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf")
