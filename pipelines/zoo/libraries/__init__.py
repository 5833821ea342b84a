"""Networks of other libraries, timm and transformers: they load and describe them, the engines serve them."""
