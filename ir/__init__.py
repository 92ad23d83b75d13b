"""The intermediate representation: sizes, types, ops, graphs, layers, passes and the reference run. It needs NumPy and ml_dtypes only."""
