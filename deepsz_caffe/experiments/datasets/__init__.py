"""Public data sets as LMDBs, split into training, validation and test."""
