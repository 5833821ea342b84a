"""Options, columns, answers, errors, run lengths and KServe's bytes: what client and server share. numpy
only.

Knows no connection, no medium, no model.
"""
