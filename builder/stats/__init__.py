"""Each parameter's history: measured on the device, recorded per optimizer step, stored in columns.

`measure` (pure functions) -> `record` (one logged step) -> `store` (parquet files), driven by `callback`, with
`columns` as their common list of measures. Import the callback from `builder.stats.callback`: this package itself
imports nothing, so that reading a finished run loads neither Lightning nor torch.
"""
