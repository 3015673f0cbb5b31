"""Videos, the clips cut from them, and how clips are dealt to clients."""
