"""DL Streamer's model-proc files: how pixels are prepared and answers are read, as JSON. Knows no network.

https://dlstreamer.github.io/dev_guide/model_proc_file.html, schemas 2.0.0 to 2.2.0.
"""

from pipelines.zoo.model_proc.file import ModelProc, read_model_proc

__all__ = ["ModelProc", "read_model_proc"]
