"""What client and server share: options, columns, answers, errors, run lengths, KServe's bytes. numpy only.

Knows no connection, no medium, no model.
"""
