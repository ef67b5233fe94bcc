"""Where images to pack come from: folders, parquet files, WebDataset tars, Hugging Face data sets.

`open_source` is the one place that knows them all; `base.Source` is what they have in common.
"""

from trainer.sources.base import Chunk, Content, Source
from trainer.sources.opening import open_source

__all__ = ["Chunk", "Content", "Source", "open_source"]
