"""The commands `goodinit init` and `goodinit inspect`, in the order in which they work: options, the model, its data, files."""
