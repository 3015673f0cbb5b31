"""The live page: a small server that reads folders of runs and changes nothing in them."""
