"""The Open Inference Protocol v2, as teacher, student and gateway serve it and the teacher calls
it."""
