"""Reports of what models cost and how well they segment: the work of `bench`, its tables, plots, pictures and lock."""
