"""Running a model's variants: what they may take."""
