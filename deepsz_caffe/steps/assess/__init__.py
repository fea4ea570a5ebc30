"""Step 2: what each layer loses, and weighs, at which error bound (section 3.3)."""
